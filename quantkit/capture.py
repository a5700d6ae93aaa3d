"""A network → its canonical graph: exported, functional, batch norm folded, its names a fixed point.

export → decompose → unlift → fold batch norm → export again → decompose. After the second export the names no longer move:
the ONNX exporter and a .pt2 round trip keep them. Plans are made on this graph only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import _pytree as pytree

from quantkit.errors import CaptureError
from quantkit.folding import ATEN, fold_batch_norm
from quantkit.graph import Graph, Layer, Mover, Unsupported
from quantkit.graph import Tensor as GraphTensor

LAYERS = {
    ATEN.conv1d.default: "conv",
    ATEN.conv2d.default: "conv",
    ATEN.linear.default: "linear",
    ATEN.add.Tensor: "add",
    ATEN.cat.default: "concat",
}
ACTIVATIONS = {ATEN.relu.default: "relu", ATEN.hardtanh.default: "clip", ATEN.clamp.default: "clip", ATEN.relu6.default: "clip"}
MOVERS = {
    ATEN.max_pool1d.default: "max_pool",
    ATEN.max_pool2d.default: "max_pool",
    ATEN.view.default: "reshape",
    ATEN.reshape.default: "reshape",
    ATEN.flatten.using_ints: "reshape",
    ATEN.unsqueeze.default: "reshape",
    ATEN.squeeze.dims: "reshape",
    ATEN.squeeze.dim: "reshape",
    ATEN.permute.default: "transpose",
    ATEN.transpose.int: "transpose",
    ATEN.slice.Tensor: "slice",
    ATEN.pad.default: "pad",
    ATEN.clone.default: "identity",
}
# Written out of the graph before planning: the exporter loses the name of the first, and would keep the second's dropout.
DECOMPOSED = (ATEN.adaptive_avg_pool2d.default, ATEN.adaptive_avg_pool1d.default)
EXAMPLE_BATCH = 2  # a batch of 1 would be specialised


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """The canonical `program`, the `module` that runs it in float32 (parameters by their own names), and what it says: `graph`."""

    program: ExportedProgram
    module: fx.GraphModule
    graph: Graph


def capture(model: nn.Module | ExportedProgram, example: Mapping[str, Tensor] | Sequence[Tensor]) -> Captured:
    """The canonical graph of `model`, which is left as it was.

    `example` holds the inputs, batch axis first, by name or in order; only shapes and dtypes matter. The batch becomes a symbol
    unless `model` is a program with a fixed one. Raises CaptureError with torch.export's reason in one line.
    """
    program = model if isinstance(model, ExportedProgram) else _export(model, _enlarged(example))
    if any(node.kwargs.get("training") or _trains(node) for node in program.graph.nodes):
        raise CaptureError("the archive was exported in training mode", "an inference graph", "call model.eval() before torch.export.export")
    first = program.run_decompositions(_decompositions())
    folded = fold_batch_norm(first.module(check_guards=False))  # type: ignore[arg-type]
    arguments, keywords = first.example_inputs or (tuple(_enlarged(example).values()), {})
    second = _reexport(folded, arguments, keywords, _dynamic(first)).run_decompositions(_decompositions())
    module = second.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return Captured(second, module, _describe(second, module))


def _enlarged(example: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    named = dict(example) if isinstance(example, Mapping) else {str(place): value for place, value in enumerate(example)}
    return {name: torch.cat([value[:1]] * EXAMPLE_BATCH) for name, value in named.items()}


def _export(model: nn.Module, example: Mapping[str, Tensor]) -> ExportedProgram:
    by_name = not all(name.isdigit() for name in example)
    arguments = () if by_name else tuple(example.values())
    keywords = dict(example) if by_name else {}
    batch = Dim("batch")
    shapes = {name: {0: batch} for name in example}
    return _checked(model, arguments, keywords, shapes if by_name else tuple(shapes.values()))


def _reexport(
    module: nn.Module, arguments: tuple[Tensor, ...], keywords: Mapping[str, Tensor], dynamic: dict[str, dict[int, Dim]]
) -> ExportedProgram:
    names = list(dynamic)
    shapes = tuple(dynamic[name] for name in names[: len(arguments)]), {name: dynamic[name] for name in names[len(arguments) :]}
    keyed = {key: shape for key, shape in zip(keywords, shapes[1].values(), strict=True)}
    return _checked(module, arguments, dict(keywords), {**keyed} if not arguments else shapes[0] if not keyed else (*shapes[0], keyed))


def _checked(model: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor], shapes: object) -> ExportedProgram:
    try:
        return export(model, arguments, keywords, dynamic_shapes=shapes, strict=False)  # type: ignore[arg-type]
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError, TypeError, AssertionError, KeyError, AttributeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        wanted = "a network without data-dependent control flow, called with the example's inputs"
        raise CaptureError(f"torch.export refuses the network: {reason[:300]}", wanted, "see torch.export's documentation on that message") from error


def _decompositions() -> dict[torch._ops.OperatorBase, object]:
    table = torch.export.default_decompositions()
    return {operation: table[operation] for operation in DECOMPOSED if operation in table}


def _trains(node: fx.Node) -> bool:
    """Whether the node is a batch norm or dropout that still learns: its `training` argument is True."""
    places = {ATEN.batch_norm.default: 5, ATEN._native_batch_norm_legit.default: 5, ATEN.native_batch_norm.default: 5, ATEN.dropout.default: 2}
    place = places.get(node.target)  # type: ignore[arg-type]
    return place is not None and len(node.args) > place and node.args[place] is True


def _inputs(program: ExportedProgram) -> list[fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _dynamic(program: ExportedProgram) -> dict[str, dict[int, Dim]]:
    """For each input, its symbolic axes as fresh dimensions; equal symbols share one."""
    dimensions: dict[str, Dim] = {}
    found: dict[str, dict[int, Dim]] = {}
    for node in _inputs(program):
        axes = {axis: str(side) for axis, side in enumerate(node.meta["val"].shape) if not isinstance(side, int)}
        for symbol in axes.values():
            dimensions.setdefault(symbol, Dim("batch" if not dimensions else f"axis_{len(dimensions)}"))
        found[node.name] = {axis: dimensions[symbol] for axis, symbol in axes.items()}
    return found


def _describe(program: ExportedProgram, module: fx.GraphModule) -> Graph:
    nodes = [node for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    shapes = {node.name: tuple(int(s) if isinstance(s, int) else 0 for s in node.meta["val"].shape[1:]) for node in nodes}
    result = next(node for node in module.graph.nodes if node.op == "output")
    outputs = tuple(node.name for node in pytree.tree_leaves(result.args) if isinstance(node, fx.Node))
    layers: list[Layer] = []
    movers: list[Mover] = []
    unsupported: list[Unsupported] = []
    absorbed: set[str] = set()
    for node in nodes:
        if node.op != "call_function" or node.name in absorbed:
            continue
        reason = _refusal(node)
        if node.target in LAYERS and not reason:
            layers.append(_layer(node, module, shapes, [layer.name for layer in layers], outputs))
            absorbed.update(_chain(node, outputs)[1])
        elif node.target in MOVERS and not reason:
            movers.append(Mover(node.name, MOVERS[node.target], node.args[0].name))
        else:
            inputs = tuple(source.name for source in node.all_input_nodes)
            operation = str(node.target).removeprefix("aten.")
            unsupported.append(Unsupported(node.name, operation, inputs, reason or "no 8-bit form in this version"))
    tensors = tuple(
        GraphTensor(node.name, shapes[node.name], tuple(user.name for user in node.users if user.op != "output"), node.name in outputs)
        for node in nodes
        if node.op != "get_attr" and node.meta["val"].is_floating_point()
    )
    inputs = _inputs(program)
    symbolic = {node.name: {axis: str(d.__name__) for axis, d in axes.items()} for node, axes in zip(inputs, _dynamic(program).values(), strict=True)}
    first = inputs[0].meta["val"].shape[0]
    fixed = int(first) if isinstance(first, int) else None
    return Graph(tuple(layers), tuple(movers), tuple(unsupported), tensors, tuple(n.name for n in inputs), outputs, symbolic, fixed)


def _refusal(node: fx.Node) -> str:
    """Why a layer or mover cannot be quantized as it stands; empty if it can."""
    tensors = [argument for argument in pytree.tree_leaves(node.args) if isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), Tensor)]
    if not node.meta["val"].is_floating_point():
        return "not a floating-point value"
    if node.target in (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.linear.default):
        return "" if tensors[1].op == "get_attr" else "its weight is computed, not a parameter"
    if node.target is ATEN.add.Tensor:
        if len(tensors) < 2 or any(argument.op == "get_attr" for argument in tensors):
            return "adds a constant"
        return "scaled addition" if node.kwargs.get("alpha", 1) != 1 else ""
    if node.target is ATEN.pad.default:
        mode, value = (*node.args[2:], *["constant", 0.0][len(node.args) - 2 :])[:2] if len(node.args) > 2 else ("constant", 0.0)
        return "" if mode == "constant" and not value else "pads with something other than zero"
    return ""


def _chain(node: fx.Node, outputs: tuple[str, ...]) -> tuple[fx.Node, list[str], list[str]]:
    """The last node of the activation functions that follow `node` and only it; their node names; their own names with bounds."""
    names: list[str] = []
    functions: list[str] = []
    while len(node.users) == 1 and node.name not in outputs:
        (user,) = node.users
        if user.target not in ACTIVATIONS:
            break
        kind = ACTIVATIONS[user.target]
        bounds = (0.0, 6.0) if user.target is ATEN.relu6.default else (*user.args[1:], *(None, None))[:2]
        functions.append(kind if kind == "relu" else f"clip:{bounds[0]}:{bounds[1]}")
        names.append(user.name)
        node = user
    return node, names, functions


def _layer(node: fx.Node, module: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]], taken: Sequence[str], outputs: tuple[str, ...]) -> Layer:
    kind = LAYERS[node.target]
    last, _, functions = _chain(node, outputs)
    weighted = kind in ("conv", "linear")
    weight = str(node.args[1].target) if weighted else None
    bias = str(node.args[2].target) if weighted and len(node.args) > 2 and node.args[2] is not None else None
    shape = tuple(module.get_parameter(weight).shape) if weight else ()
    reads = (node.args[0],) if weighted else pytree.tree_leaves(node.args)
    inputs = tuple(argument.name for argument in reads if isinstance(argument, fx.Node))
    groups = int(node.args[-1]) if kind == "conv" and len(node.args) > 6 else 1
    # (0 stands for a symbolic side, as of a token axis: macs are then for one position)
    macs = prod(side or 1 for side in shapes[node.name]) * prod(shape[1:]) if weighted else 0
    path = weight.rpartition(".")[0] if weight else ".".join(filter(None, (_module_path(node), kind)))
    name, count = path or kind, 1
    while name in taken:
        count += 1
        name = f"{path or kind}.{count}"
    return Layer(name, kind, node.name, last.name, inputs, tuple(functions), weight, bias, shape, 0, shapes[node.name], groups, macs)


def _module_path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and "empty_nn_module_stack" not in stack[-1][0] else ""
