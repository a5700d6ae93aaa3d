"""The one place that rounds: code = clamp(rint(x / scale) + zero_point), in float32, the way the runtime's kernels do.

Division, not multiplication by the reciprocal, and ties to even: QuantizeLinear's own definition (ONNX operator set), which
ONNX Runtime's kernels follow bit for bit. Requantization multiplies the integer accumulator by float32((scale_x * scale_w) / scale_y).
Codes are carried as float32 tensors that hold integers, exact below 2^24; codes of E4M3 are its numbers, rounded half to even, saturated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantkit.core.spec import FloatFormat, Format, PerBlock, PerChannel, QuantSpec

CLIP_RATIOS = tuple(1.0 - 0.02 * step for step in range(31))  # 1.0 down to 0.4: below that clipping always costs more than it gains
COARSER_RATIOS = tuple(2.0 - 0.05 * step for step in range(20))  # 2.0 is 7 bits: no pair of codes can saturate there
PAIR_LIMIT = 128  # 255 · 128 = 32640 fits int16, 255 · 129 does not
HALF_MAX = 65504.0
AVERAGE_MULTIPLIERS = (2.0**-32, 256.0)  # of the runtime's int8 global average pool: from the first to below the second
BIAS_CODE_LIMIT = float(1 << 30)  # an int32 bias code may not come nearer than this to overflow once products are added


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """`scale` and `zero_point` of one tensor: both of shape [] (per tensor), [channels] along `spec.granularity.axis`, or `PerBlock`'s."""

    spec: Format
    scale: Tensor
    zero_point: Tensor

    def shaped(self, value: Tensor, dimensions: int) -> Tensor:
        """`value` (the scale or the zero point) shaped to broadcast against a tensor of so many dimensions."""
        if isinstance(self.spec.granularity, PerBlock):
            return value.repeat_interleave(self.spec.granularity.size, dim=self.spec.granularity.axis)
        if not isinstance(self.spec.granularity, PerChannel):
            return value
        return value.reshape([-1 if axis == self.spec.granularity.axis else 1 for axis in range(dimensions)])


def choose_qparams(low: Tensor, high: Tensor, spec: Format) -> QParams:
    """Fit `spec` to the range [low, high] (shape [] or [channels]), widened so that 0.0 is exact.

    An empty range (low == high == 0) gets scale 1. A scale that is stored in half is rounded up, so that the range stays covered.
    No scale is below the least normal float32: those below it have few bits, and runtimes may flush them to 0.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = torch.maximum(-low, high) / spec.code_max if spec.symmetric else (high - low) / (spec.code_max - spec.code_min)
    scale = half_scale(scale) if spec.scale_bits == 16 else scale
    scale = torch.where(high > low, scale.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if spec.symmetric else (spec.code_min - low / scale).round().clamp(spec.code_min, spec.code_max)
    return QParams(spec, scale, zero_point)


def fit_each_item(x: Tensor, spec: QuantSpec) -> QParams:
    """Fit `spec` to the range of each item of `x` (shape [items, …]): DynamicQuantizeLinear's own definition, for items one by one."""
    rows = x.flatten(1)
    return choose_qparams(rows.amin(dim=1), rows.amax(dim=1), replace(spec, granularity=PerChannel(0)))


def fake_quantize_in_call(x: Tensor, spec: QuantSpec) -> Tensor:
    """`x` (shape [items, …]) on the grid that a call finds for it: of the range of each item, or of each block of its last axis.

    A block's grid is that of ONNX Runtime's MatMulNBits: scale = max |x| / 127, and codes of x · (127 / max |x|), not of x / scale.
    """
    if not isinstance(spec.granularity, PerBlock):
        return fake_quantize(x, fit_each_item(x, spec))
    blocks = spec.granularity.fitting(x.shape[-1])
    assert blocks is not None, f"no block divides {x.shape[-1]} products"
    rows = x.reshape(*x.shape[:-1], -1, blocks.size)
    largest = rows.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, spec.code_max / largest, torch.zeros_like(largest))
    real: Tensor = (rows * inverse).round_() * (largest / spec.code_max)
    return real.reshape(x.shape)


