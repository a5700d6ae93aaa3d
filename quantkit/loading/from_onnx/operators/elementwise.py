"""Operators that treat each number by itself, or sum up along axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import TYPES, Call, Operator, as_tensor, is_shape, operand

SELU = 1.67326319217681884765625, 1.05070102214813232421875  # alpha and gamma, of the standard
COMMUTATIVE = (torch.add, torch.mul)


def _elementwise(function: Callable[..., Any], on_numbers: Callable[[Any, Any], Any]) -> Operator:
    def run(call: Call) -> Any:
        one, other = call.inputs[:2]
        if is_shape(one) and is_shape(other):
            return _of_numbers(on_numbers, one, other)
        one, other = operand(one), operand(other)
        if isinstance(other, Tensor) and isinstance(one, int | float):  # torch's exporter to ONNX takes no number in the first place
            one, other = (other, one) if function in COMMUTATIVE else (torch.tensor(one, dtype=other.dtype), other)
        return function(one, other)

    return run


def _of_numbers(function: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    if not isinstance(one, list) and not isinstance(other, list):
        return function(one, other)
    length = max(len(value) for value in (one, other) if isinstance(value, list))
    rows = [value * length if isinstance(value, list) and len(value) == 1 else value if isinstance(value, list) else [value] * length
            for value in (one, other)]  # fmt: skip
    return [function(a, b) for a, b in zip(*rows, strict=True)]


def _quotient(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor) and not one.is_floating_point():
        return torch.div(one, other, rounding_mode="trunc")
    return one / other


def _whole_quotient(one: Any, other: Any) -> Any:
    return one // other if not isinstance(one, int) or not isinstance(other, int) or (one >= 0) == (other >= 0) else -(-one // other)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Of any number of inputs."""

    def run(call: Call) -> Any:
        total = call.x(0)
        for place in range(1, len(call.inputs)):
            total = function(total, call.x(place))
        return total

    return run


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.x())


def _extremum(tensors: Callable[[Tensor, Tensor], Tensor], numbers: Callable[[Tensor, Any], Tensor]) -> Operator:
    """Of any number of inputs; with a single number it is a clamp."""

    def run(call: Call) -> Any:
        total = call.inputs[0]
        for other in call.inputs[1:]:
            if isinstance(total, int | float) and isinstance(other, Tensor):
                total, other = other, total
            total = numbers(as_tensor(total), other) if isinstance(other, int | float) else tensors(as_tensor(total), as_tensor(other))
        return total

    return run


def _clip(call: Call) -> Tensor:
    low, high = (call.number(name, call.at(place)) for name, place in (("min", 1), ("max", 2)))
    bounds: list[Any] = [value if value is None or isinstance(value, int | float) else as_tensor(value) for value in (low, high)]
    return call.x() if bounds[0] is bounds[1] is None else torch.clamp(call.x(), *bounds)


def _selu(call: Call) -> Tensor:
    """With torch's numbers it is torch's."""
    alpha, gamma = call.number("alpha", SELU[0]), call.number("gamma", SELU[1])
    if abs(alpha - SELU[0]) + abs(gamma - SELU[1]) < 1e-6:
        return F.selu(call.x())
    found: Tensor = gamma * F.elu(call.x(), alpha)
    return found


def _dropout(call: Call) -> Tensor:
    """Nothing, in inference."""
    if call.at(2) and call.at(1) != 0:
        raise call.refuse("training_mode")
    return call.x()


def _hard_sigmoid(call: Call) -> Tensor:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.x())
    return torch.clamp(alpha * call.x() + beta, 0.0, 1.0)


