"""What targets have in common where nothing forces more: schemes by name, one group a layer, bytes by bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import FLOAT, PerBlock, PerGroup, QuantSpec, Scheme, parse_scheme
from quantkit.targets.placement import Adapted, Placement, Storage


def check_schemes(names: Sequence[str]) -> tuple[Scheme, ...]:
    """The schemes of those names, fp32 among them. Raises SchemeError for a name that is none."""
    return tuple(parse_scheme(name) for name in dict.fromkeys([*names, FLOAT]))


def groups(graph: Graph, schemes: Sequence[Scheme]) -> tuple[Group, ...]:
    """One group a layer, save that layers which share a weight are one, and so are the two of a SiLU.

    So are products over tokens that read one tensor: an attention's queries, keys and values, a gate and what it lets through.
    An operation without weights takes the widest scheme only; a table, what leaves its neighbours float.
    """
    widest = max((s for s in schemes if not s.reads_float), key=lambda s: s.precision, default=FLOAT)
    found = []
    for layers in _together(graph):
        menu = list(schemes) if layers[0].weight else list(dict.fromkeys([FLOAT, widest]))
        if any(layer.is_table for layer in layers):
            menu = [s for s in schemes if s.reads_float]
        found.append(Group(layers[0].name, tuple(layer.name for layer in layers), tuple(menu), _reason(layers)))
    return tuple(found)


def _together(graph: Graph) -> list[list[Layer]]:
    """The layers of each group, in the order of the graph."""
    gates, parents, first = _gates(graph), list(range(len(graph.layers))), dict[str, int]()

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    for number, layer in enumerate(graph.layers):
        marks = [layer.weight or f"activation of {gates.get(layer.name, layer.name)}"]
        if layer.kind == "linear" and layer.weight and len(layer.output_shape) > 1:
            marks.append(f"products of {graph.source(layer.inputs[0])}")
        for mark in marks:
            one, other = root(first.setdefault(mark, number)), root(number)
            parents[max(one, other)] = min(one, other)
    found: dict[int, list[Layer]] = {}
    for number, layer in enumerate(graph.layers):
        found.setdefault(root(number), []).append(layer)
    return list(found.values())


def _reason(layers: Sequence[Layer]) -> str:
    """Why these layers are one group."""
    if len(layers) == 1:
        return "a weight's bits are its own" if layers[0].weight else "one activation decision"
    if not layers[0].weight:
        return "one SiLU: one kernel in float"
    weights = {str(layer.weight) for layer in layers}
    return f"share the weight {layers[0].weight}" if len(weights) == 1 else f"read one tensor, {layers[0].inputs[0]}"


def _gates(graph: Graph) -> dict[str, str]:
    """The sigmoid of each product x · sigmoid(x) that alone reads it, by layer names."""
    sigmoids = {layer.output: layer for layer in graph.layers if layer.kind == "sigmoid"}
    found = {}
    for layer in graph.layers:
        for name, other in zip(layer.inputs, reversed(layer.inputs), strict=True) if layer.kind == "mul" else ():
            sigmoid = sigmoids.get(name)
            if sigmoid is not None and sigmoid.inputs == (other,) and graph.readers(name) == {layer.node}:
                found[layer.name] = sigmoid.name
    return found


def isolate_layers(graph: Graph, layers: Sequence[str], scheme: Scheme, float_bias: frozenset[str]) -> Placement:
    """Quantize the weights and the inputs of `layers` alone, or their stored weights: what a single-group score perturbs.

    Outputs are left to their readers, so that no activation is counted twice when scores are added.
    """
    if scheme.reads_float:
        given = dict.fromkeys(layers, scheme)
        return Placement({}, frozenset(), frozenset(), {}, stored=stored_narrow(graph, given), dynamic=quantized_in_call(graph, given))
    slots = ((name, slot) for name in layers for slot in range(len(graph.layer(name).inputs)))
    return Placement(dict.fromkeys(layers, scheme), frozenset(slots), frozenset(), {}, float_bias=float_bias)


def adapt_to_integers(allocation: Mapping[str, Scheme]) -> Adapted:
    """Another target's plan for a runtime that computes in 8-bit integers or float32: what it computes with otherwise becomes float32.

    A weight in half stays half in the file. Integer activations of other widths become 8 bits wide, and wider weights too.
    """
    integers = {name: scheme.activations for name, scheme in allocation.items() if isinstance(scheme.activations, QuantSpec)}
    others = {name: allocation[name] for name, activations in integers.items() if activations.bits != 8}
    eights = {name: parse_scheme(f"w{min(8, scheme.precision[1])}a8") for name, scheme in others.items()}
    if others:
        whole = adapt_to_integers({**allocation, **eights})
        widened = tuple(f"{name}: {scheme.name} became {eights[name].name}, as activations have 8 bits" for name, scheme in others.items())
        return Adapted(whole.schemes, (*widened, *whole.changes), whole.notes)
    kept = {name: scheme for name, scheme in allocation.items() if scheme.activations is None or isinstance(scheme.activations, QuantSpec)}
    lost = {name: scheme.name for name, scheme in allocation.items() if name not in kept}
    changes = tuple(f"{name}: {scheme} became fp32, as there is no such kernel" for name, scheme in lost.items() if scheme != "fp16")
    halves = dict.fromkeys((name for name, scheme in lost.items() if scheme == "fp16"), parse_scheme("w16a32"))
    note = f"{len(halves)} layers that computed in half compute in float32, their weights stored in half"
    return Adapted({**dict.fromkeys(allocation, FLOAT), **kept, **halves}, changes, (note,) if halves else ())


def stored_narrow(graph: Graph, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Of `schemes` by layer, those of layers that compute in float32 with weights that are stored narrower, tables among them."""
    layers = {name: graph.layer(name) for name in schemes}
    tables = {name for name, scheme in schemes.items() if layers[name].is_table and isinstance(scheme.weights, QuantSpec)}
    return {name: scheme for name, scheme in schemes.items() if (scheme.is_stored and layers[name].weight) or name in tables}