def refit(qparams: QParams, spec: Format) -> QParams:
    """`spec` over the range of another grid; that grid itself if it is of this format."""
    if spec == qparams.spec:
        return qparams
    ends = (torch.as_tensor(end, device=qparams.scale.device) for end in (qparams.spec.code_min, qparams.spec.code_max))
    low, high = (dequantize(end, qparams) for end in ends)
    return choose_qparams(low, high, spec)


def half_scale(scale: Tensor) -> Tensor:
    """The least half that is not below `scale` (0 stays 0), as float32."""
    nearest = scale.clamp(max=HALF_MAX).half()
    above = (nearest.view(torch.int16) + 1).view(torch.float16)  # the next one up: halves from 0 are ordered as their bits
    return torch.where(nearest.float() < scale, above, nearest).float().clamp(max=HALF_MAX)


def nearest(x: Tensor, spec: Format) -> Tensor:
    """The code nearest to each `x`, which is in units of the scale, ties to even; saturated."""
    if isinstance(spec, FloatFormat):
        return x.clamp(spec.code_min, spec.code_max).to(torch.float16 if spec.bits == 16 else torch.float8_e4m3fn).to(x.dtype)
    return x.round().clamp(spec.code_min, spec.code_max)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """The codes of `x`, as float32."""
    scale, zero_point = qparams.shaped(qparams.scale, x.dim()), qparams.shaped(qparams.zero_point, x.dim())
    if isinstance(qparams.spec, FloatFormat):
        return nearest(x / scale, qparams.spec)
    return (x / scale).round_().add_(zero_point).clamp_(qparams.spec.code_min, qparams.spec.code_max)  # one new tensor, not four


def dequantize(codes: Tensor, qparams: QParams) -> Tensor:
    """(codes − zero_point) · scale."""
    scale, zero_point = qparams.shaped(qparams.scale, codes.dim()), qparams.shaped(qparams.zero_point, codes.dim())
    return (codes - zero_point).mul_(scale)


def requantize(accumulator: Tensor, multiplier: Tensor, qparams: QParams) -> Tensor:
    """The output codes of an integer product: clamp(rint(accumulator · multiplier) + zero_point), all in float32."""
    return (accumulator * multiplier).round_().add_(qparams.zero_point).clamp_(qparams.spec.code_min, qparams.spec.code_max)


def add_codes(a: Tensor, a_qparams: QParams, b: Tensor, b_qparams: QParams, qparams: QParams) -> Tensor:
    """The output codes of the runtime's addition of codes `a` and `b`; all per tensor, all products fused with their sum (rounded once).

    With ratios r = s/s_c: rint(fma(r_a, a, fma(r_b, b, z_c − fma(r_a, z_a, r_b·z_b)))). Ties are common where scales are simple
    fractions, so the innermost product matters: the runtime's compiler fuses it (equal on all 65,536 pairs of codes, tests/test_affine.py).
    """
    a_ratio, b_ratio = (a_qparams.scale / qparams.scale).float(), (b_qparams.scale / qparams.scale).float()
    shift = _fused(a_ratio, a_qparams.zero_point, b_ratio * b_qparams.zero_point)
    total = _fused(a_ratio, a, _fused(b_ratio, b, qparams.zero_point - shift))
    return total.round().clamp(qparams.spec.code_min, qparams.spec.code_max)


def mul_codes(a: Tensor, a_qparams: QParams, b: Tensor, b_qparams: QParams, qparams: QParams) -> Tensor:
    """The output codes of the runtime's product of codes `a` and `b`; all per tensor, either may be broadcast.

    rint(((a − z_a) · (b − z_b)) · r + z_c) with r = (s_a · s_b) / s_c: an exact integer, then two roundings to float32, the zero point
    added before the last one to an integer, which decides ties (equal on all 65,536 pairs of codes, tests/test_affine.py).
    """
    ratio = (a_qparams.scale * b_qparams.scale) / qparams.scale
    scaled = ((a - a_qparams.zero_point) * (b - b_qparams.zero_point)) * ratio
    return _shifted(scaled, qparams)


