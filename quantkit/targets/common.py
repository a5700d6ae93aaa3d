"""What targets have in common where nothing forces more: schemes by name, one group a layer, bytes by bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantkit.graph import Graph, Group, Layer
from quantkit.spec import FLOAT, PerGroup, QuantSpec, Scheme, parse_scheme
from quantkit.targets.placement import Placement, Storage


def check_schemes(names: Sequence[str]) -> tuple[Scheme, ...]:
    """The schemes of those names, fp32 among them. Raises SchemeError for a name that is none."""
    return tuple(parse_scheme(name) for name in dict.fromkeys([*names, FLOAT.name]))


def groups(graph: Graph, schemes: Sequence[Scheme]) -> tuple[Group, ...]:
    """One group a layer, save that layers which share a weight are one; an operation without weights takes the widest scheme only."""
    owners: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        owners.setdefault(layer.weight or f"activation of {layer.name}", []).append(layer)
    widest = max((s for s in schemes if not s.is_float), key=lambda s: s.precision, default=FLOAT)
    found = []
    for key, layers in owners.items():
        menu = [s.name for s in schemes] if layers[0].weight else list(dict.fromkeys([FLOAT.name, widest.name]))
        alone = "a weight's bits are its own" if layers[0].weight else "one activation decision"
        reason = f"share the weight {key}" if len(layers) > 1 else alone
        found.append(Group(layers[0].name, tuple(layer.name for layer in layers), tuple(menu), reason))
    return tuple(found)


def isolate_layers(graph: Graph, layers: Sequence[str], scheme: Scheme, float_bias: frozenset[str]) -> Placement:
    """Quantize the weights and the inputs of `layers` alone, or their stored weights: what a single-group score perturbs.

    Outputs are left to their readers, so that no activation is counted twice when scores are added.
    """
    if scheme.is_float:
        return Placement({}, frozenset(), frozenset(), {}, stored=stored_narrow(graph, dict.fromkeys(layers, scheme)))
    slots = ((name, slot) for name in layers for slot in range(len(graph.layer(name).inputs)))
    return Placement(dict.fromkeys(layers, scheme), frozenset(slots), frozenset(), {}, float_bias=float_bias)


def stored_narrow(graph: Graph, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Of `schemes` by layer, those of layers that compute in float32 with weights that are stored narrower."""
    return {name: scheme for name, scheme in schemes.items() if scheme.is_stored and graph.layer(name).weight}


def uniform(groups: Sequence[Group], scheme: str) -> dict[str, str]:
    """Every group under `scheme`; where that is not on its menu, under fp32 if it computes in float, else under the last of the menu."""
    other = FLOAT.name if parse_scheme(scheme).is_float else scheme
    menus = {group.name: group.schemes for group in groups}
    return {name: next((one for one in (scheme, other) if one in menu), menu[-1]) for name, menu in menus.items()}


def weight_bytes_stored(layer: Layer, scheme: Scheme, storage: Mapping[int, Storage], made: bool = True) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    channels = layer.weight_shape[layer.weight_axis] if layer.weight else 0
    bias, spec = 4 * channels if layer.bias else 0, scheme.weights
    if not layer.weight or not isinstance(spec, QuantSpec):
        return layer.weight_count * (32 if spec is None else spec.bits) // 8 + bias
    bits, more = 8 if storage[spec.bits] == "int8" else spec.bits, 4 * channels
    inputs = layer.weight_shape[1 - layer.weight_axis]
    if spec.label != str(spec.bits) and not made:
        bits = 8
    elif isinstance(spec.granularity, PerGroup) and spec.granularity.width(inputs) < inputs:
        more += (channels * inputs // spec.granularity.width(inputs) + 1) // 2
    elif spec.codebook:
        more += 1 << spec.bits
    return (layer.weight_count * bits + 7) // 8 + more + bias
