"""What stands behind an operator that is not translated: it stays as it is in the user's file, and in float.

A detector's `NonMaxSuppression`, a `Loop` over what was found: such ends read boxes and scores. The network is what comes before them; its
outputs are what they read, and its answers are judged there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx
import onnx
from onnx import TensorProto

from quantkit.loading.from_onnx.operators import OPERATORS

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """The `nodes` of a file behind its network, the constants that they read, and the outputs of the whole."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    opset: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its operators that are not translated, and what branches on data."""
        return tuple(sorted({node.op_type for node in self.nodes if node.op_type == "If" or not is_translated(node)}))


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """The user's own file: what its inputs are called there, by their names in the network; what the network's outputs are called there, in
    order; and what of it stays behind the network as it is.
    """

    path: Path
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    rest: Rest | None


def is_translated(node: onnx.NodeProto) -> bool:
    """Whether the operator has a form in torch; an `If` may have one, if all that its branches hold has."""
    if node.op_type == "If":
        return all(is_translated(inner) for attribute in node.attribute for inner in attribute.g.node)
    return node.op_type in OPERATORS or node.op_type == "Constant"


def cut(model: onnx.ModelProto, undecided: Sequence[str]) -> tuple[onnx.ModelProto, Rest | None]:
    """The model up to what cannot be translated, and the rest; the whole and None where all can be, or where no weight is before it.

    `undecided` are outputs of `If` whose branch only data decide.
    """
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    behind, tainted = list[onnx.NodeProto](), set[str]()
    for node in graph.node:
        if not is_translated(node) or not set(undecided).isdisjoint(node.output) or tainted.intersection(reads_of(node)):
            behind.append(node)
            tainted.update(name for name in node.output if name)
    before = [node for node in graph.node if not tainted.intersection(node.output)]
    if not behind or not any(node.op_type in WEIGHTED for node in before):
        return model, None
    makers = {name: node for node in before for name in node.output if name}
    floats = _floats(model) - _constants(before, stored)
    given = {value.name for value in graph.input} - stored
    fewest = _fewest(before, {name for node in behind for name in reads_of(node)}, floats)
    nodes, read = _with_makers(behind, makers, fewest)
    own = [name for node in before for name in node.output if name in read or name in {value.name for value in graph.output}]
    held = [tensor for tensor in graph.initializer if tensor.name in read]
    order = {id(node): place for place, node in enumerate(graph.node)}
    nodes.sort(key=lambda node: order[id(node)])
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    rest = Rest(tuple(nodes), tuple(held), tuple(graph.output), opset)
    head = onnx.ModelProto()
    head.CopyFrom(model)
    del head.graph.node[:], head.graph.output[:]
    head.graph.node.extend(before)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    head.graph.output.extend(known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in own)
    assert not read - {*own, *given, *stored, *(name for node in nodes for name in node.output)}
    return head, rest


def reads_of(node: onnx.NodeProto) -> Iterator[str]:
    """Names of values that the node reads, those in its subgraphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.g.node or attribute.graphs else ():
            own = {value.name for value in (*graph.input, *graph.initializer)} | {name for inner in graph.node for name in inner.output}
            yield from (name for inner in graph.node for name in reads_of(inner) if name not in own)
            yield from (value.name for value in graph.output if value.name not in own)


def renamed(node: onnx.NodeProto, name_of: Callable[[str], str]) -> onnx.NodeProto:
    """A copy with the names of values changed, in its subgraphs too."""
    found = onnx.NodeProto()
    found.CopyFrom(node)
    _rename(found, name_of)
    return found


def _rename(node: onnx.NodeProto, name_of: Callable[[str], str]) -> None:
    node.input[:] = [name_of(name) for name in node.input]
    node.output[:] = [name_of(name) for name in node.output]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.g.node or attribute.graphs else ():
            for inner in graph.node:
                _rename(inner, name_of)
            for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
                value.name = name_of(value.name)


def _constants(nodes: Sequence[onnx.NodeProto], stored: set[str]) -> set[str]:
    """What follows from constants alone."""
    found = set(stored)
    for node in nodes:
        if found.issuperset(reads_of(node)):
            found.update(node.output)
    return found


def _floats(model: onnx.ModelProto) -> set[str]:
    """Values that shape inference knows to be floats."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name for value in values if value.type.tensor_type.elem_type in FLOATS}


def _fewest(before: Sequence[onnx.NodeProto], wanted: set[str], floats: set[str]) -> set[str]:
    """The fewest float values behind all layers with weights from which `wanted` follow; of equally few those that are nearest to them.

    A detector's ends read the scores of each class by themselves; the network's output is the tensor that they are cut from.
    """
    graph, source, sink = networkx.DiGraph(), "weights", "the rest"
    for node in before:
        for name in filter(None, node.output):
            graph.add_edge((name, "in"), (name, "out"), **({"capacity": 1} if name in floats else {}))
            graph.add_edges_from(((read, "out"), (name, "in")) for read in reads_of(node))
            if node.op_type in WEIGHTED:
                graph.add_edge(source, (name, "in"))
    graph.add_edges_from(((name, "out"), sink) for name in wanted)
    if source not in graph or not networkx.has_path(graph, source, sink):
        return floats
    _, (behind_weights, _) = networkx.minimum_cut(graph, source, sink)  # networkx gives the cut that is nearest to the sink
    return {name for name in floats if (name, "in") in behind_weights and (name, "out") not in behind_weights}


def _with_makers(
    behind: Sequence[onnx.NodeProto], makers: Mapping[str, onnx.NodeProto], made_before: set[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes with those before them that make what is not `made_before`, such as shapes; and all names that they read."""
    nodes, read = list(behind), set[str]()
    have = {id(node) for node in nodes}
    for node in nodes:  # grows
        for name in reads_of(node):
            read.add(name)
            maker = makers.get(name)
            if maker is not None and name not in made_before and id(maker) not in have:
                have.add(id(maker))
                nodes.append(maker)
    made = {name for node in nodes for name in node.output}
    return nodes, {name for name in read if name not in made}
