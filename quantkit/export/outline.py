"""A decoder's graph without its weights, and files made of it: every matrix is a placeholder by name, filled by where its codes lie.

The outline is exported once; a plan's file takes a second, whatever the network weighs, as its weights are slices of files beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from quantkit.core.errors import CaptureError, ContractError
from quantkit.export.float_onnx import forget_traces
from quantkit.export.qdq import CONTRIBUTED, NOTE
from quantkit.network.capture import quiet

DOMAIN = "quantkit"  # of placeholders: in no file that ships
LINEAR, TABLE = "Linear", "Table"
ALIGNMENT = 4096  # bytes: tensors begin at pages, so that the runtime maps them
SCALARS: Mapping[str, ir.DataType] = {
    "uint8": ir.DataType.UINT8, "float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slice:
    """A tensor in a file beside the graph, by the file's name: `bytes` from `offset`, of one of SCALARS."""

    file: str
    offset: int
    bytes: int
    scalar: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix as MatMulNBits reads it: codes [outputs, blocks, bytes], scales [outputs, blocks], blocks of `size` inputs."""

    codes: Slice
    scale: Slice
    bits: int
    size: int
    accuracy_level: int


@dataclass(frozen=True, slots=True)
class Plain:
    """A matrix in float, [inputs, outputs]."""

    weight: Slice


@dataclass(frozen=True, slots=True)
class Rows:
    """A table of tokens, [tokens, width], as the checkpoint has it; rows become float32 where they are read."""

    table: Slice


Part = Blocks | Plain | Rows


class _Linear(nn.Module):
    def __init__(self, name: str, like: nn.Linear, bias: Tensor | None) -> None:
        super().__init__()
        self.name, self.outputs = name, like.out_features
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.outputs)
        made = torch.onnx.ops.symbolic(f"{DOMAIN}::{LINEAR}", (x,), {"layer": self.name}, dtype=x.dtype, shape=shape, version=1)
        return made if self.bias is None else made + self.bias


class _Table(nn.Module):
    def __init__(self, name: str, like: nn.Embedding) -> None:
        super().__init__()
        self.name, self.width = name, like.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        shape = (*ids.shape, self.width)
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{TABLE}", (ids,), {"layer": self.name}, dtype=torch.float32, shape=shape, version=1)


def hollow(network: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Put placeholders in for the network's linear layers and tables; what else is on the meta device, and biases, comes from `read`."""
    for name, module in list(network.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else read(f"{name}.bias")
            setattr(network.get_submodule(parent), leaf, _Linear(name, module, bias))
        elif isinstance(module, nn.Embedding):
            setattr(network.get_submodule(parent), leaf, _Table(name, module))
    left = {name: read(name) for name, value in network.named_parameters() if value.is_meta}
    network.load_state_dict(left, strict=False, assign=True)


def write_outline(
    module: nn.Module, example: Mapping[str, Tensor], dynamic: Mapping[str, Sequence[int]], outputs: Sequence[str], path: Path, opset: int
) -> None:
    """Export a hollow `module` to `path`. Inputs are called as in `example`, in its order; `dynamic` are their axes beside the first.

    Raises CaptureError where torch's exporter refuses it.
    """
    axes = [{0: Dim.AUTO, **dict.fromkeys(dynamic.get(name, ()), Dim.AUTO)} for name in example]
    several = len(axes) > 2 and (*axes[:2], tuple(axes[2:]))  # what stands behind the first two is taken as any number of tensors
    try:
        with quiet(), torch.no_grad():
            program = export(module, tuple(example.values()), dynamic_shapes=several or tuple(axes), strict=False)
            written = torch.onnx.export(program, dynamo=True, opset_version=opset, optimize=True, verbose=False)
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        raise CaptureError(f"torch refuses the network: {str(error).splitlines()[0][:300]}", "what it can write", "replace it") from error
    assert written is not None
    graph = written.model.graph
    for value, name in zip([*graph.inputs, *graph.outputs], [*example, *outputs], strict=True):
        value.name = name
    forget_traces(graph)
    ir.external_data.load_to_model(written.model)
    ir.save(written.model, path)


def fill(outline: Path, parts: Mapping[str, Part], path: Path) -> None:
    """Write the file to `path` (the caller renames): the placeholders of `outline` become what `parts` say of their layers, by name.

    The node of a layer is called `node_` and its name. The files of the slices are neither read nor looked for.
    """
    model = ir.load(outline)
    graph = model.graph
    graph.opset_imports[CONTRIBUTED] = 1
    graph.opset_imports.pop(DOMAIN, None)
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        name = node.attributes["layer"].as_string()
        if name not in parts:
            raise ContractError(f"the plan says nothing of {name}", "a part for each placeholder")
        (source,), (old,) = node.inputs, node.outputs
        assert source is not None
        made = _nodes(graph, name, parts[name], source)
        made[-1].name = f"node_{name}"
        graph.insert_before(node, made)
        fresh, kept = made[-1].outputs[0], str(old.name)
        fresh.shape, fresh.type = old.shape, old.type
        old.name = f"{kept}_placeholder"
        fresh.name = kept
        old.replace_all_uses_with(fresh, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    model.metadata_props["quantkit"] = NOTE
    ir.save(model, path)


def laid(parts: Mapping[str, Part], name: str) -> dict[str, Part]:
    """The parts as `gather` lays them into a file of that name: in order, each where a page begins, none twice."""
    places, end = dict[Slice, Slice](), 0
    for one in slices(parts.values()):
        start = end + -end % ALIGNMENT
        places[one], end = replace(one, file=name, offset=start), start + one.bytes
    return {layer: _placed(part, places.__getitem__) for layer, part in parts.items()}


def gather(parts: Mapping[str, Part], folder: Path, path: Path) -> dict[str, Part]:
    """Copy all slices from files of `folder` into one file at `path`, a few MB at a time; the parts as they then lie."""
    placed = laid(parts, path.name)
    with path.open("wb") as file:
        for one, to in zip(slices(parts.values()), slices(placed.values()), strict=True):
            file.write(b"\0" * (to.offset - file.tell()))
            with (folder / one.file).open("rb") as source:
                source.seek(one.offset)
                _copy(source, file, one.bytes)
    return placed


def read_products(path: Path) -> dict[str, tuple[int, int]]:
    """Bits and accuracy level of every MatMulNBits in a file, by its node's name; of its graph alone."""
    nodes = [node for node in ir.load(path).graph if node.op_type == "MatMulNBits"]
    return {str(node.name): (node.attributes["bits"].as_int(), node.attributes["accuracy_level"].as_int()) for node in nodes}


def _copy(source: Any, file: Any, count: int) -> None:
    """From one open file to another, a few MB at a time. Raises ContractError where the source ends before."""
    left, step = count, 1 << 24
    while left:
        content = source.read(min(step, left))
        if not content:
            raise ContractError(f"{source.name} ends {left} bytes early", "the codes that were written", "remove the run's folder")
        file.write(content)
        left -= len(content)


def slices(parts: Iterable[Part]) -> list[Slice]:
    """All of them, each once."""
    found: dict[Slice, None] = {}

    def note(one: Slice) -> Slice:
        found[one] = None
        return one

    for part in parts:
        _placed(part, note)
    return list(found)


def _placed(part: Part, place: Callable[[Slice], Slice]) -> Part:
    if isinstance(part, Blocks):
        return replace(part, codes=place(part.codes), scale=place(part.scale))
    return Plain(place(part.weight)) if isinstance(part, Plain) else Rows(place(part.table))


def _nodes(graph: ir.Graph, name: str, part: Part, source: ir.Value) -> list[ir.Node]:
    """What runs in the place of a placeholder."""
    if isinstance(part, Rows):
        rows = ir.node("Gather", [_stored(graph, f"{name}.weight", part.table), source], name=f"node_{name}_rows")
        if part.table.scalar == "float32":
            return [rows]
        rows.outputs[0].name = f"{name}_rows"
        return [rows, ir.node("Cast", [rows.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})]
    if isinstance(part, Plain):
        return [ir.node("MatMul", [source, _stored(graph, f"{name}.weight", part.weight)])]
    outputs, blocks, _ = part.codes.shape
    inputs = [source, *(_stored(graph, f"{name}.{kind}", one) for kind, one in (("codes", part.codes), ("scale", part.scale)))]
    attributes = {"K": blocks * part.size, "N": outputs, "bits": part.bits, "block_size": part.size, "accuracy_level": part.accuracy_level}
    return [ir.node("MatMulNBits", inputs, attributes=attributes, domain=CONTRIBUTED)]


def _stored(graph: ir.Graph, name: str, one: Slice) -> ir.Value:
    tensor = ir.ExternalTensor(
        one.file, one.offset, one.bytes, SCALARS[one.scalar], shape=ir.Shape(one.shape), name=name, base_dir=""
    )  # fmt: skip
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(one.shape), type=ir.TensorType(SCALARS[one.scalar]))
    graph.register_initializer(value)
    return value
