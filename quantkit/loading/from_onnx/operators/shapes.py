"""Operators that move numbers about, and arithmetic of shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import Call, Operator, as_grid, as_tensor, is_shape, of_grid


def _shape(call: Call) -> list[Any]:
    sides = list(call.x().shape)
    return sides[slice(call.number("start", 0), call.number("end"))]


def _reshape(call: Call) -> Any:
    sides, value = call.numbers("shape", 1) or [], call.inputs[0]
    grid = as_grid([value] if is_shape(value) and not isinstance(value, list) else value)
    if grid is not None:
        return of_grid(grid.reshape(sides))
    x = call.x()
    if not call.number("allowzero", 0):
        sides = [x.shape[place] if isinstance(side, int) and side == 0 else side for place, side in enumerate(sides)]
    if call.batch is not None:  # the file is of one batch; the network here is of any
        axis = next((axis for axis, side in enumerate(x.shape) if not isinstance(side, int)), len(sides))
        before = all(isinstance(side, int) for side in sides[:axis]) and math.prod(sides[:axis]) == math.prod(x.shape[:axis])
        if before and len(sides) > axis and isinstance(sides[axis], int) and sides[axis] == call.batch:
            sides[axis] = x.shape[axis]
    found: Tensor = x.reshape(sides)
    return found


def _flatten(call: Call) -> Tensor:
    x, axis = call.x(), call.number("axis", 1)
    axis = axis if axis >= 0 else axis + x.dim()
    return x.flatten(1) if axis == 1 and x.dim() > 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(call: Call) -> Any:
    grid = as_grid(call.inputs[0])
    if grid is not None:
        return of_grid(grid.transpose(call.numbers("perm")))
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
    grid = as_grid(call.inputs[0])
    if grid is not None:
        whole = dict.fromkeys(range(grid.ndim), slice(None))
        cut = {axis % grid.ndim: slice(a, None if step < 0 and b < -grid.shape[axis] else b, step)
               for a, b, axis, step in zip(starts, ends, axes, steps, strict=True)}  # fmt: skip
        return of_grid(grid[tuple({**whole, **cut}.values())])
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
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.flatten())
    return found.reshape(*x.shape[: axis % x.dim()], *index.shape, *x.shape[axis % x.dim() + 1 :])


def _gather_elements(call: Call) -> Tensor:
    x, index, axis = call.x(), call.x(1), call.number("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _gather_nd(call: Call) -> Tensor:
    x, index, shared = call.x(), call.x(1), call.number("batch_dims", 0)
    if not 0 <= shared < min(x.dim(), index.dim()):  # ONNX Runtime ends the process
        raise call.refuse(f"batch_dims {shared}")
    places = [
        torch.arange(index.shape[axis]).reshape([-1 if other == axis else 1 for other in range(index.dim() - 1)]) for axis in range(shared)
    ]
    place = (*places, *index.unbind(-1))
    return x[place]


def _scatter(call: Call) -> Tensor:
    x, index, updates, reduction = call.x(), call.x(1), call.x(2), call.number("reduction", "none")
    if reduction == "none":
        return x.index_put(index.unbind(-1), updates)
    deep = index.shape[-1]
    index = torch.where(index < 0, index + torch.tensor(list(x.shape[:deep])), index)
    inner = math.prod(x.shape[deep:])
    rows = sum(column * math.prod(x.shape[axis + 1 : deep]) for axis, column in enumerate(index.unbind(-1)))
    places = (as_tensor(rows).reshape(-1, 1) * inner + torch.arange(inner)).flatten()
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.flatten().scatter_reduce(0, places, updates.flatten(), names[reduction]).reshape(x.shape)


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


def _constant_of_shape(call: Call) -> Any:
    sides, value = call.numbers("shape", 0) or [], call.number("value")
    call.check_size(math.prod(sides))
    number = 0.0 if value is None else value.flatten()[0].item()
    if isinstance(number, int) and not isinstance(number, bool) and len(sides) == 1 and isinstance(sides[0], int):
        return [number] * sides[0]
    return torch.full(sides, number)


def _range(call: Call) -> Any:
    start, end, step = call.inputs
    if all(isinstance(value, int) for value in call.inputs):
        call.check_size(len(range(start, end, step)))
        return list(range(start, end, step))
    return torch.arange(start, end, step)


def _tile(call: Call) -> Tensor:
    return call.x().repeat(call.numbers("repeats", 1) or [])


def _top(call: Call) -> tuple[Tensor, Tensor]:
    (count,) = call.numbers("k", 1) or [1]
    values, places = torch.topk(call.x(), count, call.number("axis", -1), bool(call.number("largest", 1)), bool(call.number("sorted", 1)))
    return values, places


def _one_hot(call: Call) -> Tensor:
    index, values = call.x().long(), call.x(2)
    depth = int(as_tensor(call.inputs[1]).flatten()[0])
    call.check_size(depth * index.numel())
    hot = torch.where(index < 0, index + depth, index).unsqueeze(-1) == torch.arange(depth)  # what lies beyond is nowhere hot
    return torch.where(hot.movedim(-1, call.number("axis", -1)), values[1], values[0])


def _trilu(call: Call) -> Tensor:
    offset = int(call.at(1) or 0)
    return torch.triu(call.x(), offset) if call.number("upper", 1) else torch.tril(call.x(), offset)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.x(), call.number("blocksize")
    if call.number("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    items, channels, height, width = x.shape
    spread = x.reshape(items, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return spread.reshape(items, channels * block**2, height // block, width // block)


SHAPES: Mapping[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter,
    "Shape": _shape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
