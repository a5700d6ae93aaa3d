"""The one place that rounds: code = clamp(rint(x / scale) + zero_point), in float32, the way the runtime's kernels do.

Division, not multiplication by the reciprocal, and ties to even: QuantizeLinear's own definition (ONNX operator set), which
ONNX Runtime's kernels follow bit for bit. Requantization multiplies the integer accumulator by float32((scale_x * scale_w) / scale_y).
Codes are carried as float32 tensors that hold integers, exact below 2^24.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.spec import PerChannel, QuantSpec

CLIP_RATIOS = tuple(1.0 - 0.02 * step for step in range(31))  # 1.0 down to 0.4: below that clipping always costs more than it gains
BIAS_CODE_LIMIT = float(1 << 30)  # an int32 bias code may not come nearer than this to overflow once products are added


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """`scale` and `zero_point` of one tensor: both of shape [] (per tensor) or [channels] along `spec.granularity.axis`."""

    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor

    def shaped(self, value: Tensor, dimensions: int) -> Tensor:
        """`value` (the scale or the zero point) shaped to broadcast against a tensor of so many dimensions."""
        if not isinstance(self.spec.granularity, PerChannel):
            return value
        return value.reshape([-1 if axis == self.spec.granularity.axis else 1 for axis in range(dimensions)])


def choose_qparams(low: Tensor, high: Tensor, spec: QuantSpec) -> QParams:
    """Fit `spec` to the range [low, high] (shape [] or [channels]), widened so that 0.0 is exact.

    An empty range (low == high == 0) gets scale 1.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if spec.symmetric:
        scale = torch.maximum(-low, high) / spec.code_max
    else:
        scale = (high - low) / (spec.code_max - spec.code_min)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if spec.symmetric else (spec.code_min - low / scale).round().clamp(spec.code_min, spec.code_max)
    return QParams(spec, scale, zero_point)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """The codes of `x`, as float32."""
    scale, zero_point = qparams.shaped(qparams.scale, x.dim()), qparams.shaped(qparams.zero_point, x.dim())
    return ((x / scale).round() + zero_point).clamp(qparams.spec.code_min, qparams.spec.code_max)


def dequantize(codes: Tensor, qparams: QParams) -> Tensor:
    """(codes − zero_point) · scale."""
    scale, zero_point = qparams.shaped(qparams.scale, codes.dim()), qparams.shaped(qparams.zero_point, codes.dim())
    return (codes - zero_point) * scale


def requantize(accumulator: Tensor, multiplier: Tensor, qparams: QParams) -> Tensor:
    """The output codes of an integer product: clamp(rint(accumulator · multiplier) + zero_point), all in float32."""
    return ((accumulator * multiplier).round() + qparams.zero_point).clamp(qparams.spec.code_min, qparams.spec.code_max)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """`x` on the grid: dequantize(quantize(x))."""
    return dequantize(quantize(x, qparams), qparams)


def choose_weight_qparams(weight: Tensor, spec: QuantSpec) -> QParams:
    """Scales of least squared error for each output channel, over `CLIP_RATIOS` of the channel's largest magnitude."""
    axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else None
    rows = weight.detach().float()
    rows = rows.reshape(1, -1) if axis is None else rows.movedim(axis, 0).reshape(rows.shape[axis], -1)
    largest = rows.abs().amax(dim=1)
    best = choose_qparams(-largest, largest, spec).scale
    least = torch.full_like(best, torch.inf)
    for ratio in CLIP_RATIOS:
        scale = choose_qparams(-largest * ratio, largest * ratio, spec).scale
        codes = (rows / scale[:, None]).round().clamp(spec.code_min, spec.code_max)
        error = (codes * scale[:, None] - rows).square().sum(dim=1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    scale = best if axis is not None else best[0]
    return QParams(spec, scale, torch.zeros_like(scale))


def floor_weight_scale(qparams: QParams, bias: Tensor | None, input_scale: Tensor) -> QParams:
    """`qparams` with scales raised where the int32 bias code bias / (input_scale · scale) would overflow.

    Dead channels (weights near 1e-19) would otherwise wrap their bias around.
    """
    if bias is None:
        return qparams
    least = bias.detach().float().abs() / (input_scale * BIAS_CODE_LIMIT)
    return QParams(qparams.spec, torch.maximum(qparams.scale, least), qparams.zero_point)


def bias_codes(bias: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    """The int32 codes that the runtime gives a float bias: rint(bias / float32(input_scale · weight_scale)), as float64."""
    return (bias.detach().float() / (input_scale * weight_scale)).round().double()
