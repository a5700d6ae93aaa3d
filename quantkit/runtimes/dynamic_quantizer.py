"""ONNX Runtime's own dynamic quantizer on the same float file: one call, no calibration; the baseline of networks that multiply tokens."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from quantkit.export.onnx_file import has_data
from quantkit.runtimes.static_quantizer import quietly

NAME = "onnxruntime quantize_dynamic"


def multiplies_tokens(float_file: Path) -> bool:
    """Whether the network has a MatMul with a constant weight, which this quantizer is for."""
    graph = onnx.load(float_file, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return any(node.op_type == "MatMul" and constants.intersection(node.input) for node in graph.node)


def quantize_in_call(float_file: Path, path: Path, *, reduce_range: bool) -> None:
    """Write its file: int8 weights per channel, activations quantized in each call, 8-bit token tables. `reduce_range` as for `static`."""
    with quietly():
        quantize_dynamic(
            float_file, path, per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8,
            use_external_data_format=has_data(float_file),
        )  # fmt: skip
