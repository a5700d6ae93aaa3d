"""Weights rounded for their place in a plan: one layer after the other, each to what it reads once those before it are rounded.

Rounded apart, a layer keeps its outputs for the inputs of the float network, which it never sees again: errors of all layers before it add
up. Here layer by layer, in the order in which they run, with f what the layer reads in the float network and q what it reads in the
quantized one, its weight W becomes the one nearest to the float outputs, and is then rounded for the inputs q (GPTAQ, Li et al., arXiv
2504.02692, whose closed form this is but for the ridge):

    W ← W (E[f q'] + λ) (E[q q'] + λ)⁻¹,     λ = RIDGE · mean of the diagonal of E[q q']

Where the layer has a bias b, moments are taken about the means, and what the means differ by goes into the bias (empirical bias correction,
Nagel et al., arXiv 1906.04721, section 4.2):

    b ← b + W_float E[f] − W_rounded E[q]

One pass over the items for all layers. The codes are those of this plan: in another they meet other inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from quantkit.core.graph import Layer
from quantkit.core.numerics.affine import BIAS_CODE_LIMIT, dequantize, fake_quantize, fake_quantize_in_call
from quantkit.core.spec import QuantSpec, Scheme
from quantkit.data.batch import Batch
from quantkit.network.captured import Captured
from quantkit.network.folding import ATEN
from quantkit.quantization.moments import PairedMoments
from quantkit.quantization.simulation.program import Environment, Simulation
from quantkit.quantization.weights import QuantizedWeight, WeightBank, packed
from quantkit.targets.placement import Placement

# Of 0.02, 0.1, 0.3 and 1: 0.1 and 0.3 were best on MobileNetV2 (w4a8, 64 and 160 items), SqueezeNet (w4a8) and ResNet44 (w3a8).
RIDGE = 0.1
Arrays = Mapping[str, NDArray[Any]]
NOTHING = Placement({}, frozenset(), frozenset(), {})


@torch.no_grad()
def round_in_sequence(
    captured: Captured,
    placement: Placement,
    bank: WeightBank,
    batches: Iterable[Batch],
    advance: Callable[[int], None],
    known: Mapping[str, Arrays] = MappingProxyType({}),
) -> dict[str, NDArray[Any]]:
    """The codes and biases of every layer that the placement quantizes, as `WeightBank.changed` takes them.

    Layers whose weight others share keep the bank's codes, so do tables and weights that have no scale. `known` has what came of some
    layers under another placement that is the same up to them (`same_until`). `advance(1)` after each layer.
    """
    schemes = placement.all_schemes
    users = Counter(name for layer in captured.graph.layers for name in (layer.weight, layer.bias) if name)
    wanted = {layer.node: layer for layer in captured.graph.layers if layer.name in schemes and _has_codes(layer, schemes[layer.name])}
    found = bank.rounded((layer, schemes[layer.name]) for layer in wanted.values())
    plan_bank = bank.changed(found)
    plain, quantized = Simulation(captured, NOTHING, bank), Simulation(captured, placement, plan_bank)
    given = [(_channels_last(captured, batch.inputs), batch.counted) for batch in batches]
    floats: list[Environment] = [dict(inputs) for inputs, _ in given]
    values: list[Environment] = [dict(inputs) for inputs, _ in given]
    last = {source.name: node for node in captured.module.graph.nodes for source in node.all_input_nodes}
    for node in captured.module.graph.nodes:
        layer = wanted.get(node.name)
        for environment in floats:
            plain.advance(environment, node)
        if layer is not None and layer.name in known:
            found |= known[layer.name]
            advance(1)
        elif layer is not None and users[str(layer.weight)] == 1:
            scheme = schemes[layer.name]
            movable = layer.name not in placement.stored and users[str(layer.bias)] == 1
            paired = PairedMoments(node, layer, bank.parameter(str(layer.weight)).device)
            for (_, counted), one, other in zip(given, floats, values, strict=True):
                paired.add(one[layer.inputs[0]], _read(layer, scheme, other[layer.inputs[0]], placement, bank), counted)
            found |= _settled(layer, scheme, bank, paired, movable=movable and bool(bank.parameter(str(layer.bias)).any()))
            advance(1)
        for environment in values:
            quantized.advance(environment, node)
        for name in [source.name for source in node.all_input_nodes if last[source.name] is node]:
            for environment in (*floats, *values):
                environment.pop(name, None)
    return found


def same_until(captured: Captured, one: Placement, other: Placement) -> tuple[str, ...]:
    """The layers, as they run, before the first node of which the placements differ: they read the same, and get the same codes."""
    layers, same = {layer.node: layer.name for layer in captured.graph.layers}, []
    for node in captured.module.graph.nodes:
        name = layers.get(node.name)
        if (name and one.of_layer(name) != other.of_layer(name)) or (node.name in one.unscaled) != (node.name in other.unscaled):
            break
        same += [name] if name else []
    return tuple(same)


def items_within(captured: Captured, megabytes: float) -> int:
    """Of how many items the values that `round_in_sequence` holds at once take no more than that; 1 at least."""
    nodes = [node for node in captured.module.graph.nodes if node.op in ("placeholder", "call_function")]
    place = {node: number for number, node in enumerate(nodes)}
    last = [max((place[user] for user in node.users if user in place), default=number) for node, number in place.items()]
    sizes = [_bytes_of_item(node) for node in nodes]
    most = max(sum(sizes[earlier] for earlier in range(now + 1) if last[earlier] >= now) for now in range(len(nodes)))
    return max(1, int(megabytes * 1e6 / (2 * most)))


def _channels_last(captured: Captured, inputs: Mapping[str, Tensor]) -> Environment:
    """The inputs, images with their channels side by side in memory: convolutions keep it so, and are faster then.

    As they are where the network itself says how a tensor lies.
    """
    if any(node.target is ATEN.as_strided.default for node in captured.module.graph.nodes):
        return dict(inputs)
    return {name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for name, x in inputs.items()}


def _has_codes(layer: Layer, scheme: Scheme) -> bool:
    return layer.weight is not None and not layer.is_table and scheme.weights is not None and scheme.weights.granularity is not None


def _read(layer: Layer, scheme: Scheme, x: Tensor, placement: Placement, bank: WeightBank) -> Tensor:
    """What the layer's products are made with, of what it is given."""
    spec = scheme.activations
    if isinstance(spec, QuantSpec) and spec.dynamic:
        return fake_quantize_in_call(x, spec)
    return fake_quantize(x, bank.input_qparams(layer, 0, spec)) if (layer.name, 0) in placement.inputs else x


