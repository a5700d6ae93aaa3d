"""What each ONNX operator is in torch, one row each: `OPERATORS[name](call)`. Opsets 7 to the newest.

Semantics are the standard's (onnx.ai/onnx/operators); tests/test_from_onnx.py holds every row against ONNX Runtime. Vectors of whole
numbers, which are shapes and axes, are lists of ints here, some of them symbols while torch.export traces; scalars are ints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.core.errors import ModelError

# Of TensorProto: half, bfloat16 and double are computed in float32.
FLOATS = dict.fromkeys((1, 10, 11, 16), torch.float32)
TYPES = {**FLOATS, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One node: its `inputs` (None where one is left out), `attributes`, and how many `outputs` are read.

    `batch`: the fixed size of the network's batch in the file, None where it is a symbol there.
    """

    kind: str
    inputs: Sequence[Any]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    batch: int | None = None

    def at(self, place: int) -> Any:
        """The input at `place`, None where there is none."""
        return self.inputs[place] if len(self.inputs) > place else None

    def x(self, place: int = 0) -> Tensor:
        """The input at `place` as a tensor."""
        return as_tensor(self.inputs[place])

    def number(self, name: str, usual: Any = None) -> Any:
        """The attribute of that name."""
        return self.attributes.get(name, usual)

    def numbers(self, name: str, place: int | None = None) -> list[Any] | None:
        """A list: the attribute of that name or, in newer opsets, the input at `place`; None where there is neither."""
        found = self.attributes.get(name)
        given = self.at(place) if found is None and place is not None else found
        if given is None:
            return None
        given = given.tolist() if isinstance(given, Tensor) else given
        return list(given) if isinstance(given, list | tuple) else [given]

    def refuse(self, what: str) -> ModelError:
        """The error for a form of the operator that is not known here."""
        do = "pass the torch model that the file came from, or report this network"
        return ModelError(f"the ONNX file has {self.kind} with {what}", "a form that is translated", do)


Operator = Callable[[Call], Any]


def as_tensor(value: Any) -> Tensor:
    """A list of whole numbers, or one, as the tensor that it is in the file."""
    return value if isinstance(value, Tensor) else torch.tensor(value)


def is_shape(value: Any) -> bool:
    """Whether it is whole numbers that are carried as such."""
    return isinstance(value, (int, list, torch.SymInt))


def _elementwise(function: Callable[..., Any], on_numbers: Callable[[Any, Any], Any]) -> Operator:
    def run(call: Call) -> Any:
        one, other = call.inputs[:2]
        if is_shape(one) and is_shape(other):
            return _of_numbers(on_numbers, one, other)
        return function(*(_operand(value) for value in (one, other)))

    return run


def _operand(value: Any) -> Any:
    """A constant of one number as that number, so that nothing is spread."""
    return value if isinstance(value, int | float | torch.SymInt) else as_tensor(value)


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


def _clip(call: Call) -> Tensor:
    low, high = (call.number(name, call.at(place)) for name, place in (("min", 1), ("max", 2)))
    bounds: list[Any] = [value if value is None or isinstance(value, int | float) else as_tensor(value) for value in (low, high)]
    return torch.clamp(call.x(), *bounds)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        x = call.x()
        axis = call.number("axis", -1 if call.opset >= 13 else 1) % x.dim()
        if call.opset >= 13 or axis == x.dim() - 1:
            return function(x, dim=axis)
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return run


