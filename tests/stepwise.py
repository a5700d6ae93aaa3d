"""A file computed one node at a time in ONNX Runtime: nothing is fused, and every rounding to half that the file asks for is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor


def run_stepwise(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's outputs by name, floats as float32."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy()) for name, value in inputs.items()}
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    for node in model.graph.node:
        given = [name for name in dict.fromkeys(node.input) if name in values]
        graph = helper.make_graph(
            [node],
            "step",
            [helper.make_tensor_value_info(name, kinds[name], None) for name in given],
            [helper.make_tensor_value_info(name, kinds[name], None) for name in node.output],
            [constants[name] for name in dict.fromkeys(node.input) if name in constants],
        )
        step = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        session = onnxruntime.InferenceSession(step.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        results = session.run_with_ort_values(list(node.output), {name: values[name] for name in given})
        values |= dict(zip(node.output, results, strict=True))
    return {value.name: torch.from_numpy(values[value.name].numpy()).float() for value in model.graph.output}


def types(path: Path) -> dict[str, int]:
    """The ONNX type of every value, as far as inference tells."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values} | {t.name: t.data_type for t in model.graph.initializer}


def constants(path: Path) -> dict[str, object]:
    """Every initializer."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
