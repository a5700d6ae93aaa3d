"""A network → its canonical graph: exported, functional, batch norm folded, its names a fixed point.

export → decompose → unlift → fold batch norm, merge what is computed twice → export again → decompose. After the second export
the names no longer move: the ONNX exporter and a .pt2 round trip keep them. Plans are made on this graph only.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.utils import _pytree as pytree

from quantkit.core.errors import CaptureError, DataError
from quantkit.core.graph import EMBEDDING, Graph, Layer, Mover, Unsupported
from quantkit.core.graph import Tensor as GraphTensor
from quantkit.network.captured import Captured
from quantkit.network.folding import ATEN, CLIPS, bounds, fold_batch_norm, operand
from quantkit.network.normalize import simplify, spell_weighted
from quantkit.network.operations import LAYERS, MOVERS, WEIGHTED, has_values, operation_name, read_tensors, refusal

# Written out before planning: the exporter loses their names.
# As the ONNX exporter spells them, so that a value has one name here and in the file.
DECOMPOSED = (
    ATEN.adaptive_avg_pool2d.default, ATEN.adaptive_avg_pool1d.default, ATEN.diff.default, ATEN.conv_transpose1d.default,
    ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input,
)  # fmt: skip
# Operations that still learn, and the place of their `training` argument.
TRAINING: Mapping[object, int] = {
    ATEN.batch_norm.default: 5,
    ATEN._native_batch_norm_legit.default: 5,
    ATEN.native_batch_norm.default: 5,
    ATEN.dropout.default: 2,
}
EXAMPLE_BATCH = 2  # a batch of 1 would be specialised
LOGGERS = ("torch", "torch.onnx", "onnxscript", "onnx_ir")


def capture(
    model: nn.Module | ExportedProgram,
    example: Mapping[str, Tensor] | Sequence[Tensor],
    dynamic: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] = (),
) -> Captured:
    """The canonical graph of `model`, which is left as it was; its outputs under these names, as far as no other value has them.

    `example` holds the inputs, batch axis first, by name or in order; only shapes and dtypes matter. The batch becomes a symbol, and so do
    the `dynamic` axes of an input, unless `model` is a program, whose own symbols are kept. Raises CaptureError
    with torch.export's reason in one line.
    """
    first = _first(model, example, dynamic or {})
    unlifted = _unlift(first)
    spell_weighted(unlifted)
    folded = fold_batch_norm(unlifted)
    simplify(folded)
    second = _decompose(_export_again(folded, first, example))
    _name_outputs(second, outputs)
    module = _unlift(second)
    return Captured(second, module, _describe(second, module))


def capture_again(module: fx.GraphModule, captured: Captured) -> Captured:
    """The canonical graph of `module`, which is that of `captured` with other values in its parameters; names stay as they are."""
    program = _decompose(_export_again(module, captured.program, ()))
    _name_outputs(program, captured.graph.outputs)
    again = _unlift(program)
    return Captured(program, again, _describe(program, again))


def restore(program: ExportedProgram, graph: Graph) -> Captured:
    """What was captured, of its stored program and its graph."""
    return Captured(program, _unlift(program), graph)


def unfolded(model: nn.Module | ExportedProgram, example: Mapping[str, Tensor] | Sequence[Tensor]) -> fx.GraphModule:
    """The functional graph of `model` with its batch norms as they are. Raises CaptureError as `capture`."""
    return _unlift(_first(model, example, {}))


def _name_outputs(program: ExportedProgram, names: Sequence[str]) -> None:
    """An output that is an input too, or comes out twice, keeps its name."""
    leaves = [node for node in pytree.tree_leaves(program.graph.output_node().args) if isinstance(node, fx.Node)]
    taken = {node.name for node in program.graph.nodes}
    for node, name in zip(leaves, names, strict=False):
        if node.op == "call_function" and name.isidentifier() and name not in taken and leaves.count(node) == 1:
            program.graph_signature.replace_all_uses(node.name, name)
            taken.add(name)
            node.name = name


def _first(
    model: nn.Module | ExportedProgram, example: Mapping[str, Tensor] | Sequence[Tensor], dynamic: Mapping[str, Sequence[int]]
) -> ExportedProgram:
    program = model if isinstance(model, ExportedProgram) else _export(model, example, dynamic)
    if any(_trains(node) for node in program.graph.nodes):
        raise CaptureError("the archive was exported in training mode", "an inference graph", "call model.eval() before exporting")
    return _decompose(program)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's exporters report on stdout and by logging; both would end among our results."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _export(
    model: nn.Module, example: Mapping[str, Tensor] | Sequence[Tensor], dynamic: Mapping[str, Sequence[int]]
) -> ExportedProgram:
    inputs = _enlarged(example)
    by_name = takes_names(model, inputs)
    # AUTO: one size may be the sum of two others, as a mask's over the cache and the new tokens.
    axes = [{0: Dim("batch"), **dict.fromkeys(dynamic.get(name, ()), Dim.AUTO)} for name in inputs]
    return _run_export(model, () if by_name else tuple(inputs.values()), inputs if by_name else {}, axes)


def takes_names(model: nn.Module, inputs: Iterable[str]) -> bool:
    """Whether `forward` is called with the inputs by name, and not in order, as where it takes any number of them."""
    takes = inspect.signature(model.forward).parameters
    if any(kind.kind is kind.VAR_POSITIONAL for kind in takes.values()):
        return False
    return any(name in takes for name in inputs) or any(kind.kind is kind.VAR_KEYWORD for kind in takes.values())


def _export_again(module: fx.GraphModule, program: ExportedProgram, example: Mapping[str, Tensor] | Sequence[Tensor]) -> ExportedProgram:
    """Export what was made of `program`, its inputs in order and its outputs flat.

    Symbolic axes stay symbolic, with the bounds that the network sets.
    """
    leaves = pytree.tree_leaves(program.example_inputs or tuple(_enlarged(example).values()))
    found = [node for node in pytree.tree_leaves(module.graph.output_node().args) if isinstance(node, fx.Node)]
    module.graph.output_node().args = (found[0] if len(found) == 1 else tuple(found),)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    return _run_export(module, tuple(leaves), {}, [dict.fromkeys(axes, Dim.AUTO) for axes in _symbols(program).values()])


def _enlarged(example: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    named = dict(example) if isinstance(example, Mapping) else {str(place): value for place, value in enumerate(example)}
    return {name: torch.cat([value[:1]] * EXAMPLE_BATCH) for name, value in named.items()}


def _run_export(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], symbolic: Sequence[Mapping[int, Any]]
) -> ExportedProgram:
    """torch.export; `symbolic` gives the dynamic axes of each input tensor, in order."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    tensors = [leaf for leaf in pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
    for tensor, axes in zip(tensors, symbolic, strict=True):
        shapes[tensor] = dict(axes)
    try:
        with quiet():
            return export(model, arguments, keywords, dynamic_shapes=shapes, strict=False)
    except (
        torch._dynamo.exc.TorchDynamoException,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        wanted = "no control flow that depends on data, and inputs like the example's"
        raise CaptureError(f"torch.export refuses {_culprit(error)}: {reason[:300]}", wanted, "rewrite what it names") from error


def _culprit(error: BaseException) -> str:
    """The model's own line at which `error` arose, as far as Python knows it."""
    torchs = Path(torch.__file__).parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "forward"]
    frames = [frame for frame in frames if torchs not in Path(frame.filename).parents and frame.line]
    return f"`{frames[-1].line}` ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "the network"