def average_codes(mean: Tensor, qparams: QParams) -> Tensor:
    """The output codes that the runtime's average pool gives real means: rint(mean / scale + zero_point), not rint first as `quantize`."""
    return _shifted(mean / qparams.scale, qparams)


def fit_average(qparams: QParams, source: QParams, count: int) -> QParams:
    """The grid of an average over maps of `count` codes of the grid `source`, its scale within what the runtime's kernel takes.

    The kernel refuses multipliers source scale / (scale · count) outside AVERAGE_MULTIPLIERS: of averages that are nearly 0 all over.
    """
    least, most = AVERAGE_MULTIPLIERS
    one = source.scale / count
    return replace(qparams, scale=torch.clamp(qparams.scale, one / (most / 2), one / (least * 2)))


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """`x` on the grid: dequantize(quantize(x))."""
    return dequantize(quantize(x, qparams), qparams)


def choose_weight_qparams(rows: Tensor, spec: Format, paired: bool) -> QParams:
    """Scales of least squared error for each row of `rows` (shape [channels, products in the kernel's order]), or each block of one.

    Tries multiples of the row's largest magnitude; with `paired`, of the codes that `separate_pairs` leaves, so that a row
    whose large weights lie side by side gets a coarser scale. A per-tensor spec takes the rows as one; one without a scale has 1.
    """
    if spec.granularity is None:
        return QParams(spec, torch.ones((), device=rows.device), torch.zeros((), device=rows.device))
    if isinstance(spec.granularity, PerBlock):
        blocks = choose_weight_qparams(rows.reshape(-1, spec.granularity.size), replace(spec, granularity=PerChannel(0)), paired=False)
        scale = blocks.scale.reshape(len(rows), -1)
        return QParams(spec, scale, torch.zeros_like(scale))
    per_channel = isinstance(spec.granularity, PerChannel)
    rows = rows.detach().float() if per_channel else rows.detach().float().reshape(1, -1)
    largest = rows.abs().amax(dim=1)
    best = torch.full_like(largest, torch.nan)
    least = torch.full_like(largest, torch.inf)
    for ratio in (*(COARSER_RATIOS if paired else ()), *CLIP_RATIOS):
        scale = choose_qparams(-largest * ratio, largest * ratio, spec).scale
        codes = nearest(rows / scale[:, None], spec)
        if paired:
            codes = separate_pairs(codes)
        error = (codes * scale[:, None] - rows).square().sum(dim=1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    scale = best if per_channel else best[0]
    return QParams(spec, scale, torch.zeros_like(scale))


def separate_pairs(codes: Tensor) -> Tensor:
    """`codes` (shape [channels, products in the kernel's order]) with no two neighbours whose products could saturate.

    CPUs without VNNI add u8×s8 products two by two in int16 (VPMADDUBSW): 255 · (c₀ + c₁) must stay within it. A pair beyond
    PAIR_LIMIT gives up half of the excess on each side. Codes so made give the same bits on every x86-64 CPU.
    """
    odd = codes.shape[1] % 2
    pairs = torch.nn.functional.pad(codes, (0, odd)).reshape(len(codes), -1, 2)
    excess = pairs.sum(dim=2).abs().sub(PAIR_LIMIT).clamp(min=0)
    sign = pairs.sum(dim=2).sign()
    first = (excess / 2).ceil()
    kept = pairs - torch.stack([first, excess - first], dim=2) * sign[:, :, None]
    return kept.reshape(len(codes), -1)[:, : codes.shape[1]]


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


def _shifted(steps: Tensor, qparams: QParams) -> Tensor:
    """Codes of a number of steps, the zero point added before it is rounded."""
    return (steps + qparams.zero_point).round().clamp(qparams.spec.code_min, qparams.spec.code_max)


def _fused(one: Tensor, other: Tensor, added: Tensor) -> Tensor:
    """one · other + added, rounded once to float32: products of 24 and 8 bits are exact in float64."""
    return (one.double() * other.double() + added.double()).float()
