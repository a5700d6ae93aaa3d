"""Resizing of maps: by torch's interpolation, and axis by axis where torch has no such form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper
from onnxruntime import InferenceSession
from torch import Tensor

from quantkit.loading.boundary import foreign
from quantkit.loading.from_onnx.operators.call import Call, Operator

OF_ONE_AXIS = (
    "mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "antialias", "extrapolation_value",
)  # fmt: skip
MOST_OF_AN_AXIS = 1 << 24  # numbers along it, times those that come of them: a matrix of so many is made
SCALES_OPTIONAL = 13  # the opset; before it they are there and empty where sizes are given


def _resize(call: Call) -> Tensor:
    x, mode, how = call.x(), call.number("mode", "nearest"), call.number("coordinate_transformation_mode", "half_pixel")
    wanted = _wanted(call, x)
    nearest = mode == "nearest" and (how == "asymmetric" or call.kind == "Upsample") and call.number("nearest_mode", "floor") == "floor"
    linear = mode in ("linear", "cubic") and how in ("half_pixel", "pytorch_half_pixel", "align_corners")
    usual = call.number("cubic_coeff_a", -0.75) == -0.75 and not call.number("exclude_outside", 0) and not call.number("antialias", 0)
    exact = all(isinstance(value, int) or float(value * int(x.shape[axis])).is_integer() for axis, value in wanted.items())
    single = how == "pytorch_half_pixel" and 1 in wanted.values()  # the standard takes the first number, torch the middle
    if not ((nearest or linear) and usual and exact and not single and x.dim() == 4 and set(wanted) <= {2, 3}):
        return _by_axes(call, x, wanted)
    by_factor = call.at(3) is None
    size = None if by_factor else [int(wanted.get(axis, x.shape[axis])) for axis in (2, 3)]
    factors = [float(wanted.get(axis, 1.0)) for axis in (2, 3)] if by_factor else None
    kind = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]
    return F.interpolate(x, size, factors, kind, align_corners=None if nearest else how == "align_corners")


def _wanted(call: Call, x: Tensor) -> dict[int, int | float]:
    """By axis that changes its size, or a factor."""
    factors, sizes = call.number("scales"), call.at(3)
    axes = [axis % x.dim() for axis in call.numbers("axes") or range(x.dim())]
    if sizes is None:
        if factors is None:
            raise call.refuse("factors that are computed")
        return {axis: factor for axis, factor in zip(axes, factors, strict=True) if factor != 1.0}
    rows = dict(zip(axes, sizes, strict=True))
    policy = call.number("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return {axis: int(size) for axis, size in rows.items() if not isinstance(x.shape[axis], int) or size != x.shape[axis] or axis > 1}
    scale = (min if policy == "not_larger" else max)(size / int(x.shape[axis]) for axis, size in rows.items())
    return {axis: math.floor(int(x.shape[axis]) * scale + 0.5) for axis in rows}


def _by_axes(call: Call, x: Tensor, wanted: Mapping[int, int | float]) -> Tensor:
    """Each axis by itself, as what the runtime makes of unit vectors along it."""
    roi, axes = call.number("roi", ()), [axis % x.dim() for axis in call.numbers("axes") or range(x.dim())]
    for axis, size in wanted.items():
        place, part = axes.index(axis), (0.0, 1.0)
        if len(roi) == 2 * len(axes):
            part = roi[place], roi[place + len(axes)]
        length = int(x.shape[axis])
        made = size if isinstance(size, int) else length * size
        if not length * max(length, made) <= MOST_OF_AN_AXIS:  # nor for a factor that is no number
            raise call.refuse(f"{length} numbers along an axis, and {made:.0f} of them")
        ends = _resized(call, np.zeros((1, length), np.float32), size, part)[0]
        matrix = _resized(call, np.eye(length, dtype=np.float32), size, part) - ends
        if set(np.unique(matrix)) <= {0.0, 1.0} and not ends.any() and (matrix.sum(0) == 1).all():
            x = x.index_select(axis, torch.tensor(matrix.argmax(0).tolist()))
        else:
            x = (x.movedim(axis, -1) @ torch.tensor(matrix.tolist()) + torch.tensor(ends.tolist())).movedim(-1, axis)
    return x


def _resized(call: Call, rows: NDArray[np.float32], size: int | float, part: tuple[float, float]) -> NDArray[Any]:
    """Each row resized by ONNX Runtime. Raises ModelError for what it refuses."""
    given = {name: call.attributes[name] for name in OF_ONE_AXIS if name in call.attributes}
    ends = [0.0, 0.0, 0.0, part[0], 1.0, 1.0, 1.0, part[1]]
    inputs: dict[str, NDArray[Any]] = {"roi": np.array(ends, np.float32)}
    if isinstance(size, int):
        inputs["sizes"] = np.array([1, len(rows), 1, size], np.int64)
        if call.opset < SCALES_OPTIONAL:
            inputs["scales"] = np.zeros(0, np.float32)
    else:
        inputs["scales"] = np.array([1, 1, 1, size], np.float32)
    names = ["x", *(name if name in inputs else "" for name in ("roi", "scales", "sizes"))]
    node = helper.make_node("Resize", names, ["y"], **given)
    value, result = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in inputs.items()]
    graph = helper.make_graph([node], "one axis", [value], [result], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", max(min(call.opset, 19), 11))], ir_version=8)
    with foreign("ONNX Runtime refuses a Resize of the file", "one that it runs", "export it again"):
        session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found: NDArray[Any] = session.run(None, {"x": rows[None, :, None, :]})[0]
    return found[0, :, 0, :]


RESIZING: Mapping[str, Operator] = {"Resize": _resize, "Upsample": _resize}
