"""Where windows lie: strides, dilations, and padding as the standard writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import Call


def windows(call: Call, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return call.numbers("strides") or [1] * len(kernel), call.numbers("dilations") or [1] * len(kernel)


def pads_of(call: Call, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Begin and end of each side, as the standard writes them: all begins, then all ends."""
    mode, sides = call.number("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        return list(call.numbers("pads") or [0] * 2 * sides)
    if mode == "VALID":
        return [0] * 2 * sides
    begins, ends = [], []
    for size, width, step, apart in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        begin, end = halves(max((math.ceil(int(size) / step) - 1) * step + (width - 1) * apart + 1 - int(size), 0), mode)
        begins.append(begin)
        ends.append(end)
    return begins + ends


def halves(total: int, mode: str) -> tuple[int, int]:
    """Begin and end of a total: the larger half at the end with SAME_UPPER."""
    return (total // 2, total - total // 2) if mode != "SAME_LOWER" else (total - total // 2, total // 2)


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` with so many numbers of that value around the sides behind the channels."""
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    sides = [side for pair in zip(reversed(begins), reversed(ends), strict=True) for side in pair]
    return F.pad(x, sides, value=value) if any(sides) else x
