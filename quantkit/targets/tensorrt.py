"""Target `tensorrt`: explicit Q/DQ as NVIDIA's builder wants it (10.x and later, strongly typed).

What is not quantized computes in half, in the graph itself: fp16 is what stays of float, and fp32 keeps a layer in float32 between Casts.
Codes have zero point 0 and scales in half; weights per output channel, activations per tensor. Weighted layers have their inputs
quantized and their outputs not: the next layer's quantizer is fused into them. A residual addition has its identity branch quantized
only, which lets the int8 convolution, the addition and its ReLU be one kernel. Biases stay float. 4-bit weights are for matrix products
of half activations, in blocks along the input features.
Sources: docs.nvidia.com/deeplearning/tensorrt, "Working with Quantized Types" and "Q/DQ Layer-Placement Recommendations"; onnx-tensorrt
docs/operators.md; TensorRT-Model-Optimizer graph_utils.py; the linter's table (quantkit/verification/lint/tensorrt.py) has them rule by
rule. No engine was built here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import Tensor

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import FLOAT, FLOATING, PerBlock, PerTensor, QuantSpec, Scheme, parse_scheme
from quantkit.targets import common
from quantkit.targets.common import isolate_layers
from quantkit.targets.placement import Adapted, Placement, Slot, Storage

__all__ = ["adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "tensorrt"
OPSET = 21
PACKAGE, MINIMUM_RUNTIME = "tensorrt", "10.0"
SCHEMES = ("fp16", "w8a8", "fp8", "w4a16", "fp32")
KEPT = FLOATING["fp16"]  # what a layer is that is not quantized
STORAGE: Mapping[int, Storage] = {8: "int8", 4: "plain"}
ACTIVATIONS = QuantSpec(8, signed=True, symmetric=True, granularity=PerTensor(), scale_bits=16)
SESSION_OPTIONS: Mapping[str, str] = {}
LEAST_CHANNELS = 16
MOST_FILTER = 32  # numbers of one channel's filter, of an fp8 convolution
WHY: Mapping[str, str] = {
    "channels": f"convolutions of fewer than {LEAST_CHANNELS} channels have no 8-bit kernel",
    "filter": f"an fp8 convolution's filter has at most {MOST_FILTER} numbers a channel",
    "table": "a table of embeddings is read from, and multiplied by nothing",
    "grouped": f"fp8 wants {LEAST_CHANNELS} channels in each group",
    "product": "4-bit weights are for matrix products, in blocks of 16 to 128",
}


def check_schemes(names: Sequence[str]) -> tuple[Scheme, ...]:
    """The schemes of those names, fp16 among them. Raises SchemeError for a name that is none."""
    return tuple(parse_scheme(name) for name in dict.fromkeys([*names, KEPT.name]))


def groups(graph: Graph, schemes: Sequence[Scheme]) -> tuple[Group, ...]:
    """One group a layer, or for layers that share a weight; its menu holds what all of them can run."""
    found = []
    for group in common.groups(graph, schemes):
        layers = [graph.layer(name) for name in group.layers]
        menu = [scheme for scheme in schemes if all(_refusal(layer, scheme) is None for layer in layers)]
        found.append(replace(group, schemes=tuple(menu)))
    return tuple(found)


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:
    """The allocation of another target's plan, by layer, as this one can run it: 8-bit weights beside 8-bit activations, or half."""
    schemes: dict[str, Scheme] = {}
    changes = []
    for layer in graph.layers:
        scheme = allocation[layer.name]
        if scheme.is_float:
            schemes[layer.name] = KEPT if scheme.name not in SCHEMES or scheme == FLOAT else _possible(layer, scheme)
            continue
        wanted = scheme if scheme.name in SCHEMES else parse_scheme("w8a8")
        schemes[layer.name] = possible = _possible(layer, wanted)
        if layer.weight and possible != scheme:
            why = WHY[_refusal(layer, wanted) or ""] if possible != wanted else "narrower weights do not go with int8 activations"
            changes.append(f"{layer.name}: {scheme.name} became {possible.name}, as {why}")
    floats = sum(scheme.is_float for scheme in schemes.values())
    note = f"what stays float computes in half: {floats} of {len(schemes)} layers, and all that is no layer"
    return Adapted(schemes, tuple(changes), (note,) if floats else ())


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme; one that it cannot run is half."""
    schemes = {layer.name: _stored(_possible(layer, allocation[layer.name])) for layer in graph.layers}
    weighted = {layer.name: schemes[layer.name] for layer in graph.layers if layer.weight and not schemes[layer.name].is_float}
    quantized, slots = dict(weighted), {(name, 0) for name in weighted}
    for layer in graph.layers:
        if layer.kind == "add" and not schemes[layer.name].is_float:
            identity = _identity(graph, layer, weighted)
            if identity is not None:
                slots.add((layer.name, identity))
                quantized[layer.name] = schemes[layer.name]
    narrow = {layer.name: schemes[layer.name] for layer in graph.layers if layer.weight and schemes[layer.name].name == "w4a16"}
    return _placement(graph, quantized, frozenset(slots), narrow, frozenset(name for name, scheme in schemes.items() if scheme == FLOAT))


def isolate(graph: Graph, layers: Sequence[str], scheme: Scheme) -> Placement:
    """As `common.isolate_layers`, biases in float; of a scheme that computes in floating point, the operands are rounded alone."""
    if scheme.is_float:
        return _placement(graph, {}, frozenset(), dict.fromkeys(layers, scheme), None)
    return isolate_layers(graph, layers, _stored(scheme), _biased(graph, layers))


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    channels = layer.weight_shape[layer.weight_axis] if layer.weight else 0
    if scheme.weights is None:
        return 4 * (layer.weight_count + (channels if layer.bias else 0))
    scales = channels
    if scheme.weights.granularity is None:
        scales = 0
    elif isinstance(scheme.weights.granularity, PerBlock) and layer.weight:
        blocks = scheme.weights.granularity.fitting(layer.weight_shape[1])
        scales = layer.weight_count // blocks.size if blocks else 0
    return (layer.weight_count * scheme.weights.bits + 7) // 8 + 2 * scales + (2 * channels if layer.bias else 0)


def product_rows(layer: Layer, weight: Tensor) -> tuple[Tensor, bool]:  # noqa: ARG001 - every target's
    """The weight as [output channels, products]; products are added in 32 bits, none of them in pairs."""
    return weight.flatten(1), False


def _placement(
    graph: Graph, schemes: Mapping[str, Scheme], slots: frozenset[Slot], floating: Mapping[str, Scheme], float32: frozenset[str] | None
) -> Placement:
    return Placement(
        schemes, slots, frozenset(), {}, float_bias=_biased(graph, schemes), storage=STORAGE, floating=floating, float32=float32
    )


def _biased(graph: Graph, names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if graph.layer(name).bias)


def _stored(scheme: Scheme) -> Scheme:
    """With its weights' scales in half."""
    return Scheme(scheme, replace(scheme.weights, scale_bits=16), scheme.activations) if scheme.weights is not None else scheme


