"""Weights on their grids: the codes that every stage shares, from the simulation to the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.affine import QParams, choose_weight_qparams, floor_weight_scale, quantize, separate_pairs
from quantkit.graph import Graph, Layer
from quantkit.spec import QuantSpec

ProductRows = Callable[[Layer, Tensor], tuple[Tensor, bool]]  # a target's: the weight as its kernel reads it


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """`codes` (float32 integers, the weight's shape) and their `qparams`."""

    codes: Tensor
    qparams: QParams


class WeightBank:
    """Quantized weights by (layer, spec), computed once; `activations` are the qparams of the tensors that feed them.

    The scale depends on the input's scale only where the int32 bias would overflow.
    """

    def __init__(
        self, graph: Graph, parameters: Mapping[str, Tensor], activations: Mapping[str, QParams], product_rows: ProductRows
    ) -> None:
        self._graph, self._parameters, self.activations, self._product_rows = graph, parameters, activations, product_rows
        self._done: dict[tuple[str, QuantSpec], QuantizedWeight] = {}

    def to(self, device: torch.device) -> WeightBank:
        """The same bank with its tensors on `device`; itself if they are there."""
        if device.type == "cpu":
            return self
        parameters = {name: value.to(device) for name, value in self._parameters.items()}
        activations = {name: QParams(q.spec, q.scale.to(device), q.zero_point.to(device)) for name, q in self.activations.items()}
        return WeightBank(self._graph, parameters, activations, self._product_rows)

    def parameter(self, name: str) -> Tensor:
        """The float parameter of that name."""
        return self._parameters[name]

    def input_qparams(self, layer: Layer, slot: int) -> QParams:
        """The qparams of the activation that `layer` reads at `slot`."""
        return self.activations[self._graph.source(layer.inputs[slot])]

    def output_qparams(self, layer: Layer) -> QParams:
        """The qparams of the activation that `layer` writes."""
        return self.activations[layer.output]

    def weight(self, layer: Layer, spec: QuantSpec) -> QuantizedWeight:
        """The layer's weight under `spec`."""
        assert layer.weight is not None
        if (layer.name, spec) not in self._done:
            weight = self._parameters[layer.weight].detach()
            bias = self._parameters[layer.bias].detach() if layer.bias else None
            with torch.no_grad():
                rows, paired = self._product_rows(layer, weight)
                paired = paired and spec.bits == 8
                qparams = floor_weight_scale(choose_weight_qparams(rows, spec, paired), bias, self.input_qparams(layer, 0).scale)
                codes = quantize(rows, qparams)
                codes = separate_pairs(codes) if paired else codes
                shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])
                self._done[layer.name, spec] = QuantizedWeight(codes.reshape(shape).movedim(-1, 1).contiguous(), qparams)
        return self._done[layer.name, spec]
