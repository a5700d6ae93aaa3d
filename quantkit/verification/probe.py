"""What ONNX Runtime really does on this processor, measured in a second: whether int8 sums saturate, and what int8 gains for which layer.

The name of a processor shows neither: a virtual machine may hide its instructions, and a depthwise convolution gains nothing on most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantkit.allocation.costs.timing import interleave
from quantkit.runtimes.evaluation import open_session

CHANNELS, CODE = 64, 200
ROUNDS = 60
LAYERS: Mapping[str, tuple[int, int, int]] = {  # kernel size, groups, side of the image
    "convolution 3x3, 64 channels": (3, 1, 28),
    "convolution 1x1, 64 channels": (1, 1, 28),
    "depthwise convolution 3x3, 64 channels": (3, CHANNELS, 28),
}


def saturates() -> bool:
    """Whether a convolution of the largest codes comes out wrong, as it does where products are added in 16-bit pairs."""
    scale = np.float32(255 * 127 * CHANNELS / CODE)
    constants: dict[str, NDArray[Any]] = {
        "one": np.float32(1), "zero": np.uint8(0), "w": np.full((8, CHANNELS, 1, 1), 127, np.int8), "w_zero": np.int8(0), "scale": scale,
    }  # fmt: skip
    node = helper.make_node("QLinearConv", ["x", "one", "zero", "w", "one", "w_zero", "scale", "zero"], ["y"])
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        path = _saved([node], constants, (1, CHANNELS, 4, 4), TensorProto.UINT8, Path(folder))
        (codes,) = open_session(path, threads=1).run({"x": np.full((1, CHANNELS, 4, 4), 255, np.uint8)})
    return bool((codes != CODE).any())


def gains() -> dict[str, float]:
    """The time of each of LAYERS in int8, over its time in float32, one thread."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        for name, (size, groups, side) in LAYERS.items():
            shape = (1, CHANNELS, side, side)
            sessions = [open_session(_chain(size, groups, shape, int8, Path(folder)), threads=1) for int8 in (True, False)]
            times = interleave(sessions, {"x": np.ones(shape, np.float32)}, rounds=ROUNDS)
            found[name] = float(np.median(times[0] / times[1]))
    return found


def _chain(size: int, groups: int, shape: tuple[int, ...], int8: bool, folder: Path) -> Path:
    """Four such layers in a row, so that the way in and out weighs little."""
    random = np.random.default_rng(0)
    codes = random.integers(-60, 61, (CHANNELS, CHANNELS // groups, size, size)).astype(np.int8)
    constants: dict[str, NDArray[Any]] = {
        "scale": np.float32(0.02), "zero": np.uint8(0), "codes": codes,
        "w_scale": np.full(CHANNELS, 0.01, np.float32), "w_zero": np.zeros(CHANNELS, np.int8), "w": (0.01 * codes).astype(np.float32),
    }  # fmt: skip
    nodes, value = [], "x"

    def quantized(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_codes"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_codes", "scale", "zero"], [f"{name}_real"]))
        return f"{name}_real"

    for turn in range(4):
        weight, padding = "w", [size // 2] * 4
        if int8:
            value, weight = quantized(value), f"w{turn}"
            nodes.append(helper.make_node("DequantizeLinear", ["codes", "w_scale", "w_zero"], [weight], axis=0))
        nodes.append(helper.make_node("Conv", [value, weight], [f"conv{turn}"], pads=padding, group=groups))
        value = f"conv{turn}"
    last = quantized(value) if int8 else value
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return _saved(nodes, constants, shape, TensorProto.FLOAT, folder)


def _saved(nodes: list[onnx.NodeProto], constants: Mapping[str, NDArray[Any]], shape: tuple[int, ...], kind: int, folder: Path) -> Path:
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in used]
    sides = ["n", "c", "h", "w"]
    graph = helper.make_graph(
        nodes, "probe", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, sides)], tensors
    )
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path