def _possible(layer: Layer, scheme: Scheme) -> Scheme:
    return scheme if _refusal(layer, scheme) is None else KEPT


def _refusal(layer: Layer, scheme: Scheme) -> str | None:
    """What keeps the layer from running under the scheme, a key of WHY or nothing to be told; None if nothing does."""
    if scheme in (FLOAT, KEPT):
        return None
    if scheme.name not in SCHEMES or not layer.weight:  # a concatenation carries what its inputs are
        return None if layer.kind == "add" and scheme.name == "w8a8" else ""
    if layer.is_table:
        return "table"
    if scheme.name == "w4a16":
        return None if layer.kind == "linear" and PerBlock(1, 128).fitting(layer.weight_shape[1]) else "product"
    if layer.kind != "conv":
        return None
    few = min(layer.weight_shape[:2]) < LEAST_CHANNELS
    if few and (layer.groups == 1 or scheme.name == "fp8"):
        return "channels" if layer.groups == 1 else "grouped"
    return "filter" if scheme.name == "fp8" and prod(layer.weight_shape[2:]) > MOST_FILTER else None


def _identity(graph: Graph, addition: Layer, weighted: Mapping[str, Scheme]) -> int | None:
    """The slot of the branch that is not computed by the int8 layer into which the addition is fused; None if there is no such layer.

    Where a quantized layer ends both branches, the one of fewer products is the shortcut.
    """
    int8 = {name for name, scheme in weighted.items() if scheme.name == "w8a8"}
    producers = {layer.output: layer for layer in graph.layers if layer.name in int8 and not layer.activation}
    ends = [producers.get(name) for name in addition.inputs]
    ends = [end if end is not None and graph.readers(end.output) == {addition.node} else None for end in ends]
    if len(ends) != 2 or not any(ends) or len({graph.tensor(name).shape for name in addition.inputs}) > 1:
        return None
    macs = [end.macs if end is not None else -1 for end in ends]
    return macs.index(min(macs))
