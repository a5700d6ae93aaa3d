"""What really runs: the runtime's optimised graph read back and mapped to layers by the names of their nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from quantkit.graph import Graph
from quantkit.targets.placement import Placement

Precision = Literal["int8", "float"]
INTEGER = re.compile(r"QLinear\w+|QGemm|MatMulInteger\w*|ConvInteger|QAttention")
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "conv": ("Conv", "FusedConv", "QLinearConv", "ConvInteger"),
    "linear": ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"),
    "add": ("Add", "QLinearAdd", "Conv", "FusedConv"),
    "concat": ("Concat", "QLinearConcat"),
}
# The runtime's passes rename what they move: node_conv2d_5_token_50, relu_7_nchwc, conv2d_pre_q; _product is our own.
SUFFIX = re.compile(r"(_token_\d+|_nchwc|_product|_pre_q|/\w+Fusion\S*|_quant|_QuantizeLinear)+$")


@dataclass(frozen=True, slots=True)
class Executed:
    """`precisions` by layer name; `mismatches` name what did not run as planned."""

    precisions: Mapping[str, Precision]
    mismatches: tuple[str, ...]


def owners(graph: Graph) -> dict[str, str]:
    """Layer names by every name that a node of the optimised graph may carry for them."""
    names: dict[str, str] = {}
    for layer in graph.layers:
        for name in (layer.node, layer.output):
            names.setdefault(name, layer.name)
            names.setdefault(f"node_{name}", layer.name)
    return names


def plain(name: str) -> str:
    """A node's name without what the runtime's layout passes append."""
    return SUFFIX.sub("", name)


def read_executed(optimized: Path, graph: Graph, placement: Placement) -> Executed:
    """Compare the optimised graph with the placement. A layer whose node is gone is a mismatch, save an Add fused into its Conv."""
    found = _kinds(optimized, graph)
    precisions: dict[str, Precision] = {}
    mismatches = []
    for layer in graph.layers:
        planned: Precision = "int8" if layer.name in placement.int8 else "float"
        kind = found.get(layer.name)
        if kind is None and layer.kind == "add" and planned == "float":
            kind = "Conv"  # a float Add disappears into the convolution in front of it
        if kind is None:
            mismatches.append(f"{layer.name}: planned {planned}, not found in the runtime's graph")
            continue
        ran: Precision = "int8" if INTEGER.fullmatch(kind) else "float"
        precisions[layer.name] = ran
        if ran != planned:
            mismatches.append(f"{layer.name}: planned {planned}, ran {ran} ({kind})")
    return Executed(precisions, tuple(mismatches))


def _kinds(optimized: Path, graph: Graph) -> dict[str, str]:
    """The operation type that runs for each layer, by layer name; under its own names before those of what it may have taken in."""
    nodes = list(onnx.load(optimized, load_external_data=False).graph.node)
    layers = {layer.name: layer for layer in graph.layers}
    found: dict[str, str] = {}
    for names in (owners(graph), taken_in(graph)):
        for node in nodes:
            candidates = [plain(node.name), *(plain(output) for output in node.output)]
            owner = next((names[name] for name in candidates if name in names), None)
            if owner and node.op_type in OPERATIONS[layers[owner].kind]:
                found.setdefault(owner, node.op_type)
    return found


def taken_in(graph: Graph) -> dict[str, str]:
    """Layer names by what only they feed: a float layer takes in a LeakyRelu, an added constant, or a batch norm that could not be folded.

    It is then named after that. An operation of several results has no tensor of its own; its first result stands for it.
    """
    unsupported = {entry.node for entry in graph.unsupported}
    tensors = {tensor.name: tensor for tensor in graph.tensors}
    results = {entry.inputs[0]: entry.node for entry in reversed(graph.unsupported) if entry.inputs and entry.inputs[0] not in tensors}
    names: dict[str, str] = {}
    for layer in graph.layers:
        tensor = tensors.get(layer.output)
        while tensor is not None and not tensor.is_output and len(tensor.consumers) == 1:
            behind = results.get(tensor.consumers[0], tensor.consumers[0])
            if behind not in unsupported:
                break
            names.setdefault(behind, layer.name)
            tensor = tensors.get(behind)
    return names
