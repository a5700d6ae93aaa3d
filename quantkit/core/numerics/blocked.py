"""Float convolutions summed in ONNX Runtime's own order, so that their float32 results are its results, bit for bit.

Its blocked kernels (MLAS, NCHWc) add with fused multiply-adds, one product after the other, in parts that start from zero and are then
added up; bias and activation come last. A part is, by the shape of the convolution:

    depthwise          all taps
    1×1, not padded    128 input channels
    otherwise          all taps of one block of input channels (8 on AVX2; 16 on AVX-512), taps outside, channels inside;
                       of a single channel where there are fewer than one block

A product of two float32 numbers is exact in float64, so rounding its sum with the part so far to float32 is a fused multiply-add. Found by
trying orders until every bit agreed; `find_block` asks the installed runtime, and says None where it adds in some other way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = (8, 16)
POINTWISE = 128
TILE = 1 << 14  # sums at once, so that they stay in the processor's cache
MULTIPLE = 4  # other numbers of channels run in other kernels
MOST_PRODUCTS = 2.5e7  # of one item: beyond it the sums take too long
SHAPES = ((3, 24, 3, 1), (40, 24, 3, 1), (24, 24, 3, 24), (200, 24, 1, 1))  # channels in and out, kernel, groups: each kind of part


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    block: int,
) -> Tensor | None:  # fmt: skip
    """The convolution of `x` [items, channels, height, width] with `weight`, in float32; None for a kind whose order is not known here."""
    if x.dim() != 4:
        return None
    outputs, channels, height, width = weight.shape
    depthwise = groups == x.shape[1] == outputs and channels == 1
    plain = groups == 1 and (channels % MULTIPLE == 0 or channels < block)
    if not (plain or (depthwise and outputs % MULTIPLE == 0)):
        return None
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).double()
    rows = (padded.shape[2] - dilation[0] * (height - 1) - 1) // stride[0] + 1
    columns = (padded.shape[3] - dilation[1] * (width - 1) - 1) // stride[1] + 1
    if rows * columns * weight.numel() > MOST_PRODUCTS:
        return None
    if depthwise or channels < block:
        part = 1
    elif height == width == 1 and not any(padding):
        part = POINTWISE
    else:
        part = block
    result = torch.empty(len(x), outputs, rows, columns)
    high = max(1, TILE // (outputs * columns))
    steps = [
        [(top, left, channel) for top in range(height) for left in range(width) for channel in range(first, min(first + part, channels))]
        for first in range(0, channels, part)
    ]
    factors = {step: weight.detach().double()[:, step[2], step[0], step[1]][:, None, None] for part_steps in steps for step in part_steps}
    across = (columns - 1) * stride[1] + 1
    several = max(1, TILE // (outputs * rows * columns))  # items, where a whole one is smaller than a tile
    for first, start in ((first, start) for first in range(0, len(x), several) for start in range(0, rows, high)):
        count, some = min(high, rows - start), padded[first : first + several]
        total = torch.zeros(len(some), outputs, count, columns)
        wide, narrow = torch.empty_like(total, dtype=torch.float64), torch.empty_like(total)
        for place, part_steps in enumerate(steps):
            wide.zero_()
            for step in part_steps:
                y, z = start * stride[0] + step[0] * dilation[0], step[1] * dilation[1]
                patch = some[:, :, y : y + (count - 1) * stride[0] + 1 : stride[0], z : z + across : stride[1]]
                torch.addcmul(wide, patch if depthwise else patch[:, step[2], None], factors[step], out=wide)
                wide.copy_(narrow.copy_(wide))  # rounded to float32
            total = narrow + total if place else narrow.clone()
        result[first : first + several, :, start : start + count] = total
    return result if bias is None else result + bias.detach()[None, :, None, None]


def find_block(run: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]) -> int | None:
    """The block in which the runtime adds: the one of BLOCKS with which every kind of SHAPES equals `run` in all bits; None if none does.

    `run(x, weight, bias, padding, groups)` is one convolution in the runtime.
    """
    generator = torch.Generator().manual_seed(0)
    cases = []
    for inputs, outputs, size, groups in SHAPES:
        x, bias = torch.randn(1, inputs, 9, 9, generator=generator), torch.randn(outputs, generator=generator)
        weight = torch.randn(outputs, inputs // groups, size, size, generator=generator)
        cases.append((x, weight, bias, size // 2, groups, run(x, weight, bias, size // 2, groups)))
    for block in BLOCKS:
        found = [convolve(x, weight, bias, (1, 1), (pad, pad), (1, 1), groups, block) for x, weight, bias, pad, groups, _ in cases]
        if all(ours is not None and torch.equal(ours, case[-1]) for ours, case in zip(found, cases, strict=True)):
            return block
    return None
