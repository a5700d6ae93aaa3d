"""Functions without weights in float32 as ONNX Runtime's kernels compute them, bit for bit, so that codes made from them are its codes.

Its int8 Sigmoid and LeakyRelu are tables of 256 codes, made of these while the session loads; its int8 AveragePool adds real numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

# MLAS (logistic.cpp, LogisticKernelFma3): a rational approximation, the coefficients those of Eigen, highest power of x² first.
NUMERATOR = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01)
DENOMINATOR = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01,
)  # fmt: skip
SATURATED = 18.0


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + e^−x), by fused multiply-adds."""
    x = x.clamp(-SATURATED, SATURATED)
    square = (x * x).double()
    numerator, denominator = (_polynomial(square, coefficients) for coefficients in (NUMERATOR, DENOMINATOR))
    return (numerator * x / denominator + 0.5).clamp(min=0.0)


def average(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], sides: Sequence[int], padding_counts: bool
) -> Tensor:
    """Means over windows of `x` [items, channels, *sides], as many as `sides` of the result say: rows before columns, one after the other.

    Divided by the numbers in a window, or by its whole size if `padding_counts`; windows that hang over the end are cut off.
    """
    reach = [(count - 1) * step + size for count, step, size in zip(sides, stride, kernel, strict=True)]
    ends = [max(0, end - side - before) for end, side, before in zip(reach, x.shape[2:], padding, strict=True)]
    around = [extent for pair in reversed([*zip(padding, ends, strict=True)]) for extent in pair]
    windows, counted = (_windows(F.pad(of, around), kernel, stride) for of in (x, torch.ones_like(x[:1, :1])))
    total = torch.zeros_like(windows[0])
    for values in windows:
        total = total + values
    return total / float(prod(kernel)) if padding_counts else total / torch.stack(counted).sum(dim=0)


def _windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, ...]:
    """What each place of the window sees, rows before columns."""
    for axis, (size, step) in enumerate(zip(kernel, stride, strict=True), 2):
        x = x.unfold(axis, size, step)
    return x.flatten(-len(kernel)).unbind(-1)


def _polynomial(square: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's scheme, each step rounded once to float32: a product of two of them is exact in float64."""
    rounded = torch.tensor(coefficients, device=square.device).double()
    value = rounded[0].float().expand_as(square)
    for coefficient in rounded[1:]:
        value = (value.double() * square + coefficient).float()
    return value
