"""What each operation of the canonical graph is to a plan: a layer, a mover of codes, or neither, and then why it stays float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.core.graph import EMBEDDING
from quantkit.network.folding import ATEN, covers_map, operand

LAYERS: Mapping[object, str] = {
    ATEN.conv1d.default: "conv",
    ATEN.conv2d.default: "conv",
    ATEN.linear.default: "linear",
    ATEN.add.Tensor: "add",
    ATEN.mul.Tensor: "mul",
    ATEN.cat.default: "concat",
    ATEN.sigmoid.default: "sigmoid",
    ATEN.leaky_relu.default: "leaky_relu",
    ATEN.avg_pool1d.default: "avg_pool",
    ATEN.avg_pool2d.default: "avg_pool",
    ATEN.mean.dim: "global_pool",
    ATEN.embedding.default: EMBEDDING,
}
WEIGHTED = ("conv", "linear")
DIVISOR = 6  # the place of an average pool's own divisor
PADS = (ATEN.pad.default, ATEN.constant_pad_nd.default)
MOVERS: Mapping[object, str] = {
    ATEN.max_pool1d.default: "max_pool",
    ATEN.max_pool2d.default: "max_pool",
    ATEN.view.default: "reshape",
    ATEN._unsafe_view.default: "reshape",
    ATEN.reshape.default: "reshape",
    ATEN.flatten.using_ints: "reshape",
    ATEN.unsqueeze.default: "reshape",
    ATEN.squeeze.dims: "reshape",
    ATEN.squeeze.dim: "reshape",
    ATEN.permute.default: "transpose",
    ATEN.transpose.int: "transpose",
    ATEN.slice.Tensor: "slice",
    ATEN.select.int: "slice",
    ATEN.expand.default: "expand",
    ATEN.upsample_nearest2d.vec: "resize",
    ATEN.upsample_nearest2d.default: "resize",
    ATEN.clone.default: "identity",
    **dict.fromkeys(PADS, "pad"),
}
NO_FORM = "no 8-bit form in this version"
NO_KERNEL = "ONNX Runtime has no int8 kernel for it"
FLOAT_ONLY = (
    "_native_batch_norm_legit_no_training", "abs", "div", "elu", "exp", "gelu", "group_norm", "hardsigmoid", "hardswish", "instance_norm",
    "layer_norm", "maximum", "mean", "minimum", "mish", "pow", "prelu", "softplus", "sqrt", "sub", "tanh",
)  # fmt: skip
STAYS_FLOAT: Mapping[str, str] = {
    **dict.fromkeys(FLOAT_ONLY, NO_KERNEL),
    "convolution": "transposed, or in three dimensions: it runs in float in ONNX Runtime, even between codes",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "recurrent: what it reads next is what it has made, so it runs in float"),
    **dict.fromkeys(("softmax", "_softmax"), "ONNX Runtime's int8 kernel for it is slower than float"),
}


def operation_name(node: fx.Node) -> str:
    """The operation's name as torch writes it; an item of a result goes by the operation that gave it."""
    source = operand(node, 0)
    named = node if isinstance(node.target, torch._ops.OpOverload) or source is None else source
    return str(named.target).removeprefix("aten.")


def read_tensors(node: fx.Node) -> list[fx.Node]:
    """The tensors that `node` reads, in order, as often as it reads them."""
    return [leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node) and has_values(leaf)]


def has_values(node: fx.Node) -> bool:
    """Whether the node makes tensors, not a size."""
    return isinstance(node.meta.get("val"), (Tensor, tuple, list))


