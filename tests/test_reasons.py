"""The reasons for which operations stay float are true: what is said to have no int8 kernel is tried between Q and DQ in the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantkit.network.operations import FLOAT_ONLY, NO_KERNEL, STAYS_FLOAT

SHAPE = (2, 4, 6, 6)
# By torch's name: the operation in ONNX, how many codes it reads, its constants, its attributes.
FORMS: dict[str, tuple[str, int, list[np.ndarray], dict[str, Any]]] = {
    "_native_batch_norm_legit_no_training": ("BatchNormalization", 1, [np.ones(4, np.float32)] * 4, {}),
    "abs": ("Abs", 1, [], {}),
    "div": ("Div", 2, [], {}),
    "elu": ("Elu", 1, [], {}),
    "exp": ("Exp", 1, [], {}),
    "gelu": ("Gelu", 1, [], {}),
    "group_norm": ("GroupNormalization", 1, [np.ones(4, np.float32)] * 2, {"num_groups": 2}),
    "hardsigmoid": ("HardSigmoid", 1, [], {}),
    "hardswish": ("HardSwish", 1, [], {}),
    "instance_norm": ("InstanceNormalization", 1, [np.ones(4, np.float32)] * 2, {}),
    "layer_norm": ("LayerNormalization", 1, [np.ones(6, np.float32)] * 2, {}),
    "maximum": ("Max", 2, [], {}),
    "mean": ("ReduceMean", 1, [np.array([3])], {}),
    "minimum": ("Min", 2, [], {}),
    "mish": ("Mish", 1, [], {}),
    "pow": ("Pow", 1, [np.array(2.0, np.float32)], {}),
    "prelu": ("PRelu", 1, [np.full((4, 1, 1), 0.1, np.float32)], {}),
    "softplus": ("Softplus", 1, [], {}),
    "sqrt": ("Sqrt", 1, [], {}),
    "sub": ("Sub", 2, [], {}),
    "tanh": ("Tanh", 1, [], {}),
}


def optimized(kind: str, coded: int, constants: list[np.ndarray], attributes: dict[str, Any], folder: Path) -> list[onnx.NodeProto]:
    """What the runtime makes of DequantizeLinear → `kind` → QuantizeLinear."""
    grid = [numpy_helper.from_array(np.array(0.05, np.float32), "scale"), numpy_helper.from_array(np.array(7, np.uint8), "zero")]
    others = [numpy_helper.from_array(array, f"constant_{place}") for place, array in enumerate(constants)]
    codes = [f"codes_{place}" for place in range(coded)]
    nodes = [helper.make_node("DequantizeLinear", [name, "scale", "zero"], [f"{name}_real"]) for name in codes]
    reads = [*(f"{name}_real" for name in codes), *(tensor.name for tensor in others)]
    nodes += [helper.make_node(kind, reads, ["y"], **attributes), helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["out"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, SHAPE) for name in codes]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("out", TensorProto.UINT8, None)], [*grid, *others])
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(folder / "optimized.onnx"), 3
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return list(onnx.load(folder / "optimized.onnx").graph.node)


def is_int8(nodes: list[onnx.NodeProto]) -> bool:
    """Whether codes are computed with: no DequantizeLinear is left in front of anything."""
    return not any(node.op_type == "DequantizeLinear" for node in nodes)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_what_is_said_to_have_no_int8_kernel_is_computed_in_float(name: str, tmp_path: Path) -> None:
    assert not is_int8(optimized(*FORMS[name], tmp_path))


@pytest.mark.parametrize("kind", ["Sigmoid", "LeakyRelu", "GlobalAveragePool"])
def test_what_has_one_is_seen_to_have_it(kind: str, tmp_path: Path) -> None:
    nodes = optimized(kind, 1, [], {}, tmp_path)
    assert is_int8(nodes) and any(node.op_type == f"QLinear{kind}" for node in nodes)


def test_every_reason_of_that_kind_is_tried() -> None:
    assert {name for name, reason in STAYS_FLOAT.items() if reason == NO_KERNEL} == set(FORMS) == set(FLOAT_ONLY)
