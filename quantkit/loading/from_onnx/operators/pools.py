"""Pools over windows and over whole maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import Call, Operator
from quantkit.loading.from_onnx.operators.windows import padded, pads_of, windows

MAXIMA: Mapping[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGES: Mapping[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
SUMS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _is_torchs(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether a pool of torch pads so: alike at both ends, by half a window at most."""
    return pads[: len(kernel)] == pads[len(kernel) :] and all(2 * pad <= width for pad, width in zip(pads, kernel, strict=False))


def _max_pool(call: Call) -> Any:
    x, kernel = call.x(), call.numbers("kernel_shape") or []
    strides, dilations = windows(call, kernel)
    pads, sides = pads_of(call, x, kernel, strides, dilations), len(kernel)
    if sides not in MAXIMA:
        raise call.refuse(f"{sides} sides")
    own = pads[:sides] if _is_torchs(pads, kernel) else [0] * sides
    given = x if own == pads[:sides] == pads[sides:] else padded(x, pads, -math.inf)
    places = call.outputs > 1
    if places and (given is not x or sides != 2):
        raise call.refuse("the places of the largest, and padding of its own kind")
    found = MAXIMA[sides](given, kernel, strides, own, dilations, bool(call.number("ceil_mode", 0)), places)
    if not places:
        return found
    largest, place = found
    (items, channels, height, width) = x.shape
    if call.number("storage_order", 0):  # by columns
        place = place % width * height + place // width
    return largest, place + height * width * torch.arange(items * channels).reshape(items, channels, 1, 1)


def _avg_pool(call: Call) -> Tensor:
    x, kernel = call.x(), call.numbers("kernel_shape") or []
    strides, dilations = windows(call, kernel)
    pads, counts = pads_of(call, x, kernel, strides, dilations), bool(call.number("count_include_pad", 0))
    ceil, sides = bool(call.number("ceil_mode", 0)), len(kernel)
    if sides not in AVERAGES:
        raise call.refuse(f"{sides} sides")
    if set(dilations) != {1} or not _is_torchs(pads, kernel):
        return _average_by_sums(x, kernel, strides, dilations, pads, ceil, counts)
    return AVERAGES[sides](x, kernel, strides, pads[:sides], ceil, counts)


def _average_by_sums(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], ceil: bool, counts: bool
) -> Tensor:
    """Sums of windows over what they hold, for forms that torch's pools do not have."""
    sides, more = len(kernel), []
    for place, (width, step, apart) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size, reach = int(x.shape[2 + place]) + pads[place] + pads[sides + place], (width - 1) * apart + 1
        steps = (math.ceil if ceil else math.floor)((size - reach) / step)
        steps -= steps * step >= int(x.shape[2 + place]) + pads[place]  # no window begins behind the map
        more.append(max(steps * step + reach - size, 0))
    ones = torch.ones(1, 1, *kernel)
    held = torch.ones(1, 1, *(int(side) for side in x.shape[2:]))
    behind = [0] * sides + more
    held = padded(padded(held, pads, float(counts)), behind)
    planes = padded(padded(x.reshape(-1, 1, *x.shape[2:]), pads), behind)
    total, count = (SUMS[sides](value, ones, None, strides, 0, dilations) for value in (planes, held))
    found = total / count
    return found.reshape(*x.shape[:2], *found.shape[2:])


def _global_pool(reduce: Callable[..., Tensor]) -> Operator:
    return lambda call: reduce(call.x(), list(range(2, call.x().dim())), True)


POOLS: Mapping[str, Operator] = {
    "AveragePool": _avg_pool,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "MaxPool": _max_pool,
}