def _decompose(program: ExportedProgram) -> ExportedProgram:
    table = torch.export.default_decompositions()
    wanted = {operation: table[operation] for operation in DECOMPOSED if operation in table}
    with quiet():
        decomposed: ExportedProgram = program.run_decompositions(wanted)
    return decomposed


def _unlift(program: ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    taken = {node.name for node in module.graph.nodes}
    for node in module.graph.nodes:  # fx calls an input `input_1` that is named as a builtin is; the program, and so the file, do not
        if node.op == "placeholder" and str(node.target) not in taken:
            node.name = str(node.target)
    return module


def _trains(node: fx.Node) -> bool:
    """Whether the node is a batch norm or dropout that still learns."""
    place = TRAINING.get(node.target)
    return node.kwargs.get("training") is True or (place is not None and len(node.args) > place and node.args[place] is True)


def check_inputs(captured: Captured, inputs: Mapping[str, Tensor]) -> None:
    """Raises DataError where a batch's dtype, or a side other than the batch's, is not what the network was captured with."""
    check_program_inputs(captured.program, inputs)


def check_program_inputs(program: ExportedProgram, inputs: Mapping[str, Tensor]) -> None:
    """As `check_inputs`, for a program as torch.export made it."""
    for node in inputs_of(program):
        wanted, got = node.meta["val"], inputs[node.name]
        sides = [side if isinstance(side, int) else "*" for side in wanted.shape[1:]]
        fits = len(sides) == got.dim() - 1 and all(side in ("*", have) for side, have in zip(sides, got.shape[1:], strict=True))
        if not fits or got.dtype != wanted.dtype:
            have = f"input {node.name!r} of shape {list(got.shape[1:])} and type {_dtype(got)} for each item"
            raise DataError(have, f"{sides} and {_dtype(wanted)}", "correct the data, or its --resize, --crop and --scale")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def inputs_of(program: ExportedProgram) -> list[fx.Node]:
    """The nodes of the tensors that the program takes, in their order."""
    names = set(program.graph_signature.user_inputs)
    found = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [node for node in found if isinstance(node.meta.get("val"), Tensor)]


def _symbols(program: ExportedProgram) -> dict[str, dict[int, str]]:
    """The symbolic axes of each input: the batch is `batch`, others `axis_1`, …; equal symbols have equal names."""
    names: dict[str, str] = {}
    found: dict[str, dict[int, str]] = {}
    for node in inputs_of(program):
        sides = {axis: str(side) for axis, side in enumerate(node.meta["val"].shape) if not isinstance(side, int)}
        for axis, symbol in sides.items():
            names.setdefault(symbol, "batch" if axis == 0 else f"axis_{sum(name != 'batch' for name in names.values()) + 1}")
        found[node.name] = {axis: names[symbol] for axis, symbol in sides.items()}
    return found


def _describe(program: ExportedProgram, module: fx.GraphModule) -> Graph:
    nodes = [node for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    shapes = {node.name: tuple(int(s) if isinstance(s, int) else 0 for s in node.meta["val"].shape[1:]) for node in nodes}
    outputs = tuple(node.name for node in pytree.tree_leaves(module.graph.output_node().args) if isinstance(node, fx.Node))
    flowing = _flowing(module)
    inputs = inputs_of(program)
    batch = str(inputs[0].meta["val"].shape[0]) if inputs else ""
    layers: dict[str, Layer] = {}
    movers: list[Mover] = []
    unsupported: list[Unsupported] = []
    absorbed: set[str] = set()
    for node in nodes:
        if node.op != "call_function" or node.name in absorbed:
            continue
        target = node.target
        reason = refusal(node, module, flowing)
        source = operand(node, 0)
        if reason and node not in flowing:  # a constant, such as the state that a recurrent layer begins with
            continue
        if reason:
            reads = tuple(read.name for read in node.all_input_nodes)
            unsupported.append(Unsupported(node.name, operation_name(node), reads, reason))
        elif target in LAYERS:
            behind = _activations(node, outputs)
            layer = _layer(node, behind, module, shapes, layers, batch)
            layers[layer.name] = layer
            absorbed.update(user.name for user in behind)
        elif source is not None:
            movers.append(Mover(node.name, MOVERS[target], source.name))
    tensors = tuple(
        GraphTensor(node.name, shapes[node.name], tuple(user.name for user in node.users if user.op != "output"), node.name in outputs)
        for node in nodes
        if node.op != "get_attr" and node.meta["val"].is_floating_point()
    )
    first = inputs[0].meta["val"].shape[0] if inputs else 1
    fixed = first if isinstance(first, int) else None
    names = tuple(node.name for node in inputs)
    return Graph(tuple(layers.values()), tuple(movers), tuple(unsupported), tensors, names, outputs, _symbols(program), fixed)


def _flowing(module: fx.GraphModule) -> set[fx.Node]:
    """The tensors that depend on the network's inputs; the others are constants, even where they are computed."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(source in found and has_values(source) for source in node.all_input_nodes):
            found.add(node)
    return found


def _activations(node: fx.Node, outputs: tuple[str, ...]) -> list[fx.Node]:
    """The activation functions behind `node` and only it whose lowest value is 0: a quantizer with its lowest code there absorbs them."""
    behind: list[fx.Node] = []
    while len(node.users) == 1 and node.name not in outputs:
        (user,) = node.users
        if user.target is not ATEN.relu.default and not (user.target in CLIPS and _clips_at_zero(user)):
            break
        behind.append(user)
        node = user
    return behind


def _clips_at_zero(node: fx.Node) -> bool:
    low, high = bounds(node)
    return low == 0 and (high is None or high > 0)


def _layer(
    node: fx.Node,
    behind: Sequence[fx.Node],
    module: fx.GraphModule,
    shapes: Mapping[str, tuple[int, ...]],
    taken: Mapping[str, Layer],
    batch: str,
) -> Layer:
    kind = LAYERS[node.target]
    weight, bias = (operand(node, place) if kind in WEIGHTED else None for place in (1, 2))
    weight = operand(node, 0) if kind == EMBEDDING else weight
    shape = tuple(module.get_parameter(str(weight.target)).shape) if weight is not None else ()
    functions = tuple("relu" if user.target is ATEN.relu.default else "clip:{}:{}".format(*bounds(user)) for user in behind)
    path = str(weight.target).rpartition(".")[0] if weight is not None else ".".join(filter(None, (_module_path(node), kind)))
    name, count = path or kind, 1
    while name in taken:
        count += 1
        name = f"{path or kind}.{count}"
    return Layer(
        name,
        kind,
        node.name,
        behind[-1].name if behind else node.name,
        () if kind == EMBEDDING else tuple(source.name for source in read_tensors(node)[: 1 if kind in WEIGHTED else None]),
        functions,
        str(weight.target) if weight is not None else None,
        str(bias.target) if bias is not None else None,
        shape,
        output_shape=shapes[node.name],
        groups=cast("int", node.args[6]) if kind == "conv" and len(node.args) > 6 else 1,
        # 0 stands for a symbolic side, as of a token axis: macs are then for one position.
        macs=prod(side or 1 for side in shapes[node.name]) * prod(shape[1:]) if kind in WEIGHTED else 0,
        item_first=str(node.meta["val"].shape[0]) == batch if node.meta["val"].dim() else False,
    )


def _module_path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and "empty_nn_module_stack" not in stack[-1][0] else ""