def _hard_sigmoid(call: Call) -> Tensor:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.x())
    return torch.clamp(alpha * call.x() + beta, 0.0, 1.0)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        x, axes, keeps = call.x(), call.numbers("axes", 1), bool(call.number("keepdims", 1))
        if not axes:
            if call.number("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        return function(x, [int(axis) for axis in axes], keeps)

    return run


def _shape(call: Call) -> list[Any]:
    sides = list(call.x().shape)
    return sides[slice(call.number("start", 0), call.number("end"))]


def _reshape(call: Call) -> Any:
    sides, value = call.numbers("shape", 1) or [], call.inputs[0]
    if is_shape(value) and len(sides) == 1:
        return value if isinstance(value, list) else [value]
    x = call.x()
    if not call.number("allowzero", 0):
        sides = [x.shape[place] if isinstance(side, int) and side == 0 else side for place, side in enumerate(sides)]
    items: Any = x.shape[0] if x.dim() else 1
    if call.batch is not None and sides and isinstance(sides[0], int) and sides[0] == call.batch and isinstance(items, torch.SymInt):
        sides[0] = items  # the file is of one batch; the network here is of any
    found: Tensor = x.reshape(sides)
    return found


def _flatten(call: Call) -> Tensor:
    x, axis = call.x(), call.number("axis", 1)
    axis = axis if axis >= 0 else axis + x.dim()
    return x.flatten(1) if axis == 1 and x.dim() > 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(call: Call) -> Tensor:
    return call.x().permute(call.numbers("perm") or list(reversed(range(call.x().dim()))))


def _squeeze(call: Call) -> Any:
    axes, value = call.numbers("axes", 1), call.inputs[0]
    if isinstance(value, list):
        return value[0]
    x = call.x()
    axes = [place for place, side in enumerate(x.shape) if isinstance(side, int) and side == 1] if axes is None else axes
    return x.squeeze([int(axis) for axis in axes])


def _unsqueeze(call: Call) -> Any:
    axes, value = call.numbers("axes", 1) or [], call.inputs[0]
    if is_shape(value) and not isinstance(value, list):
        return [value]
    x = call.x()
    for axis in sorted(int(axis) % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call) -> Any:
    if all(isinstance(value, list) for value in call.inputs):
        return [side for value in call.inputs for side in value]
    return torch.cat([as_tensor(value) for value in call.inputs], call.number("axis"))


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis, sizes = call.x(), call.number("axis", 0), call.numbers("split", 1)
    if sizes is None:
        each = math.ceil(int(x.shape[axis]) / call.outputs)
        return torch.split(x, each, axis)
    return torch.split(x, [int(size) for size in sizes], axis)


def _slice(call: Call) -> Any:
    starts, ends = (call.numbers(name, place) or [] for name, place in (("starts", 1), ("ends", 2)))
    axes, steps = call.numbers("axes", 3) or list(range(len(starts))), call.numbers("steps", 4) or [1] * len(starts)
    if isinstance(call.inputs[0], list):
        return call.inputs[0][slice(starts[0], ends[0], steps[0])]
    x = call.x()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            kept = list(range(int(x.shape[axis])))[slice(start, None if end < -int(x.shape[axis]) else end, step)]
            x = x.index_select(axis, torch.tensor(kept))
        else:
            x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return x


def _gather(call: Call) -> Any:
    value, index, axis = call.inputs[0], call.inputs[1], call.number("axis", 0)
    if isinstance(value, list):
        return [value[place] for place in index] if isinstance(index, list) else value[int(index)]
    x = as_tensor(value)
    if isinstance(index, int):
        return x.select(axis, index)
    index = as_tensor(index)
    if x.dim() == 2 and axis == 0 and x.is_floating_point():
        return F.embedding(index, x)
    found = x.index_select(axis, index.flatten())
    return found.reshape(*x.shape[: axis % x.dim()], *index.shape, *x.shape[axis % x.dim() + 1 :])


def _pad(call: Call) -> Tensor:
    x, pads, axes = call.x(), call.numbers("pads", 1) or [], call.numbers("axes", 3)
    axes = list(range(x.dim())) if axes is None else [int(axis) % x.dim() for axis in axes]
    sides = [0] * 2 * x.dim()
    for place, axis in enumerate(axes):
        sides[2 * (x.dim() - 1 - axis) : 2 * (x.dim() - axis)] = [int(pads[place]), int(pads[place + len(axes)])]
    while len(sides) > 2 and sides[-2:] == [0, 0]:
        sides = sides[:-2]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[call.number("mode", "constant")]
    filling = call.number("value", call.at(2))
    return F.pad(x, sides, mode, float(filling or 0.0) if mode == "constant" else None)


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


def _depth_to_space(call: Call) -> Tensor:
    if call.number("mode", "DCR") == "CRD":
        return F.pixel_shuffle(call.x(), call.number("blocksize"))
    x, block = call.x(), call.number("blocksize")
    items, channels, height, width = x.shape
    spread = x.reshape(items, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return spread.reshape(items, channels // block**2, height * block, width * block)


def _expand(call: Call) -> Tensor:
    x, sides = call.x(), call.numbers("shape", 1) or []
    own = [1] * (len(sides) - x.dim()) + list(x.shape)
    sides = [1] * (x.dim() - len(sides)) + sides
    return x.expand([mine if isinstance(side, int) and side == 1 else side for mine, side in zip(own, sides, strict=True)])


def _cast(call: Call) -> Any:
    value, kind = call.inputs[0], call.number("to")
    if kind not in TYPES:
        raise call.refuse(f"type {kind}")
    return value if is_shape(value) and kind in (6, 7) else as_tensor(value).to(TYPES[kind])


def _constant_of_shape(call: Call) -> Any:
    sides, value = call.numbers("shape", 0) or [], call.number("value")
    number = 0.0 if value is None else value.flatten()[0].item()
    if isinstance(number, int) and not isinstance(number, bool) and len(sides) == 1 and isinstance(sides[0], int):
        return [number] * sides[0]
    return torch.full(sides, number)


def _where(call: Call) -> Any:
    chosen, one, other = call.inputs
    if isinstance(chosen, list):
        rows = [value if isinstance(value, list) else [value] * len(chosen) for value in (one, other)]
        return [a if flag else b for flag, a, b in zip(chosen, *rows, strict=True)]
    return torch.where(as_tensor(chosen), _operand(one), _operand(other))


def _range(call: Call) -> Any:
    start, end, step = call.inputs
    if all(isinstance(value, int) for value in call.inputs):
        return list(range(start, end, step))
    return torch.arange(start, end, step)


def _trilu(call: Call) -> Tensor:
    offset = int(call.at(1) or 0)
    return torch.triu(call.x(), offset) if call.number("upper", 1) else torch.tril(call.x(), offset)


def _prelu(call: Call) -> Tensor:
    return F.prelu(call.x(), call.x(1).flatten())


def _pow(one: Any, other: Any) -> Any:
    return torch.pow(one, other)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _elementwise(torch.add, lambda a, b: a + b),
    "And": _elementwise(torch.logical_and, lambda a, b: a and b),
    "AveragePool": _avg_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _unary(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _elementwise(_quotient, _whole_quotient),
    "Dropout": lambda call: call.x(),
    "Elu": lambda call: F.elu(call.x(), call.number("alpha", 1.0)),
    "Equal": _elementwise(torch.eq, lambda a, b: a == b),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": lambda call: F.gelu(call.x(), approximate=call.number("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "Greater": _elementwise(torch.gt, lambda a, b: a > b),
    "GreaterOrEqual": _elementwise(torch.ge, lambda a, b: a >= b),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": lambda call: call.inputs[0],
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda call: F.leaky_relu(call.x(), call.number("alpha", 0.01)),
    "Less": _elementwise(torch.lt, lambda a, b: a < b),
    "LessOrEqual": _elementwise(torch.le, lambda a, b: a <= b),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": _matmul,
    "Max": _extremum(torch.maximum, lambda x, number: torch.clamp(x, min=number)),
    "MaxPool": _max_pool,
    "Mean": lambda call: _folded(torch.add)(call) / len(call.inputs),
    "Min": _extremum(torch.minimum, lambda x, number: torch.clamp(x, max=number)),
    "Mish": _unary(F.mish),
    "Mul": _elementwise(torch.mul, lambda a, b: a * b),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _elementwise(torch.logical_or, lambda a, b: a or b),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _elementwise(_pow, lambda a, b: a**b),
    "Range": _range,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _unary(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "Selu": _unary(F.selu),
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus),
    "SpaceToDepth": lambda call: _space_to_depth(call.x(), call.number("blocksize")),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub, lambda a, b: a - b),
    "Sum": _folded(torch.add),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda call: call.x().repeat(call.numbers("repeats", 1) or []),
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "Where": _where,
}


def _space_to_depth(x: Tensor, block: int) -> Tensor:
    items, channels, height, width = x.shape
    spread = x.reshape(items, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return spread.reshape(items, channels * block**2, height // block, width // block)


def constant(array: np.ndarray[Any, Any]) -> Any:
    """A constant as operators take it: one number as a number, a vector of whole numbers as a list, else a tensor, floats as float32."""
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.size == 1 and array.ndim == 0 and array.dtype.kind in "fiu":
        return cast("float | int", array.item())
    if array.ndim == 1 and array.dtype == np.int64:
        return [int(number) for number in array]
    return torch.from_numpy(np.array(array))
