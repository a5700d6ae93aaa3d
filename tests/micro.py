"""Micro-graphs: a few operators with Q/DQ around them, built by hand, as other tools write them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantkit.runtimes.evaluation import open_session

CHANNELS, FEATURES = 16, 32
U8, S8, LOWEST = np.uint8(0), np.int8(0), np.int8(-128)
INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "MatMulNBits")


class Micro:
    """Every method takes and returns names of values; `x` is the input."""

    def __init__(self, zero: Any = U8, shape: tuple[int, ...] = (1, CHANNELS, 8, 8), seed: int = 0) -> None:
        self.zero, self.shape, self.random = zero, shape, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def const(self, array: Any, kind: int | None = None) -> str:
        name = f"c{len(self.constants)}"
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if kind is not None:
            tensor = helper.make_tensor(name, kind, np.shape(array), np.asarray(array).ravel())
        self.constants.append(tensor)
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def q(self, x: str, zero: Any = None, scale: Any = 0.02) -> str:
        zero = self.zero if zero is None else zero
        return self.op("QuantizeLinear", x, self.const(np.float32(scale)), self.const(zero))

    def dq(self, codes: str, zero: Any = None, scale: Any = 0.02) -> str:
        zero = self.zero if zero is None else zero
        return self.op("DequantizeLinear", codes, self.const(np.float32(scale)), self.const(zero))

    def qdq(self, x: str, zero: Any = None, scale: Any = 0.02) -> str:
        return self.dq(self.q(x, zero, scale), zero, scale)

    def weight(self, *shape: int, dtype: Any = np.int8, axis: int = 0, largest: int = 60) -> str:
        """Codes of at most `largest` around the zero point, one scale for each slice along `axis`."""
        middle = 128 if dtype == np.uint8 else 0
        codes = self.random.integers(-largest, largest + 1, shape) + middle
        channels = shape[axis]
        inputs = [
            self.const(codes.astype(dtype)),
            self.const(np.full(channels, 0.01, np.float32)),
            self.const(np.full(channels, middle).astype(dtype)),
        ]
        return self.op("DequantizeLinear", *inputs, axis=axis)

    def real(self, *shape: int) -> str:
        return self.const(self.random.normal(0, 0.3, shape).astype(np.float32))

    def conv(self, x: str, weight: str | None = None, bias: bool = True, **attributes: Any) -> str:
        weight = weight or self.weight(CHANNELS, CHANNELS, 3, 3)
        inputs = [x, weight, self.real(CHANNELS)] if bias else [x, weight]
        return self.op("Conv", *inputs, pads=[1, 1, 1, 1], **attributes)

    def model(self, output: str, opset: int = 21, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        sides = [f"side{axis}" for axis in range(len(self.shape))]
        graph = helper.make_graph(
            self.nodes, "micro",
            [helper.make_tensor_value_info("x", kind, self.shape)], [helper.make_tensor_value_info(output, kind, sides)],
            self.constants,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operations that ONNX Runtime makes of it."""
    path, optimized = folder / "micro.onnx", folder / "optimized.onnx"
    onnx.save(model, path)
    open_session(path, threads=1, optimized=optimized)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def runs_in_int8(found: Counter[str], kind: str) -> bool:
    """Whether an operation of that kind is among the integer kernels and among no others."""
    plain = sum(count for name, count in found.items() if name in (kind, f"Fused{kind}"))
    names = {"Conv": "QLinearConv", "Add": "QLinearAdd", "Gemm": "QGemm", "MatMul": "QLinearMatMul", "Concat": "QLinearConcat"}
    return found[names[kind]] > 0 and plain == 0


def feeds(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    shape = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)}


INT4 = ml_dtypes.int4
