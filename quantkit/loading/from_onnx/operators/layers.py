"""Operators that are layers: convolutions, products with matrices, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import Call, Operator, as_tensor
from quantkit.loading.from_onnx.operators.windows import halves, padded, pads_of, windows


def _conv(call: Call) -> Tensor:
    x, weight, bias = call.x(), call.x(1), call.at(2)
    kernel = list(weight.shape[2:])
    strides, dilations = windows(call, kernel)
    pads, padding = pads_of(call, x, kernel, strides, dilations), [0] * len(kernel)
    if pads[: len(kernel)] == pads[len(kernel) :]:
        padding = pads[: len(kernel)]
    else:
        x = padded(x, pads)
    operations: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    if len(kernel) not in operations:
        raise call.refuse(f"{len(kernel)} sides")
    return operations[len(kernel)](x, weight, bias, strides, padding, dilations, call.number("group", 1))


def _conv_transpose(call: Call) -> Tensor:
    x, weight, bias = call.x(), call.x(1), call.at(2)
    kernel = list(weight.shape[2:])
    operations: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    if len(kernel) not in operations:
        raise call.refuse(f"{len(kernel)} sides")
    strides, dilations = windows(call, kernel)
    pads, more = call.numbers("pads") or [0] * 2 * len(kernel), list(call.numbers("output_padding") or [0] * len(kernel))
    mode, sizes = call.number("auto_pad", "NOTSET"), call.numbers("output_shape")
    if sizes or mode.startswith("SAME"):
        sizes = sizes or [int(side) * step for side, step in zip(x.shape[2:], strides, strict=True)]
        for place, (side, step, width, apart) in enumerate(zip(x.shape[2:], strides, kernel, dilations, strict=True)):
            total = (int(side) - 1) * step + more[place] + (width - 1) * apart + 1 - sizes[-len(kernel) :][place]
            more[place] += max(-total, 0)
            pads[place], pads[len(kernel) + place] = halves(max(total, 0), mode)
    alike = pads[: len(kernel)] == pads[len(kernel) :]
    padding = pads[: len(kernel)] if alike else [0] * len(kernel)
    found = operations[len(kernel)](x, weight, bias, strides, padding, more, call.number("group", 1), dilations)
    return found if alike else padded(found, [-pad for pad in pads])


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


def _batch_norm(call: Call) -> Tensor:
    if call.number("training_mode", 0):
        raise call.refuse("statistics of the batch (training_mode)")
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


def _local_response_norm(call: Call) -> Tensor:
    if call.number("size") % 2 == 0:
        raise call.refuse(f"an even size, {call.number('size')}")
    alpha, beta, bias = (call.number(name, usual) for name, usual in {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}.items())
    return F.local_response_norm(call.x(), call.number("size"), alpha, beta, bias)


LAYERS: Mapping[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": lambda call: torch.einsum(call.number("equation"), *(call.x(place) for place in range(len(call.inputs)))),
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": lambda call: F.normalize(call.x(), float(call.number("p", 2)), call.number("axis", -1)),
    "MatMul": _matmul,
}