def quantized_in_call(graph: Graph, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Of `schemes` by layer, those of layers that quantize what they read in each call."""
    return {name: scheme for name, scheme in schemes.items() if scheme.is_dynamic and not graph.layer(name).is_table}


def uniform(groups: Sequence[Group], scheme: Scheme) -> dict[str, Scheme]:
    """Every group under `scheme`; one that cannot take it, under the last of its menu that is float or not, as the scheme is.

    A float scheme that only says how weights are stored, or one that quantizes in each call, leaves groups that cannot take it as they are.
    """
    found = {}
    for group in groups:
        alike = [name for name in group.schemes if name.reads_float == scheme.reads_float] or list(group.schemes)
        found[group.name] = scheme if scheme in group.schemes else FLOAT if FLOAT in alike else alike[-1]
    return found


def weight_bytes_stored(layer: Layer, scheme: Scheme, storage: Mapping[int, Storage], made: bool = True) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    channels = layer.weight_shape[layer.weight_axis] if layer.weight else 0
    bias, spec = 4 * channels if layer.bias else 0, scheme.weights
    if not layer.weight or not isinstance(spec, QuantSpec):
        return layer.weight_count * (32 if spec is None else spec.bits) // 8 + bias
    bits, more = 8 if storage[spec.bits] == "int8" else spec.bits, 4 * channels
    inputs = layer.weight_shape[1 - layer.weight_axis]
    if isinstance(spec.granularity, PerBlock):
        blocks = spec.granularity.fitting(inputs)
        return layer.weight_count * spec.bits // 8 + (4 * layer.weight_count // blocks.size if blocks else 0) + bias
    if spec.label != str(spec.bits) and not made:
        bits = 8
    elif isinstance(spec.granularity, PerGroup) and spec.granularity.width(inputs) < inputs:
        more += (channels * inputs // spec.granularity.width(inputs) + 1) // 2
    elif spec.codebook:
        more += 1 << spec.bits
    return (layer.weight_count * bits + 7) // 8 + more + bias
