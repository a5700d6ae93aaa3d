"""The weight codes that integer kernels really multiply, read from the runtime's optimised graph, and whether their sums can saturate.

Whatever stored them, there they are constants: narrow codes are unpacked, and only what runs in int8 has any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from quantkit.core.graph import Layer
from quantkit.core.numerics.saturation import pairs_at_risk
from quantkit.export.executed_layers import plain
from quantkit.targets.ort_cpu import product_rows

# Where each kernel reads the weight, and the zero point whose type is the activation's (0: always unsigned).
KERNELS: Mapping[str, tuple[int, int]] = {
    "QLinearConv": (3, 2),
    "QGemm": (3, 2),
    "QLinearMatMul": (3, 2),
    "ConvInteger": (1, 2),
    "MatMulInteger": (1, 2),
    "MatMulIntegerToFloat": (1, 4),
    "DynamicQuantizeMatMul": (1, 0),
}


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """`codes` [output channels, input channels of a group, …] of the kernel of that node; `unsigned`: its activation codes are so."""

    name: str
    convolution: bool
    groups: int
    codes: NDArray[np.generic]
    unsigned: bool

    @property
    def can_saturate(self) -> bool:
        """Whether some inputs make a sum of two u8×s8 products leave 16 bits, on a processor that adds them so."""
        if not self.unsigned or self.codes.dtype != np.int8:
            return False  # products of other types are widened first
        layer = Layer(self.name, "conv" if self.convolution else "linear", self.name, self.name, (), groups=self.groups)
        rows, paired = product_rows(layer, torch.from_numpy(self.codes.copy()))
        return paired and bool(pairs_at_risk(rows).any())


def read_integer_weights(optimized: Path) -> tuple[IntegerWeight, ...]:
    """The constant weights of the integer kernels in an optimised graph, in its order."""
    graph = onnx.load(optimized).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        weight, zero = KERNELS.get(node.op_type, (0, 0))
        tensor = constants.get(node.input[weight]) if 0 < weight < len(node.input) else None
        if tensor is None or len(tensor.dims) < 2:
            continue
        codes = numpy_helper.to_array(tensor)
        attributes = {entry.name: entry.i for entry in node.attribute}
        convolution = "Conv" in node.op_type
        if not convolution and not attributes.get("transB", 0):
            codes = codes.swapaxes(-1, -2)
        codes = codes if convolution else codes.reshape(-1, codes.shape[-1])
        point = constants.get(node.input[zero]) if 0 < zero < len(node.input) else None
        unsigned = point is None or point.data_type == onnx.TensorProto.UINT8
        found.append(IntegerWeight(node.name, convolution, attributes.get("group", 1), codes, unsigned))
    return tuple(found)


def layers_at_risk(optimized: Path, names: Mapping[str, str]) -> tuple[str, ...]:
    """The layers of an optimised graph, by `names` of nodes, with neighbouring codes whose products can leave 16 bits."""
    found = (plain(weight.name) for weight in read_integer_weights(optimized) if weight.can_saturate)
    return tuple(dict.fromkeys(names.get(name, name) for name in found))
