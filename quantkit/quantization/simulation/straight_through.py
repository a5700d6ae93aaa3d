"""A placement in real numbers, with gradients: rounding passes them on as they are, clipping stops them (Bengio et al., arXiv 1308.3432).

Not the arithmetic of any kernel, but close to it, for learning alone: what was learned is judged by the simulation and the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from quantkit.core.graph import Layer
from quantkit.core.numerics.affine import QParams, dequantize, fake_quantize, fake_quantize_in_call
from quantkit.core.spec import QuantSpec
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import Environment, Simulation, call, weight_node
from quantkit.quantization.weights import WeightBank
from quantkit.targets.placement import Placement

Learned = Mapping[str, tuple[Tensor, Tensor | None]]  # by layer, its weight and its bias


class StraightThrough(Simulation):
    """The placement, in which layers may be given weights that are being learned. For networks that compute in int8 or float32.

    Each activation misses its quantizer with the chance `drop` (QDrop, Wei et al., arXiv 2203.05740), drawn by `generator`.
    """

    def __init__(self, captured: Captured, placement: Placement, bank: WeightBank, drop: float, generator: torch.Generator) -> None:
        super().__init__(captured, placement, bank)
        self._state = {name: value.detach() for name, value in self._state.items()}
        self._drop, self._generator, self._learned = drop, generator, dict[str, tuple[Tensor, Tensor | None]]()

    def learn(self, values: Environment, nodes: Iterable[fx.Node], learned: Learned) -> None:
        """Adds to `values` what comes of `nodes`, in their order, with gradients to the `learned` weights and biases, if they are on."""
        self._learned = dict(learned)
        self._walk(values, nodes)

    def _stored_weight(self, node: fx.Node) -> Environment:
        layer = self._stored.get(node.name)
        if layer is None or layer.name not in self._learned:
            return super()._stored_weight(node)
        return {weight_node(node, layer.weight_slot): self._learned[layer.name][0]}

    def _average(self, node: fx.Node, values: Environment) -> Tensor:
        average: Tensor = call(node, lambda source: values[source.name])
        return average

    def _quantized(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        node, read = self._nodes[layer.node], [self._read_codes(layer, slot, x) for slot, x in enumerate(inputs)]
        if layer.weight:
            weight, bias = self._learned.get(layer.name) or self._fixed(layer)
            result: Tensor = node.target(read[0], weight, bias, *node.args[3:])
        else:
            following = iter(read)
            result = call(node, lambda _: next(following))
        return self._on_grid(result, self._bank.output_qparams(layer)) if layer.name in self._placement.outputs else result

    def _fixed(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        quantized = self._bank.under(layer, self._placement.all_schemes[layer.name])
        return dequantize(quantized.codes, quantized.qparams), self._bank.bias(layer)

    def _read_codes(self, layer: Layer, slot: int, x: Tensor) -> Tensor:
        spec = self._placement.all_schemes[layer.name].activations
        if layer.name in self._placement.dynamic:
            assert isinstance(spec, QuantSpec)
            return x + (fake_quantize_in_call(x.detach(), spec) - x).detach()
        return self._on_grid(x, self._bank.input_qparams(layer, slot, spec)) if (layer.name, slot) in self._placement.inputs else x

    def _on_grid(self, x: Tensor, qparams: QParams) -> Tensor:
        low, high = ((end - qparams.zero_point) * qparams.scale for end in (qparams.spec.code_min, qparams.spec.code_max))
        clipped = torch.minimum(torch.maximum(x, low), high)
        rounded = clipped + (fake_quantize(x.detach(), qparams) - clipped).detach()
        dropped = torch.rand(x.shape, generator=self._generator, device=x.device) < self._drop
        return torch.where(dropped, x, rounded)