def _reduce(function: Callable[..., Tensor], empty: float = math.nan) -> Operator:
    """`empty` is what comes of no numbers, where torch has none."""

    def run(call: Call) -> Tensor:
        x, axes, keeps = call.x(), call.numbers("axes", 1), bool(call.number("keepdims", 1))
        if not axes:
            if call.number("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        if not math.isnan(empty) and any(isinstance(side, int) and side == 0 for side in x.shape):
            return torch.full_like(x.sum(axes, keeps), empty > 0 if x.dtype == torch.bool else empty, dtype=x.dtype)
        return function(x, [int(axis) for axis in axes], keeps)

    return run


def _product(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keeps)
    return x


def _place_of(function: Callable[..., Tensor]) -> Operator:
    """The index of the largest or of the least."""

    def run(call: Call) -> Tensor:
        x, axis, keeps = call.x(), call.number("axis", 0), bool(call.number("keepdims", 1))
        found = function(x.flip(axis) if call.number("select_last_index", 0) else x, axis, keeps)
        return x.shape[axis] - 1 - found if call.number("select_last_index", 0) else found

    return run


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        x = call.x()
        axis = call.number("axis", -1 if call.opset >= 13 else 1) % x.dim()
        if call.opset >= 13 or axis == x.dim() - 1:
            return function(x, dim=axis)
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return run


def _cast(call: Call) -> Any:
    value, kind = call.inputs[0], call.number("to")
    if kind not in TYPES:
        raise call.refuse(f"type {kind}")
    return value if (is_shape(value) or isinstance(value, np.ndarray)) and kind in (6, 7) else as_tensor(value).to(TYPES[kind])


def _mod(call: Call) -> Any:
    """The sign is the dividend's with `fmod`, else the divisor's."""
    if call.number("fmod", 0):
        return _elementwise(torch.fmod, lambda a, b: int(math.fmod(a, b)))(call)
    return _elementwise(torch.remainder, lambda a, b: a % b)(call)


def _cumsum(call: Call) -> Tensor:
    x, axis, backwards = call.x(), int(as_tensor(call.inputs[1])), bool(call.number("reverse", 0))
    x = x.flip(axis) if backwards else x
    found = torch.cumsum(x, axis) - (x if call.number("exclusive", 0) else 0)
    return found.flip(axis) if backwards else found


def _where(call: Call) -> Any:
    chosen, one, other = call.inputs
    if isinstance(chosen, list):
        rows = [value if isinstance(value, list) else [value] * len(chosen) for value in (one, other)]
        return [a if flag else b for flag, a, b in zip(chosen, *rows, strict=True)]
    return torch.where(as_tensor(chosen), operand(one), operand(other))


def _prelu(call: Call) -> Tensor:
    x, slope = call.x(), call.x(1)
    if slope.numel() == 1 or (x.dim() > 1 and slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]):
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, slope * x, x)


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _elementwise(torch.add, lambda a, b: a + b),
    "And": _elementwise(torch.logical_and, lambda a, b: a and b),
    "ArgMax": _place_of(torch.argmax),
    "ArgMin": _place_of(torch.argmin),
    "Atan": _unary(torch.atan),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Celu": lambda call: F.celu(call.x(), call.number("alpha", 1.0)),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "CumSum": _cumsum,
    "Div": _elementwise(_quotient, _whole_quotient),
    "Dropout": _dropout,
    "Elu": lambda call: F.elu(call.x(), call.number("alpha", 1.0)),
    "Equal": _elementwise(torch.eq, lambda a, b: a == b),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": lambda call: F.gelu(call.x(), approximate=call.number("approximate", "none")),
    "Greater": _elementwise(torch.gt, lambda a, b: a > b),
    "GreaterOrEqual": _elementwise(torch.ge, lambda a, b: a >= b),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": lambda call: call.inputs[0],
    "LeakyRelu": lambda call: F.leaky_relu(call.x(), call.number("alpha", 0.01)),
    "Less": _elementwise(torch.lt, lambda a, b: a < b),
    "LessOrEqual": _elementwise(torch.le, lambda a, b: a <= b),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "Max": _extremum(torch.maximum, lambda x, number: torch.clamp(x, min=number)),
    "Mean": lambda call: _folded(torch.add)(call) / len(call.inputs),
    "Min": _extremum(torch.minimum, lambda x, number: torch.clamp(x, max=number)),
    "Mish": _unary(F.mish),
    "Mod": _mod,
    "Mul": _elementwise(torch.mul, lambda a, b: a * b),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _elementwise(torch.logical_or, lambda a, b: a or b),
    "PRelu": _prelu,
    "Pow": _elementwise(torch.pow, lambda a, b: a**b),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, axes, keeps: x.abs().sum(axes, keeps)),
    "ReduceL2": _reduce(lambda x, axes, keeps: torch.linalg.vector_norm(x, 2, axes, keeps)),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax, -math.inf),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin, math.inf),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keeps: x.square().sum(axes, keeps)),
    "Relu": _unary(F.relu),
    "Round": _unary(torch.round),
    "Selu": _selu,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _elementwise(torch.sub, lambda a, b: a - b),
    "Sum": _folded(torch.add),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": lambda call: F.threshold(call.x(), call.number("alpha", 1.0), 0.0),
    "Where": _where,
    "Xor": _elementwise(torch.logical_xor, lambda a, b: bool(a) != bool(b)),
}