def pool_settings(node: fx.Node) -> tuple[list[int], list[int], list[int], bool, bool]:
    """Kernel, stride and padding of an average pool, a number an axis, whether its size is rounded up, and whether padding counts."""
    axes = 1 if node.target is ATEN.avg_pool1d.default else 2
    given: list[Any] = list(node.args[1:DIVISOR])
    usual: tuple[Any, ...] = ([], [], [0], False, True)
    kernel, stride, padding, ceil, padding_counts = [*given, *usual[len(given) :]]
    spread = [list(sides) * (axes // len(sides)) for sides in (kernel, stride or kernel, padding)]
    return spread[0], spread[1], spread[2], bool(ceil), bool(padding_counts)


def refusal(node: fx.Node, module: fx.GraphModule, flowing: set[fx.Node]) -> str:
    """Why `node` can be neither a layer nor a mover as it stands; empty if it can.

    `flowing` are the tensors that depend on the network's inputs; the others are constants, even where they are computed.
    """
    if node.target not in LAYERS and node.target not in MOVERS:
        return STAYS_FLOAT.get(operation_name(node).partition(".")[0], NO_FORM)
    if node.meta["val"].dtype is not torch.float32:
        return "not a float32 value"
    kind = LAYERS.get(node.target, "pad" if node.target in PADS else "")
    if kind in WEIGHTED:
        return _refuse_weighted(node, module, flowing)
    if kind == EMBEDDING:
        return _refuse_table(node, module, flowing)
    sources = read_tensors(node)
    if not all(source in flowing for source in sources):
        return "reads a constant"
    if any(source.meta["val"].dtype is not torch.float32 for source in sources):
        return "reads what is not a float32 value"
    return REFUSALS[kind](node) if kind in REFUSALS else ""


def _refuse_weighted(node: fx.Node, module: fx.GraphModule, flowing: set[fx.Node]) -> str:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for place, name in ((1, "weight"), (2, "bias")):
        source = operand(node, place)
        if source is not None and (source.op != "get_attr" or str(source.target) not in parameters):
            return f"its {name} is computed, not a parameter"
    return "" if operand(node, 0) in flowing else "reads a constant"


def _refuse_table(node: fx.Node, module: fx.GraphModule, flowing: set[fx.Node]) -> str:
    table, parameters = operand(node, 0), dict(module.named_parameters(remove_duplicate=False))
    if table is None or table.op != "get_attr" or str(table.target) not in parameters:
        return "its table is computed, not a parameter"
    return "" if operand(node, 1) in flowing else "reads a constant"


def _refuse_addition(node: fx.Node) -> str:
    sources = read_tensors(node)
    if len(sources) < 2:
        return "adds a constant"
    if node.kwargs.get("alpha", 1) != 1:
        return "scaled addition"
    # `simplify` has put the larger first; where each is spread over the other, the kernel's order of rounding depends on the layout.
    return "" if str(sources[0].meta["val"].shape) == str(node.meta["val"].shape) else "adds tensors that are both spread over the other"


def _refuse_product(node: fx.Node) -> str:
    return "" if len(read_tensors(node)) == 2 else "multiplies by a constant"


def _refuse_average(node: fx.Node) -> str:
    if len(node.args) > DIVISOR and node.args[DIVISOR] is not None:
        return "divides by a number of its own"
    *_, ceil, padding_counts = pool_settings(node)
    return "rounds its size up: the int8 kernel would count what lies beyond the padding" if ceil and padding_counts else ""


def _refuse_mean(node: fx.Node) -> str:
    source, axes = operand(node, 0), node.args[1] if len(node.args) > 1 else None
    keeps = len(node.args) > 2 and bool(node.args[2])
    return "" if source is not None and keeps and covers_map(source, axes) and not node.kwargs else NO_KERNEL


def _refuse_pad(node: fx.Node) -> str:
    given = ["constant", *node.args[2:]] if node.target is ATEN.constant_pad_nd.default else list(node.args[2:])
    mode, value = [*given, *["constant", None][len(given) :]][:2]
    return "" if mode == "constant" and not value else "pads with something other than zero"


REFUSALS: Mapping[str, Callable[[fx.Node], str]] = {
    "add": _refuse_addition,
    "mul": _refuse_product,
    "avg_pool": _refuse_average,
    "global_pool": _refuse_mean,
    "pad": _refuse_pad,
}
