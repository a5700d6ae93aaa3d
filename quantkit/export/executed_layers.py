"""What really runs: the runtime's optimised graph read back and mapped to layers by the names of their nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from quantkit.core.graph import Graph
from quantkit.targets.placement import Placement

Precision = Literal["int8", "float"]
IN_BLOCKS = "MatMulNBits of integers"  # accuracy level 4; below it computes in float
INTEGER = re.compile(rf"QLinear\w+|QGemm|MatMulInteger\w*|DynamicQuantizeMatMul|ConvInteger|QAttention|{IN_BLOCKS}")
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "conv": ("Conv", "FusedConv", "QLinearConv", "ConvInteger"),
    "linear": (
        "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
        "MatMulNBits",
    ),
    "embedding": ("Gather", "Mul"),
    "add": ("Add", "Sum", "QLinearAdd", "Conv", "FusedConv"),
    "concat": ("Concat", "QLinearConcat"),
    "mul": ("Mul", "QLinearMul", "QuickGelu"),
    "sigmoid": ("Sigmoid", "QLinearSigmoid"),
    "leaky_relu": ("LeakyRelu", "QLinearLeakyRelu"),
    "avg_pool": ("AveragePool", "QLinearAveragePool"),
    "global_pool": ("ReduceMean", "GlobalAveragePool", "QLinearGlobalAveragePool"),
}  # fmt: skip
TAKEN_IN = ("add", "sigmoid", "leaky_relu")  # a float kernel in front may take these in (a SiLU's product takes its sigmoid in)
GONE = (*TAKEN_IN, "mul")  # of these nothing may be left in float: the runtime has kernels for GELU and norms that are spelt out
# The runtime's passes rename what they move: node_conv2d_5_token_50, relu_7_nchwc, conv2d_pre_q; _product is our own.
PREFIX = "fused "
SUFFIX = re.compile(r"(_token_\d+|_nchwc|_product|_sums|_call|_pre_q|/\w+Fusion\S*|_quant|_QuantizeLinear)+$")


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
    """A node's name without what the runtime's passes put in front of it and behind."""
    return SUFFIX.sub("", name).removeprefix(PREFIX)


def find_owner(graph: Graph) -> Callable[[str, str], str | None]:
    """Who a node of the optimised graph runs for, by its operation and its name or that of a result: the layer's name, None if nobody's.

    A kernel that has taken in what stands behind it may be named after that.
    """
    kinds = {layer.name: layer.kind for layer in graph.layers}
    own, taken = owners(graph), taken_in(graph)

    def find(operation: str, name: str) -> str | None:
        name = plain(name)
        found = (names.get(name) for names in (own, taken))
        return next((owner for owner in found if owner and operation in OPERATIONS[kinds[owner]]), own.get(name))

    return find


def read_executed(optimized: Path, graph: Graph, placement: Placement) -> Executed:
    """Compare the optimised graph with the placement. A layer whose node is gone is a mismatch, save one of GONE in float."""
    found = _kinds(optimized, graph)
    precisions: dict[str, Precision] = {}
    mismatches = []
    for layer in graph.layers:
        planned: Precision = "int8" if layer.name in placement.int8 else "float"
        kind = found.get(layer.name)
        if kind is None and layer.kind in GONE and planned == "float":
            kind = "Conv"
        if kind is None:
            mismatches.append(f"{layer.name}: planned {planned}, not found in the runtime's graph")
            continue
        ran: Precision = "int8" if INTEGER.fullmatch(kind) else "float"
        precisions[layer.name] = ran
        if ran != planned:
            mismatches.append(f"{layer.name}: planned {planned}, ran {ran} ({kind})")
    return Executed(precisions, tuple(mismatches))


def _kinds(optimized: Path, graph: Graph) -> dict[str, str]:
    """The operation type that runs for each layer, by layer name."""
    owner, kinds = find_owner(graph), {layer.name: layer.kind for layer in graph.layers}
    found: dict[str, str] = {}
    for node in onnx.load(optimized, load_external_data=False).graph.node:
        for name in (owner(node.op_type, called) for called in (node.name, *node.output)):
            if name and node.op_type in OPERATIONS[kinds[name]]:
                found.setdefault(name, IN_BLOCKS if _adds_integers(node) else node.op_type)
                break
    return found


def computes_in_integers(node: onnx.NodeProto) -> bool:
    """Whether the kernel of a node in an optimised graph multiplies integers."""
    return bool(INTEGER.fullmatch(IN_BLOCKS if _adds_integers(node) else node.op_type))


def _adds_integers(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMulNBits" and any(entry.name == "accuracy_level" and entry.i == 4 for entry in node.attribute)


def taken_in(graph: Graph) -> dict[str, str]:
    """Layer names by what only they feed: a float layer takes in a LeakyRelu, an added constant, or a batch norm that could not be folded.

    It is then named after that. An operation of several results has no tensor of its own; its first result stands for it.
    """
    absorbed = {entry.node for entry in graph.unsupported} | {layer.node for layer in graph.layers if layer.kind in TAKEN_IN}
    tensors = {tensor.name: tensor for tensor in graph.tensors}
    results = {entry.inputs[0]: entry.node for entry in reversed(graph.unsupported) if entry.inputs and entry.inputs[0] not in tensors}
    names: dict[str, str] = {}
    for layer in graph.layers:
        tensor = tensors.get(layer.output)
        while tensor is not None and not tensor.is_output and len(tensor.consumers) == 1:
            behind = results.get(tensor.consumers[0], tensor.consumers[0])
            if behind not in absorbed:
                break
            names.setdefault(behind, layer.name)
            tensor = tensors.get(behind)
    return names
