"""Weights on their grids: the codes that every stage shares, from the simulation to the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.affine import QParams, choose_weight_qparams, dequantize, floor_weight_scale
from quantkit.graph import Graph, Layer
from quantkit.rounding import ROUNDINGS, Rounding
from quantkit.spec import QuantSpec

ProductRows = Callable[[Layer, Tensor], tuple[Tensor, bool]]  # a target's: the weight as its kernel reads it


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """`codes` (float32 integers, the weight's shape) and their `qparams`.

    `alignment`: how much of the error meets the inputs, over what an error of the same size in no direction would: for
    moments M over K products, (tr(ΔW M ΔW') / ‖ΔW‖²) / (tr(M) / K); 1 where they are unknown.
    """

    codes: Tensor
    qparams: QParams
    alignment: float = 1.0


class WeightBank:
    """Quantized weights by (layer, spec), computed once; `activations` are the qparams of the tensors that feed them.

    The scale depends on the input's scale only where the int32 bias would overflow. `rounding` is given the layer's `moments`, if there
    are any (`passes.moments`). What another bank has `rounded` is taken as it is.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, Tensor],
        activations: Mapping[str, QParams],
        product_rows: ProductRows,
        *,
        rounding: Rounding = ROUNDINGS["nearest"],
        moments: Mapping[str, Tensor] | None = None,
        rounded: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._graph, self._parameters, self.activations, self._product_rows = graph, parameters, activations, product_rows
        self._rounding, self._moments, self._rounded = rounding, moments or {}, rounded or {}
        self._done: dict[tuple[str, QuantSpec], QuantizedWeight] = {}

    def to(self, device: torch.device) -> WeightBank:
        """The same bank with its tensors on `device`; itself if they are there."""
        if device.type == "cpu":
            return self
        parameters = {name: value.to(device) for name, value in self._parameters.items()}
        activations = {name: QParams(q.spec, q.scale.to(device), q.zero_point.to(device)) for name, q in self.activations.items()}
        moments = {name: value.to(device) for name, value in self._moments.items()}
        return WeightBank(
            self._graph, parameters, activations, self._product_rows, rounding=self._rounding, moments=moments, rounded=self._rounded
        )

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
                label = f"{layer.name} {spec.bits}"
                if label in self._rounded:
                    codes, scale = (torch.from_numpy(self._rounded[key]).to(weight.device) for key in (label, f"{label} scale"))
                    qparams = QParams(spec, scale, torch.zeros_like(scale))
                    alignment = float(self._rounded[f"{label} alignment"])
                    self._done[layer.name, spec] = QuantizedWeight(codes.float().reshape(weight.shape), qparams, alignment)
                else:
                    rows, paired = self._product_rows(layer, weight)
                    paired = paired and spec.bits == 8
                    qparams = floor_weight_scale(choose_weight_qparams(rows, spec, paired), bias, self.input_qparams(layer, 0).scale)
                    self._done[layer.name, spec] = self._round(layer, rows, qparams, paired)
        return self._done[layer.name, spec]

    def rounded(self, wanted: Iterable[tuple[Layer, QuantSpec]]) -> dict[str, NDArray[Any]]:
        """The codes of all these, to be kept, and to be given to another bank."""
        found: dict[str, NDArray[Any]] = {}
        for layer, spec in wanted:
            weight, label = self.weight(layer, spec), f"{layer.name} {spec.bits}"
            found[label] = weight.codes.cpu().numpy().astype(np.int8)
            found[f"{label} scale"] = weight.qparams.scale.cpu().numpy()
            found[f"{label} alignment"] = np.array(weight.alignment)
        return found

    def _round(self, layer: Layer, rows: Tensor, qparams: QParams, paired: bool) -> QuantizedWeight:
        shape = self._parameters[str(layer.weight)].shape
        order = self._product_rows(layer, torch.arange(rows.shape[1], device=rows.device).reshape(1, *shape[1:]))[0].flatten()
        moments = self._moments[layer.name][:, order][:, :, order] if layer.name in self._moments else None
        codes = self._rounding(rows, qparams, moments, paired)
        alignment = 1.0 if moments is None else _alignment(dequantize(codes, qparams) - rows, moments)
        natural = torch.empty_like(codes)
        natural[:, order] = codes
        return QuantizedWeight(natural.reshape(shape), qparams, alignment)


def _alignment(error: Tensor, moments: Tensor) -> float:
    """Of `error`, shape [channels, products], as in `QuantizedWeight`; groups of channels share moments."""
    parts = error.double().reshape(len(moments), -1, error.shape[1])
    met = ((parts @ moments.double()) * parts).sum()
    isotropic = (parts.square().sum(dim=(1, 2)) * moments.double().diagonal(dim1=1, dim2=2).mean(dim=1)).sum()
    return float(met / isotropic) if isotropic > 0 else 1.0
