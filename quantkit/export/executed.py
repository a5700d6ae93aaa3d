"""What really runs: the runtime's optimised graph read back and mapped to layers by the names of their nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from quantkit.graph import Graph, Layer
from quantkit.targets.placement import Placement

Precision = Literal["int8", "float"]
INTEGER = re.compile(r"QLinear\w+|QGemm|MatMulInteger\w*|ConvInteger|QAttention")
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "conv": ("Conv", "FusedConv", "QLinearConv", "ConvInteger"),
    "linear": ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"),
    "add": ("Add", "QLinearAdd", "Conv", "FusedConv"),
    "concat": ("Concat", "QLinearConcat"),
}
# The layout passes rename what they move: node_conv2d_5_token_50, relu_7_nchwc.
SUFFIX = re.compile(r"(_token_\d+|_nchwc|/MatMulAddFusion\S*|_quant|_QuantizeLinear)+$")


@dataclass(frozen=True, slots=True)
class Executed:
    """`precisions` by layer name; `mismatches` name what did not run as planned."""

    precisions: Mapping[str, Precision]
    mismatches: tuple[str, ...]


def owners(graph: Graph) -> dict[str, str]:
    """Layer names by every name that a node of the optimised graph may carry for them."""
    names: dict[str, str] = {}
    for layer in graph.layers:
        for name in (layer.node, layer.output, f"node_{layer.node}", f"node_{layer.output}"):
            names.setdefault(name, layer.name)
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
        planned: Precision = "int8" if layer.name in placement.schemes else "float"
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
    names = owners(graph)
    layers = {layer.name: layer for layer in graph.layers}
    found: dict[str, str] = {}
    for node in onnx.load(optimized, load_external_data=False).graph.node:
        owner = names.get(plain(node.name)) or next((names[plain(out)] for out in node.output if plain(out) in names), None)
        if owner and _computes(node.op_type, layers[owner]):
            found[owner] = node.op_type
    return found


def _computes(operation: str, layer: Layer) -> bool:
    return operation in OPERATIONS[layer.kind]
