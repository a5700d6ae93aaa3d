"""What quantizing changes inside: a weight by ΔW, what a layer reads by Δx, what it gives by ΔY."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from torch import Tensor
from torch.nn import functional as F

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.numerics.affine import dequantize, fake_quantize, fake_quantize_in_call, nearest
from quantkit.core.spec import FLOAT, QuantSpec, Scheme
from quantkit.data.batch import of_tokens
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity.passes.float_forward import Operation
from quantkit.sensitivity.passes.recorded import Site


def weight_change(bank: WeightBank, layer: Layer, scheme: Scheme) -> Tensor | None:
    """Q(W) − W in the weight's shape; None where the scheme, or the layer's having none, leaves the weight alone."""
    wanted = scheme
    if wanted.weights is None or layer.weight is None:
        return None
    quantized = bank.under(layer, wanted)
    return dequantize(quantized.codes, quantized.qparams) - bank.parameter(layer.weight).detach()


def weight_changes(graph: Graph, bank: WeightBank, group: Group, scheme: Scheme) -> dict[str, Tensor]:
    """ΔW of all the group's weights, by parameter name."""
    changes = {name: weight_change(bank, layer, scheme) for name, layer in graph.weights(group).items()}
    return {name: change for name, change in changes.items() if change is not None}


def input_change(bank: WeightBank, layer: Layer, slot: int, x: Tensor, scheme: Scheme) -> Tensor | None:
    """Q(x) − x of what the layer reads at `slot`; None where the scheme leaves it alone."""
    spec = scheme.activations
    if spec is None:
        return None
    if isinstance(spec, QuantSpec) and spec.dynamic:
        return fake_quantize_in_call(x, spec) - x
    return (nearest(x, spec) if spec.granularity is None else fake_quantize(x, bank.input_qparams(layer, slot, spec))) - x


class InputErrors:
    """‖Δx‖² of every (group, scheme, layer, slot), a mean over the items of all recorded runs that were `add`ed."""

    def __init__(self, bank: WeightBank, groups: Iterable[Group]) -> None:
        self._bank, self._items = bank, 0
        self._schemes = {name: group.schemes for group in groups for name in group.layers}
        self._sums: dict[tuple[str, int, str], float] = {}

    def add(self, sites: Iterable[Site]) -> None:
        """See one batch."""
        items = 0
        for site in sites:
            for slot, edge in enumerate(site.inputs):
                items, x = len(edge), edge.detach()
                errors: dict[object, float] = {}  # of one activation format, however many schemes have it
                for scheme in self._schemes.get(site.layer.name, ()):
                    spec = scheme.activations
                    if spec is None:
                        continue
                    if spec not in errors:
                        change = input_change(self._bank, site.layer, slot, x, scheme)
                        errors[spec] = 0.0 if change is None else float(of_tokens(change, site.counted).double().square().sum())
                    key = (site.layer.name, slot, scheme)
                    self._sums[key] = self._sums.get(key, 0.0) + errors[spec]
        self._items += items

    def mean(self, layer: Layer, slot: int, scheme: Scheme) -> float:
        """‖Δx‖² of one item; 0 where the scheme leaves the input alone."""
        return self._sums.get((layer.name, slot, scheme), 0.0) / max(self._items, 1)


class OutputChanges:
    """Q(Y) − Y: how quantizing one layer moves its own output, by its target's arithmetic, its inputs being what they are."""

    def __init__(self, captured: Captured, groups: Iterable[Group], target: ModuleType, bank: WeightBank) -> None:
        self._captured, self._bank = captured, bank
        self._nodes = {node.name: node for node in captured.module.graph.nodes}
        self._simulations = {
            (name, scheme): Simulation(captured, target.isolate(captured.graph, group.layers, scheme), bank)
            for group in groups
            for scheme in group.schemes
            if scheme != FLOAT
            for name in group.layers
        }

    def of(self, layer: Layer, scheme: Scheme, inputs: Iterable[Tensor], output: Tensor) -> Tensor | None:
        """ΔY in the shape of `output`; None where the layer cannot take the scheme, or it is fp32. A table's `inputs` are its indices."""
        simulation = self._simulations.get((layer.name, scheme))
        if simulation is None:
            return None
        if layer.is_table:
            (indices,) = inputs
            return F.embedding(indices, self._bank.stored_weight(layer, scheme)) - output
        if not scheme.is_stored:
            return simulation.layer_output(layer, inputs) - output
        node = self._nodes[layer.node]
        constants = {one: self._captured.module.get_parameter(str(one.target)) for one in node.all_input_nodes if one.op == "get_attr"}
        return Operation(node, layer, constants)(list(inputs), self._bank.stored_weight(layer, scheme)) - output
