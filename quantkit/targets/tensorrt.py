"""Target `tensorrt`: explicit Q/DQ as NVIDIA's builder wants it (10.x and later, strongly typed).

Codes are signed with zero point 0; weights per output channel, activations per tensor. Weighted layers have their inputs quantized and
their outputs not: the next layer's quantizer is fused into them. A residual addition has its identity branch quantized only, which lets
the convolution, the addition and its ReLU be one int8 kernel. Biases stay float. Convolutions of few channels have no int8 kernel.
Sources: docs.nvidia.com/deeplearning/tensorrt, "Working with Quantized Types" and "Q/DQ Layer-Placement Recommendations"; onnx-tensorrt
docs/operators.md; the linter's table (quantkit/lint/tensorrt.py) has them rule by rule. No engine was built here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from quantkit.graph import Graph, Layer
from quantkit.spec import FLOAT, PerTensor, QuantSpec, Scheme, parse_scheme
from quantkit.targets.common import check_schemes, groups, isolate_layers, weight_bytes_stored
from quantkit.targets.placement import Adapted, Placement, Slot, Storage

__all__ = ["adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "tensorrt"
OPSET = 21
MINIMUM_RUNTIME = "10.0"
SCHEMES = ("fp32", "w8a8")
STORAGE: Mapping[int, Storage] = {8: "int8"}
ACTIVATIONS = QuantSpec(8, signed=True, symmetric=True, granularity=PerTensor())
SESSION_OPTIONS: Mapping[str, str] = {}
WEIGHTED = ("conv", "linear")
LEAST_CHANNELS = 16


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:
    """The allocation of another target's plan, by layer, as this one can run it: int8 weights beside int8 activations, or float."""
    schemes, notes = {}, []
    for layer in graph.layers:
        scheme = allocation[layer.name]
        if layer.kind == "concat" and not scheme.is_float:
            scheme = FLOAT  # carries what its inputs are, and needs no note
        elif not scheme.is_float and layer.kind == "conv" and _few_channels(layer):
            notes.append(
                f"{layer.name}: {scheme.name} became fp32, as convolutions of fewer than {LEAST_CHANNELS} channels have no int8 kernel"
            )
            scheme = FLOAT
        elif scheme.is_stored:
            notes.append(f"{layer.name}: {scheme.name} became fp32, as float weights are not stored narrower here")
            scheme = FLOAT
        elif scheme.weights is not None and scheme.weights.bits != 8:
            if layer.weight:
                notes.append(f"{layer.name}: {scheme.name} became w8a8, as narrower weights do not go with int8 activations")
            scheme = parse_scheme("w8a8")
        schemes[layer.name] = scheme
    return Adapted(schemes, tuple(notes))


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme, as `adapt` leaves it."""
    weighted = {layer.name: allocation[layer.name] for layer in graph.layers if layer.weight and not allocation[layer.name].is_float}
    slots: set[Slot] = {(name, 0) for name in weighted}
    schemes = dict(weighted)
    for layer in graph.layers:
        if layer.kind == "add" and not allocation[layer.name].is_float:
            identity = _identity(graph, layer, weighted)
            if identity is not None:
                slots.add((layer.name, identity))
                schemes[layer.name] = allocation[layer.name]
    biased = frozenset(name for name in weighted if graph.layer(name).bias)
    return Placement(schemes, frozenset(slots), frozenset(), {}, float_bias=biased, storage=STORAGE)


def isolate(graph: Graph, layers: Sequence[str], scheme: Scheme) -> Placement:
    """As `common.isolate_layers`, biases in float."""
    return isolate_layers(graph, layers, scheme, frozenset(name for name in layers if graph.layer(name).bias))


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE)


def product_rows(layer: Layer, weight: Tensor) -> tuple[Tensor, bool]:  # noqa: ARG001 - every target's
    """The weight as [output channels, products]; products are added in 32 bits, none of them in pairs."""
    return weight.flatten(1), False


def _few_channels(layer: Layer) -> bool:
    return layer.groups == 1 and min(layer.weight_shape[:2]) < LEAST_CHANNELS


def _identity(graph: Graph, addition: Layer, weighted: Mapping[str, Scheme]) -> int | None:
    """The slot of the branch that is not computed by the layer into which the addition is fused; None if there is no such layer.

    Where a quantized layer ends both branches, the one of fewer products is the shortcut.
    """
    producers = {layer.output: layer for layer in graph.layers if layer.name in weighted and not layer.activation}
    ends = [producers.get(name) for name in addition.inputs]
    ends = [end if end is not None and graph.readers(end.output) == {addition.node} else None for end in ends]
    if len(ends) != 2 or not any(ends):
        return None
    macs = [end.macs if end is not None else -1 for end in ends]
    return macs.index(min(macs))
