"""Target `nbit`: a *modelled* machine that multiplies integers of 4, 8 and 16 bits. No runtime here has such kernels: nothing is CPU speed.

Convolutions and matrix products read activations of the scheme's bits, unsigned and per tensor, and weights signed and symmetric per output
channel; products are added in full, made real by both scales, and the float bias is added. Everything else is float and costs nothing in
the model. The file says all of it in standard Q/DQ (opset 21: UINT4, UINT8 and UINT16 activations, INT4, INT8 and INT16 weights), as
compilers for such machines read it; ONNX Runtime computes it as it stands, in float32.

HAWQ-V2 (arXiv 1911.03852, section 3.2) chooses the bits of activations layer by layer beside those of weights; the machine of 4, 8 and 16
bits is that of the augmented Hessians (arXiv 2306.04879).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import FLOAT, PerTensor, QuantSpec, Scheme, parse_scheme
from quantkit.targets import common
from quantkit.targets.common import adapt_to_integers, check_schemes, isolate_layers, weight_bytes_stored
from quantkit.targets.placement import Adapted, Placement, Storage

__all__ = ["adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "nbit"
OPSET = 21
PACKAGE, MINIMUM_RUNTIME = "onnxruntime", "1.22"
SCHEMES = ("fp32", "w16a16", "w8a8", "w8a4", "w4a8", "w4a4")
STORAGE: Mapping[int, Storage] = dict.fromkeys((4, 8, 16), "plain")
ACTIVATIONS = QuantSpec(8, signed=False, symmetric=False, granularity=PerTensor())
SESSION_OPTIONS: Mapping[str, str] = {}


def groups(graph: Graph, schemes: Sequence[Scheme]) -> tuple[Group, ...]:
    """As `common.groups`; what multiplies no weight is float."""
    weighted = {layer.name for layer in graph.layers if _is_multiplied(layer)}
    found = common.groups(graph, schemes)
    return tuple(group if weighted.issuperset(group.layers) else replace(group, schemes=(FLOAT,)) for group in found)


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:
    """The allocation of another target's plan, by layer, as this one can run it: the nearest wider integers, weights beside activations."""
    adapted = adapt_to_integers({name: FLOAT if scheme.is_stored else scheme for name, scheme in allocation.items()})
    schemes, changes = {}, list(adapted.changes)
    for name, scheme in adapted.schemes.items():
        schemes[name] = found = _nearest(scheme) if _is_multiplied(graph.layer(name)) else FLOAT
        if found != scheme and _is_multiplied(graph.layer(name)):
            changes.append(f"{name}: {scheme.name} became {found.name}, as the machine has no such units")
    return Adapted(schemes, tuple(changes), adapted.notes)


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme: in front of what multiplies, and nowhere else."""
    schemes = {layer.name: allocation[layer.name] for layer in graph.layers if _is_multiplied(layer)}
    quantized = {name: scheme for name, scheme in schemes.items() if not scheme.is_float}
    slots = frozenset((name, 0) for name in quantized)
    return Placement(quantized, slots, frozenset(), {}, float_bias=_biased(graph, quantized), storage=STORAGE)


def isolate(graph: Graph, layers: Sequence[str], scheme: Scheme) -> Placement:
    """As `common.isolate_layers`, biases in float."""
    return isolate_layers(graph, layers, scheme, _biased(graph, layers))


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE)


def product_rows(layer: Layer, weight: Tensor) -> tuple[Tensor, bool]:  # noqa: ARG001 - every target's
    """The weight as [output channels, products]; products are added in full."""
    return weight.flatten(1), False


def _is_multiplied(layer: Layer) -> bool:
    return layer.weight is not None and not layer.is_table


def _biased(graph: Graph, names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if graph.layer(name).bias)


def _nearest(scheme: Scheme) -> Scheme:
    """The scheme itself if the machine has it; else the narrowest that is no narrower, weights and activations alike."""
    if scheme.is_float:
        return FLOAT
    own = scheme.precision[:2]
    wider = [one for one in map(parse_scheme, SCHEMES) if all(a >= b for a, b in zip(one.precision[:2], own, strict=True))]
    return scheme if scheme.name in SCHEMES else min(wider, key=lambda one: one.precision[0] * one.precision[1])
