"""Weights on their grids: the codes that every stage shares, from the simulation to the file."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.graph import Graph, Layer
from quantkit.core.numerics.affine import (
    QParams,
    choose_weight_qparams,
    dequantize,
    floor_weight_scale,
    half_scale,
    nearest,
    quantize,
    refit,
)
from quantkit.core.spec import FloatFormat, Format, PerBlock, PerGroup, QuantSpec, Scheme
from quantkit.quantization.rounding import QUICKER, ROUNDINGS, Grid, LayerMoments, Rounding, fit_codebook, fit_two_level
from quantkit.quantization.rounding.grid import BYTES
from quantkit.quantization.rounding.scales import fit_scales

ProductRows = Callable[[Layer, Tensor], tuple[Tensor, bool]]  # a target's: the weight as its kernel reads it


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """`codes` (float32 integers, the weight's shape) as the kernel reads them, and their `qparams`.

    `alignment`: how much of the error meets the inputs, over what an error of the same size in no direction would: for
    moments M over K products, (tr(ΔW M ΔW') / ‖ΔW‖²) / (tr(M) / K); 1 where they are unknown.
    """

    codes: Tensor
    qparams: QParams
    alignment: float = 1.0


class WeightBank:
    """Weights by (layer, scheme), computed once; `activations` are the qparams of the tensors that feed them.

    `widths` are those of other bit-widths, for schemes that have them. The scale depends on the input's scale only where the int32 bias
    would overflow. `rounding` is given the layer's `moments`, if there are any (`quantization.moments`). What another bank has `rounded` is
    taken as it is, and so are biases that were moved with it.
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
        widths: Mapping[int, Mapping[str, QParams]] | None = None,
    ) -> None:
        self._widths = widths or {}
        self._graph, self._parameters, self.activations, self._product_rows = graph, parameters, activations, product_rows
        self._rounding, self._moments, self._rounded = rounding, moments or {}, rounded or {}
        self._matrices = {str(layer.weight): layer for layer in reversed(graph.layers) if layer.weight and not layer.is_table}
        tables = {layer.weight for layer in graph.layers if layer.is_table}
        self._tied = tuple(f"{layer.name} " for weight, layer in self._matrices.items() if weight in tables)
        self._done: dict[tuple[str, int], QuantizedWeight] = {}  # by label, and the bits of the scales
        self._last: tuple[Tensor, Tensor, LayerMoments] | None = None

    def to(self, device: torch.device) -> WeightBank:
        """The same bank with its tensors on `device`; itself if they are there."""
        if device.type == "cpu":
            return self
        parameters = {name: value.to(device) for name, value in self._parameters.items()}
        activations = _moved_to(device, self.activations)
        widths = {bits: _moved_to(device, grids) for bits, grids in self._widths.items()}
        moments = {name: value.to(device) for name, value in self._moments.items()}
        return WeightBank(
            self._graph, parameters, activations, self._product_rows,
            rounding=self._rounding, moments=moments, rounded=self._rounded, widths=widths,
        )  # fmt: skip

    def by(self, rounding: Rounding) -> WeightBank:
        """The same bank, that rounds so what is not rounded yet."""
        return WeightBank(
            self._graph, self._parameters, self.activations, self._product_rows,
            rounding=rounding, moments=self._moments, rounded=self._rounded, widths=self._widths,
        )  # fmt: skip

    def for_graph(self, graph: Graph, parameters: Mapping[str, Tensor], tensors: Mapping[str, str]) -> WeightBank:
        """What was rounded, for a graph with layers of the same names and weights; `tensors`: this graph's, by the other's names."""
        known = (self.activations, *self._widths.values())
        activations, *others = ({mine: grids[theirs] for mine, theirs in tensors.items() if theirs in grids} for grids in known)
        widths = dict(zip(self._widths, others, strict=True))
        return WeightBank(
            graph, parameters, activations, self._product_rows, rounding=self._rounding, rounded=self._rounded, widths=widths
        )

    def changed(self, rounded: MutableMapping[str, NDArray[Any]]) -> WeightBank:
        """The same bank with these codes and biases in place of its own; entries may be added until they are first asked for."""
        own = cast("MutableMapping[str, NDArray[Any]]", self._rounded)  # is only read
        return WeightBank(
            self._graph, self._parameters, self.activations, self._product_rows,
            rounding=self._rounding, moments=self._moments, rounded=ChainMap(rounded, own), widths=self._widths,
        )  # fmt: skip

    def bias(self, layer: Layer) -> Tensor | None:
        """The layer's bias, detached: as it was moved, or that of the float network; None where it has none."""
        moved = self.moved_bias(layer)
        return moved if moved is not None or layer.bias is None else self._parameters[layer.bias].detach()

    def moved_bias(self, layer: Layer) -> Tensor | None:
        """The bias that was chosen together with the layer's codes; None where it is still the float network's."""
        moved = self._rounded.get(f"{layer.name} bias")
        return None if moved is None else torch.from_numpy(moved).to(self._parameters[str(layer.bias)].device)

    def parameter(self, name: str) -> Tensor:
        """The float parameter of that name."""
        return self._parameters[name]

    def input_qparams(self, layer: Layer, slot: int, spec: Format | None = None) -> QParams:
        """The qparams of the activation that `layer` reads at `slot`; a floating-point `spec` gets the range of the bank's own format."""
        name = self._graph.source(layer.inputs[slot])
        found = self._widths[spec.bits][name] if isinstance(spec, QuantSpec) and spec.bits in self._widths else self.activations[name]
        return refit(found, spec) if isinstance(spec, FloatFormat) else found

    def output_qparams(self, layer: Layer) -> QParams:
        """The qparams of the activation that `layer` writes."""
        return self.activations[layer.output]

    def weight(self, layer: Layer, spec: Format, *, in_float: bool = False) -> QuantizedWeight:
        """The layer's weight under `spec`, its blocks as large as fit; with `in_float` for a layer that computes in floating point.

        There no product can saturate and no bias overflow.
        """
        label = _label(layer, spec, in_float)
        key = (label, spec.scale_bits)
        if key not in self._done:
            with torch.no_grad():
                fitted = _fitted(layer, spec)
                self._done[key] = self._kept(layer, fitted, label) if label in self._rounded else self._round(layer, fitted, in_float)
        return self._done[key]

    def under(self, layer: Layer, scheme: Scheme) -> QuantizedWeight:
        """The layer's weight under `scheme`, which gives it a format; a table that is a matrix too has that matrix's codes."""
        assert scheme.weights is not None
        layer = self._matrices.get(str(layer.weight), layer) if layer.is_table else layer
        return self.weight(layer, scheme.weights, in_float=_stays_float(layer, scheme))

    def stored_weight(self, layer: Layer, scheme: Scheme) -> Tensor:
        """The float32 weight that a file has of a layer which computes in float and is stored narrower."""
        quantized = self.under(layer, scheme)
        return dequantize(quantized.codes, quantized.qparams)

    def squared_error(self, layer: Layer, scheme: Scheme) -> float:
        """‖ΔW‖² of the layer's weight under `scheme`, times its alignment."""
        if scheme.weights is None:
            return 0.0
        weight = self._parameters[str(layer.weight)].detach()
        quantized = self.under(layer, scheme)
        return float((dequantize(quantized.codes, quantized.qparams) - weight).double().square().sum()) * quantized.alignment

    def rounded(self, wanted: Iterable[tuple[Layer, Scheme]]) -> dict[str, NDArray[Any]]:
        """The codes of all these that have a scale, to be kept, and to be given to another bank; others are soon rounded again.

        They do not stay in this bank, but for those of a matrix that is a table too, as the table asks for them once more.
        """
        found: dict[str, NDArray[Any]] = {}
        for layer, scheme in wanted:
            spec = scheme.weights
            if spec is None or spec.granularity is None:
                continue
            found |= packed(layer, scheme, self.under(layer, scheme))
        self._done = {key: weight for key, weight in self._done.items() if key[0].startswith(self._tied)}
        return found

    def _kept(self, layer: Layer, spec: Format, label: str) -> QuantizedWeight:
        """What another bank has rounded; codes that it made for a scale in float32 are made again for one in half."""
        weight = self._parameters[str(layer.weight)]
        codes, scale = (torch.from_numpy(self._rounded[key]).to(weight.device) for key in (label, f"{label} scale"))
        codes, qparams = _unpacked(codes, spec).reshape(weight.shape), QParams(_read_as(spec), scale, torch.zeros_like(scale))
        if spec.scale_bits == 16:
            halved = replace(qparams, scale=half_scale(scale))
            codes, qparams = quantize(dequantize(codes, qparams), halved), halved
        return QuantizedWeight(codes, qparams, float(self._rounded[f"{label} alignment"]))

    def _round(self, layer: Layer, spec: Format, in_float: bool) -> QuantizedWeight:
        return self.round(layer, spec, self._parameters[str(layer.weight)].detach(), self._moments.get(layer.name), in_float=in_float)

    def round(self, layer: Layer, spec: Format, weight: Tensor, moments: Tensor | None, *, in_float: bool) -> QuantizedWeight:
        """`weight` rounded in the place of the layer's own; `moments` are of what the layer multiplies, as `Rounding` takes them."""
        spec = _fitted(layer, spec)
        in_float = in_float or isinstance(spec.granularity, PerBlock)  # whose sums are made real block by block
        if spec.granularity is None:
            return QuantizedWeight(nearest(weight, spec), choose_weight_qparams(weight, spec, paired=False))
        rows, paired = self._product_rows(layer, weight)
        paired = paired and spec.bits == 8 and not in_float
        order = self._product_rows(layer, torch.arange(rows.shape[1], device=rows.device).reshape(1, *weight.shape[1:]))[0].flatten()
        grid = _fit(rows, spec, order // weight[0, 0].numel(), weight.shape[1], paired)
        bias = self._parameters[layer.bias].detach() if layer.bias else None

        def floor(qparams: QParams) -> QParams:
            if in_float or spec.scale_bits == 16 or bias is None:  # where scales are half, biases stay float
                return qparams
            least = bias.repeat_interleave(len(qparams.scale) // len(bias)) if qparams.scale.dim() else bias
            return floor_weight_scale(qparams, least, self.input_qparams(layer, 0).scale)

        grid = replace(grid, qparams=floor(grid.qparams))
        given = None if moments is None else self._in_order(moments, order)
        has_free_scales = isinstance(spec, QuantSpec) and spec.bits < 8 and spec.scale_bits == 32 and grid.qparams.scale.dim() == 1
        if given is not None and has_free_scales:
            quick = QUICKER.get(self._rounding, self._rounding)
            grid, codes = fit_scales(rows, grid, given, quick, floor)
        if given is None or not has_free_scales or self._rounding in QUICKER:
            codes = self._rounding(rows, grid, given, paired)
        alignment = 1.0 if given is None else _alignment(dequantize(codes, grid.qparams) - rows, given.values)
        natural = torch.empty_like(codes)
        natural[:, order] = codes
        return QuantizedWeight(natural.reshape(weight.shape), grid.qparams, alignment)

    def _in_order(self, moments: Tensor, order: Tensor) -> LayerMoments:
        """`moments` in the order of the kernel; the same object if both were so at the last call: another scheme, or queries and keys."""
        if self._last is None or self._last[0] is not moments or not torch.equal(self._last[1], order):
            self._last = moments, order, LayerMoments(moments[:, order][:, :, order])
        return self._last[2]


def packed(layer: Layer, scheme: Scheme, weight: QuantizedWeight) -> dict[str, NDArray[Any]]:
    """The layer's `weight` under `scheme`, as another bank takes it; the scheme's weights have a scale."""
    assert scheme.weights is not None
    label = _label(layer, scheme.weights, _stays_float(layer, scheme))
    return {
        label: _packed(weight.codes.cpu(), scheme.weights),
        f"{label} scale": weight.qparams.scale.cpu().numpy(),
        f"{label} alignment": np.array(weight.alignment),
    }


def _moved_to(device: torch.device, grids: Mapping[str, QParams]) -> dict[str, QParams]:
    return {name: QParams(q.spec, q.scale.to(device), q.zero_point.to(device)) for name, q in grids.items()}


def _fit(rows: Tensor, spec: Format, channels: Tensor, count: int, paired: bool) -> Grid:
    """The grid of least squared error for `rows`, whose products are with these of `count` input `channels`."""
    if isinstance(spec, QuantSpec) and spec.codebook:
        return fit_codebook(rows, spec.bits)
    if isinstance(spec.granularity, PerGroup):
        return fit_two_level(rows, channels // spec.granularity.width(count), spec.bits)
    return Grid(choose_weight_qparams(rows, spec, paired))


def _read_as(spec: Format) -> Format:
    """The format of the codes that the kernel reads."""
    made = isinstance(spec, QuantSpec) and (spec.codebook or isinstance(spec.granularity, PerGroup))
    return BYTES if made else spec


def _fitted(layer: Layer, spec: Format) -> Format:
    """`spec` with blocks that divide the layer's products."""
    if not isinstance(spec.granularity, PerBlock):
        return spec
    blocks = spec.granularity.fitting(layer.weight_shape[spec.granularity.axis])
    assert blocks is not None, f"no block divides the weight of {layer.name}"
    return replace(spec, granularity=blocks)


def _stays_float(layer: Layer, scheme: Scheme) -> bool:
    """Whether the weight is multiplied as a real number under `scheme`, or not at all."""
    return scheme.is_float or layer.is_table


def _label(layer: Layer, spec: Format, in_float: bool) -> str:
    """What kept codes go by."""
    return f"{layer.name} {spec.label}{' float' if in_float else ''}"


def _packed(codes: Tensor, spec: Format) -> NDArray[Any]:
    """One byte a code, two where it has more than 8 bits."""
    if isinstance(spec, FloatFormat):
        return codes.to(torch.float8_e4m3fn).view(torch.int8).numpy()
    return codes.numpy().astype(np.int8 if spec.bits <= 8 else np.int16)


def _unpacked(codes: Tensor, spec: Format) -> Tensor:
    return codes.view(torch.float8_e4m3fn).float() if isinstance(spec, FloatFormat) else codes.float()


def _alignment(error: Tensor, moments: Tensor) -> float:
    """Of `error`, shape [channels, products], as in `QuantizedWeight`; groups of channels share moments."""
    parts = error.double().reshape(len(moments), -1, error.shape[1])
    met = ((parts @ moments.double()) * parts).sum()
    isotropic = (parts.square().sum(dim=(1, 2)) * moments.double().diagonal(dim1=1, dim2=2).mean(dim=1)).sum()
    return float(met / isotropic) if isotropic > 0 else 1.0
