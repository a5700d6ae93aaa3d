"""Operators that are layers: convolutions, products with matrices, pools, norms and resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import Call, Operator, as_tensor


def _pads(call: Call, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Begin and end of each side, as the standard writes them: all begins, then all ends."""
    mode, sides = call.number("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        return list(call.numbers("pads") or [0] * 2 * sides)
    if mode == "VALID":
        return [0] * 2 * sides
    begins, ends = [], []
    for size, width, step, apart in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(int(size) / step) - 1) * step + (width - 1) * apart + 1 - int(size), 0)
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return begins + ends


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """What is left to the operation where both ends are alike; else `x` padded, and nothing left."""
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if list(begins) == list(ends):
        return x, list(begins)
    sides = [side for pair in zip(reversed(begins), reversed(ends), strict=True) for side in pair]
    return F.pad(x, sides, value=value), [0] * len(begins)


def _windows(call: Call, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    return call.numbers("strides") or [1] * len(kernel), call.numbers("dilations") or [1] * len(kernel)


def _conv(call: Call) -> Tensor:
    x, weight, bias = call.x(), call.x(1), call.at(2)
    kernel = list(weight.shape[2:])
    strides, dilations = _windows(call, kernel)
    x, padding = _padded(x, _pads(call, x, kernel, strides, dilations))
    operations: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    if len(kernel) not in operations:
        raise call.refuse(f"{len(kernel)} sides")
    return operations[len(kernel)](x, weight, bias, strides, padding, dilations, call.number("group", 1))


def _conv_transpose(call: Call) -> Tensor:
    x, weight, bias = call.x(), call.x(1), call.at(2)
    kernel = list(weight.shape[2:])
    strides, dilations = _windows(call, kernel)
    pads, more = call.numbers("pads") or [0] * 2 * len(kernel), call.numbers("output_padding") or [0] * len(kernel)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    if begins != ends or call.number("output_shape") or call.number("auto_pad", "NOTSET") != "NOTSET" or len(kernel) not in (1, 2):
        raise call.refuse("padding of its own kind")
    operation: Callable[..., Tensor] = F.conv_transpose2d if len(kernel) == 2 else F.conv_transpose1d
    return operation(x, weight, bias, strides, begins, more, call.number("group", 1), dilations)


def _gemm(call: Call) -> Tensor:
    """With a stored matrix, which lies as torch has it (`network`), it is a linear layer."""
    a, b, c = call.x(), call.x(1), call.at(2)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    a, b = a.T if call.number("transA", 0) else a, b if call.number("transB", 0) else b.T
    if alpha == beta == 1.0 and (c is None or (isinstance(c, Tensor) and c.dim() == 1)):
        return F.linear(a, b, c)
    product: Tensor = alpha * F.linear(a, b)
    return product if c is None else product + beta * as_tensor(c)


def _matmul(call: Call) -> Tensor:
    return F.linear(call.x(), call.x(1), call.at(2)) if call.number("linear") else call.x() @ call.x(1)


def _max_pool(call: Call) -> Tensor:
    if call.outputs > 1:
        raise call.refuse("the places of the largest")
    x, kernel = call.x(), call.numbers("kernel_shape") or []
    strides, dilations = _windows(call, kernel)
    x, padding = _padded(x, _pads(call, x, kernel, strides, dilations), -math.inf)
    operations: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d}
    if len(kernel) not in operations:
        raise call.refuse(f"{len(kernel)} sides")
    operation = operations[len(kernel)]
    return operation(x, kernel, strides, padding, dilations, bool(call.number("ceil_mode", 0)))


def _avg_pool(call: Call) -> Tensor:
    x, kernel = call.x(), call.numbers("kernel_shape") or []
    strides, dilations = _windows(call, kernel)
    pads, counts = _pads(call, x, kernel, strides, dilations), bool(call.number("count_include_pad", 0))
    if any(step != 1 for step in dilations) or len(kernel) not in (1, 2) or (pads[: len(kernel)] != pads[len(kernel) :] and not counts):
        raise call.refuse("padding or dilation of its own kind")
    x, padding = _padded(x, pads)
    ceil = bool(call.number("ceil_mode", 0))
    operation: Any = F.avg_pool2d if len(kernel) == 2 else F.avg_pool1d
    found: Tensor = operation(x, kernel, strides, padding, ceil, counts)
    return found


def _global_pool(reduce: Callable[..., Tensor]) -> Operator:
    return lambda call: reduce(call.x(), list(range(2, call.x().dim())), True)


def _batch_norm(call: Call) -> Tensor:
    scale, bias, mean, variance = (call.x(place) for place in range(1, 5))
    return F.batch_norm(call.x(), mean, variance, scale, bias, False, 0.0, call.number("epsilon", 1e-5))


def _layer_norm(call: Call) -> Tensor:
    x, axis = call.x(), call.number("axis", -1)
    return F.layer_norm(x, [int(side) for side in x.shape[axis:]], call.x(1), call.at(2), call.number("epsilon", 1e-5))


def _instance_norm(call: Call) -> Tensor:
    return F.instance_norm(call.x(), None, None, call.x(1), call.x(2), True, 0.0, call.number("epsilon", 1e-5))


def _group_norm(call: Call) -> Tensor:
    scale, bias, groups = call.x(1), call.x(2), call.number("num_groups")
    if call.opset < 21:  # one number a group
        scale, bias = (value.repeat_interleave(call.x().shape[1] // groups) for value in (scale, bias))
    return F.group_norm(call.x(), groups, scale, bias, call.number("epsilon", 1e-5))


def _resize(call: Call) -> Tensor:
    x, mode, how = call.x(), call.number("mode", "nearest"), call.number("coordinate_transformation_mode", "half_pixel")
    scales, sizes = call.at(2 if call.opset > 10 else 1), call.at(3)
    nearest = mode == "nearest" and (how == "asymmetric" or call.kind == "Upsample") and call.number("nearest_mode", "floor") == "floor"
    linear = mode in ("linear", "cubic") and how in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not (nearest or linear) or x.dim() != 4 or call.number("antialias", 0):
        raise call.refuse(f"mode {mode} and coordinates {how}")
    given = [float(scale) for scale in as_tensor(scales).tolist()] if sizes is None and scales is not None else []
    if given[:2] not in ([], [1.0, 1.0]):
        raise call.refuse("other scales than of a map's sides")
    size = [int(side) for side in as_tensor(sizes).tolist()][2:] if sizes is not None else None
    if nearest:
        return F.interpolate(x, size, given[2:] or None, "nearest")
    kind = "bilinear" if mode == "linear" else "bicubic"
    return F.interpolate(x, size, given[2:] or None, kind, align_corners=how == "align_corners")


def _local_response_norm(call: Call) -> Tensor:
    if call.number("size") % 2 == 0:
        raise call.refuse(f"an even size, {call.number('size')}")
    alpha, beta, bias = (call.number(name, usual) for name, usual in {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}.items())
    return F.local_response_norm(call.x(), call.number("size"), alpha, beta, bias)


LAYERS: Mapping[str, Operator] = {
    "AveragePool": _avg_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": lambda call: torch.einsum(call.number("equation"), *(call.x(place) for place in range(len(call.inputs)))),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": lambda call: F.normalize(call.x(), float(call.number("p", 2)), call.number("axis", -1)),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Upsample": _resize,
}
