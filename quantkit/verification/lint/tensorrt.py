"""Rules of TensorRT's explicit quantization: what its parser refuses, and what keeps its layers out of int8.

The sources are NVIDIA's (docs.nvidia.com/deeplearning/tensorrt: "Working with Quantized Types", operators Quantize and Dequantize,
"Q/DQ Layer-Placement Recommendations") and the onnx-tensorrt parser's docs/operators.md. No engine was built here to check them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantkit.verification.lint.graph_view import WEIGHTED, Quantizer, View, attribute, read
from quantkit.verification.lint.rule import Found, Rule, at

INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")
PRODUCTS = {"MatMul", "Gemm", "Transpose", "Conv", "ConvTranspose"}  # of convolutions another rule tells
LEAST_CHANNELS = 16
MOST_FILTER = 32


def _quantizers(view: View) -> Iterator[Quantizer]:
    for node in view.of_kind("QuantizeLinear"):
        yield view.quantizer(node)
    for node in view.of_kind("DequantizeLinear"):
        yield view.quantizer(node)


def _biases(view: View) -> set[str]:
    return {read(node, 2) for node in view.of_kind("Conv", "Gemm", "ConvTranspose") if read(node, 2)}


def unsigned_codes(view: View) -> Iterator[Found]:
    """uint8 codes."""
    for quantizer in _quantizers(view):
        if quantizer.bits == 8 and not quantizer.signed:
            yield at(quantizer.node, "is rejected: codes must be signed, and this zero point is uint8")


def shifted_codes(view: View) -> Iterator[Found]:
    """A zero point that is not 0."""
    for quantizer in _quantizers(view):
        if quantizer.zero_point is not None and quantizer.signed and (quantizer.zero_point.astype(np.int64) != 0).any():
            yield at(quantizer.node, "is rejected: zero points must be 0")


def wide_codes(view: View) -> Iterator[Found]:
    """Codes of 16 bits."""
    for quantizer in _quantizers(view):
        if quantizer.bits == 16:
            yield at(quantizer.node, "is rejected: there are no 16-bit codes")


def coded_bias(view: View) -> Iterator[Found]:
    """A quantized bias."""
    for name in sorted(_biases(view)):
        quantizer = view.dequantizer(name)
        if quantizer is not None:
            yield at(quantizer.node, "is rejected: a bias must be float, int32 codes are no activation type")


def integer_operators(view: View) -> Iterator[Found]:
    """Operators on integers."""
    for node in view.of_kind(*INTEGER_OPERATORS):
        yield at(node, f"is rejected: there is no {node.op_type}, only QuantizeLinear and DequantizeLinear around plain operators")


def foreign(view: View) -> Iterator[Found]:
    """Operators of com.microsoft."""
    for node in view.nodes:
        if node.domain == "com.microsoft":
            yield at(node, f"is rejected: {node.op_type} is ONNX Runtime's own")


def computed_weight(view: View) -> Iterator[Found]:
    """Weight codes that nodes compute."""
    for node in view.of_kind("DequantizeLinear"):
        quantizer = view.quantizer(node)
        producer = view.producers.get(quantizer.source)
        if producer is not None and producer.op_type != "QuantizeLinear" and view.has_constant_codes(quantizer):
            yield at(node, f"is rejected: a weight's codes are an initializer, and these come from a {producer.op_type}")


def vector_activation(view: View) -> Iterator[Found]:
    """An activation with a scale for each channel."""
    for quantizer in _quantizers(view):
        constant = (
            view.has_constant_codes(quantizer) if quantizer.node.op_type == "DequantizeLinear" else quantizer.source in view.initializers
        )
        if quantizer.scale is not None and quantizer.scale.size > 1 and not constant:
            yield at(quantizer.node, "is rejected: activations have one scale for the whole tensor")


def narrow_convolution(view: View) -> Iterator[Found]:
    """A convolution with 4-bit weights."""
    for node in view.of_kind("Conv", "ConvTranspose"):
        w = view.dequantizer(read(node, 1), through=False)
        if w is not None and w.bits == 4:
            yield at(node, "is rejected: 4-bit weights are for matrix products only")


def old_opset(view: View) -> Iterator[Found]:
    """4-bit codes below opset 21."""
    for quantizer in _quantizers(view):
        if quantizer.bits == 4 and view.opset < 21:
            yield at(quantizer.node, f"is rejected: 4-bit codes need opset 21, the file has {view.opset}")


def float8_opset(view: View) -> Iterator[Found]:
    """fp8 codes below opset 19."""
    for quantizer in _quantizers(view):
        if quantizer.float8 and view.opset < 19:
            yield at(quantizer.node, f"is rejected: fp8 codes need opset 19, the file has {view.opset}")


def narrow_elsewhere(view: View) -> Iterator[Found]:
    """4-bit codes of something that is not a weight of a matrix product."""
    for quantizer in _quantizers(view):
        readers = [node.op_type for name in quantizer.node.output for node, _ in view.readers[name]]
        if quantizer.bits == 4 and quantizer.node.op_type == "QuantizeLinear" and not view.is_computed_from_constants(quantizer.source):
            yield at(quantizer.node, "is rejected: activations have no 4-bit codes")
        elif quantizer.bits == 4 and quantizer.node.op_type == "DequantizeLinear" and not set(readers) <= PRODUCTS:
            yield at(quantizer.node, f"is rejected: 4-bit codes are for the weights of matrix products, and a {readers[0]} reads these")


def misplaced_blocks(view: View) -> Iterator[Found]:
    """Blocks of 8-bit codes, or along another axis than the last two."""
    for quantizer in _quantizers(view):
        size, axis = (attribute(quantizer.node, name, default) for name, default in (("block_size", 0), ("axis", 1)))
        codes = view.constant(quantizer.source)
        if size and quantizer.bits == 8:
            yield at(quantizer.node, "is rejected: 8-bit codes have a scale for the tensor or for each channel, not for blocks")
        elif size and codes is not None and axis % max(codes.ndim, 1) < codes.ndim - 2:
            yield at(quantizer.node, f"is rejected: blocks lie along one of the last two axes, not axis {axis}")


def mixed_types(view: View) -> Iterator[Found]:
    """An operator whose inputs have different float types."""
    for node in view.mixed_types():
        yield at(node, "is rejected by a strongly typed build: its floating-point inputs are of different types")


def coded_branches(view: View) -> Iterator[Found]:
    """A residual addition with both branches quantized."""
    for node in view.of_kind("Add"):
        inputs = [view.dequantizer(name) for name in node.input]
        behind = [view.producers.get(entry.source) for entry in inputs if entry is not None]
        makers = [view.producers.get(read(maker, 0)) for maker in behind if maker is not None and maker.op_type == "QuantizeLinear"]
        if len(behind) == 2 and any(maker is not None and maker.op_type in WEIGHTED for maker in makers):
            yield at(node, "is not fused with the layer in front of it, because both of its branches are quantized")


def half_quantized(view: View) -> Iterator[Found]:
    """A layer with one quantized operand."""
    for node in view.of_kind("Conv", "ConvTranspose", "Gemm", "MatMul"):
        operands = [view.dequantizer(read(node, slot)) for slot in (0, 1)]
        if (operands[0] is None) != (operands[1] is None) and not (operands[1] is not None and operands[1].bits == 4):
            which = "weight" if operands[1] is None else "input"
            yield at(node, f"runs in floating point, because its {which} is not quantized")


def cast_between(view: View) -> Iterator[Found]:
    """A Cast behind a DequantizeLinear."""
    for node in view.of_kind("Conv", "ConvTranspose", "Gemm", "MatMul"):
        for slot in (0, 1):
            maker = view.producers.get(read(node, slot))
            if maker is not None and maker.op_type == "Cast" and view.dequantizer(read(maker, 0)) is not None:
                yield at(node, "runs in floating point, because a Cast stands between it and its DequantizeLinear")


def few_channels(view: View) -> Iterator[Found]:
    """A convolution of few channels."""
    for node in view.of_kind("Conv"):
        w, x = view.dequantizer(read(node, 1), through=False), view.dequantizer(read(node, 0))
        codes = None if w is None else view.constant(w.source)
        if (
            x is not None
            and codes is not None
            and codes.ndim > 1
            and min(codes.shape[:2]) < LEAST_CHANNELS
            and attribute(node, "group", 1) == 1
        ):
            yield at(
                node, f"may have no int8 kernel: {codes.shape[1]} to {codes.shape[0]} channels, and at least {LEAST_CHANNELS} are wanted"
            )


def float8_convolution(view: View) -> Iterator[Found]:
    """An fp8 convolution with a large filter, or with few channels a group."""
    for node in view.of_kind("Conv"):
        w = view.dequantizer(read(node, 1), through=False)
        codes = None if w is None or not w.float8 else view.constant(w.source)
        if codes is None or codes.ndim < 2:
            continue
        filter_size = int(np.prod(codes.shape[2:]))
        if filter_size > MOST_FILTER:
            yield at(node, f"may have no fp8 kernel: its filter has {filter_size} numbers a channel, and at most {MOST_FILTER} are wanted")
        elif min(codes.shape[:2]) < LEAST_CHANNELS and attribute(node, "group", 1) > 1:
            yield at(node, f"may have no fp8 kernel: it has {codes.shape[1]} channels a group, and at least {LEAST_CHANNELS} are wanted")


TYPES, PLACEMENT = "NVIDIA: Working with Quantized Types", "NVIDIA: Q/DQ Layer-Placement Recommendations"
PARSER, MODELOPT = "onnx-tensorrt docs/operators.md", "TensorRT-Model-Optimizer, ONNX"

RULES = (
    Rule("TRT001", "error", unsigned_codes, "signed codes, zero point 0; --fix shifts those with zero point 128", TYPES),
    Rule("TRT002", "error", shifted_codes, "calibrate symmetrically", "TensorRT#2774; operator Quantize"),
    Rule("TRT003", "error", coded_bias, "a float bias; --fix", "onnx-tensorrt#850; TensorRT#3360"),
    Rule("TRT004", "error", integer_operators, "the Q/DQ form of the network", PARSER),
    Rule("TRT005", "error", foreign, "operators of the standard", PARSER),
    Rule("TRT006", "error", computed_weight, "store the codes as they are; --fix", TYPES),
    Rule("TRT007", "error", vector_activation, "one scale for each activation", PLACEMENT),
    Rule("TRT008", "error", narrow_convolution, "8-bit weights for convolutions", TYPES),
    Rule("TRT009", "error", old_opset, "export with opset 21 or later", "onnx.ai: QuantizeLinear"),
    Rule("TRT010", "error", wide_codes, "8-bit codes", TYPES),
    Rule("TRT011", "error", float8_opset, "export with opset 19 or later", "onnx.ai: QuantizeLinear"),
    Rule("TRT012", "error", narrow_elsewhere, "8-bit codes", TYPES),
    Rule("TRT013", "error", misplaced_blocks, "4-bit codes, in blocks along the input features", TYPES),
    Rule("TRT014", "error", mixed_types, "a Cast, or scales of the type that is computed in", "NVIDIA: migration from 10.x to 11.x"),
    Rule("TRT101", "warning", coded_branches, "quantize the identity branch only", PLACEMENT),
    Rule("TRT102", "warning", half_quantized, "quantize both, or neither", PLACEMENT),
    Rule("TRT103", "warning", cast_between, "give the scales the type that is computed in", MODELOPT),
    Rule("TRT104", "warning", few_channels, "leave such a layer in fp16", "TensorRT-Model-Optimizer graph_utils.py; TensorRT#3579"),
    Rule("TRT105", "warning", float8_convolution, "int8, or fp16", "TensorRT-Model-Optimizer graph_utils.py"),
)