def _settled(layer: Layer, scheme: Scheme, bank: WeightBank, paired: PairedMoments, *, movable: bool) -> dict[str, NDArray[Any]]:
    """The layer's codes, and its bias where it is `movable`."""
    weight, rounded = bank.parameter(str(layer.weight)).detach(), bank.under(layer, scheme)
    if paired.is_whole:
        cross, own = paired.moments(centred=movable)
        assert scheme.weights is not None
        rounded = bank.round(layer, scheme.weights, compensated(weight, cross, own), own.float(), in_float=scheme.is_float)
    found = packed(layer, scheme, rounded)
    bias = _moved(layer, bank, weight, rounded, paired) if movable else None
    if bias is not None and not overflows(layer, scheme, bank, bias, rounded):
        found[f"{layer.name} bias"] = bias.cpu().numpy()
    return found


def compensated(weight: Tensor, cross: Tensor, own: Tensor) -> Tensor:
    """The weight whose products with q are nearest to those of `weight` with f; `cross` is E[f q'], `own` E[q q'], by groups."""
    rows = weight.double().reshape(len(own), -1, own.shape[1])
    energy = own.diagonal(dim1=1, dim2=2).mean(dim=1)
    ridge = torch.diag_embed((RIDGE * energy + torch.finfo(torch.float32).tiny)[:, None].expand(-1, own.shape[1]))
    solved: Tensor = torch.linalg.solve(own + ridge, (rows @ (cross + ridge)).mT).mT  # own is symmetric
    return solved.reshape(weight.shape).float()


def _moved(layer: Layer, bank: WeightBank, weight: Tensor, rounded: QuantizedWeight, paired: PairedMoments) -> Tensor:
    """The bias under which the mean outputs are the float network's."""
    f, q = (mean[:, :, None] for mean in paired.means())
    real = dequantize(rounded.codes, rounded.qparams)
    one, other = (w.double().reshape(len(f), -1, f.shape[1]) @ mean for w, mean in ((weight, f), (real, q)))
    return (bank.parameter(str(layer.bias)).detach().double() + (one - other).flatten()).float()


def overflows(layer: Layer, scheme: Scheme, bank: WeightBank, bias: Tensor, rounded: QuantizedWeight) -> bool:
    """Whether the bias has no int32 code; its scale was chosen for the one that it replaces."""
    if scheme.reads_float or rounded.qparams.spec.scale_bits != 32:  # its bias is no code
        return False
    return bool((bias.abs() > bank.input_qparams(layer, 0).scale * rounded.qparams.scale * BIAS_CODE_LIMIT).any())


def _bytes_of_item(node: fx.Node) -> int:
    values: Sequence[Any] = node.meta["val"] if isinstance(node.meta.get("val"), (tuple, list)) else [node.meta.get("val")]
    return sum(4 * prod(int(side) for side in value.shape[1:]) for value in values if isinstance(value, Tensor))
