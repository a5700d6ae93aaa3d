"""Rules of ONNX Runtime's CPU provider: which Q/DQ pattern really runs in int8, from its source and from probes of 1.32.

`quantkit/targets/ort_cpu.py` places by the same rules. Sources: ORT is onnxruntime/core/optimizer, with the qdq_transformer in it;
onnxruntime.ai its page on quantization; probe means that the test of this file runs both patterns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from quantkit.verification.lint.graph_view import Quantizer, View, attribute, read
from quantkit.verification.lint.rule import Found, Rule, at

PAIR_LIMIT = 128  # 255 · 129 is beyond an int16 sum of two products
FLOAT_ONLY = ("LayerNormalization", "Gelu", "Tanh", "HardSwish", "Elu", "Erf", "HardSigmoid", "InstanceNormalization", "Exp", "Mish")
JOINING = ("Add", "Mul", "Concat")


def _quantized(view: View, *kinds: str) -> Iterator[tuple[NodeProto, Quantizer, Quantizer]]:
    """Weighted nodes with both operands dequantized: the activation's and the weight's quantizer."""
    for node in view.of_kind(*kinds):
        x, w = view.dequantizer(read(node, 0)), view.dequantizer(read(node, 1), through=False)
        if x is not None and w is not None:
            yield node, x, w


def _output(node: NodeProto) -> str:
    return node.output[0] if node.output else ""


def no_output_codes(view: View) -> Iterator[Found]:
    """A quantized Conv or Gemm whose output stays float."""
    for node, _, w in _quantized(view, "Conv"):
        if w.bits == 8 and view.requantizer(_output(node)) is None:
            yield at(node, "runs in float because its output is not quantized, or is read by something else before it is")
    for node, _, w in _quantized(view, "Gemm"):
        bias = read(node, 2)
        if w.bits == 8 and bias and view.dequantizer(bias) is None and view.requantizer(_output(node)) is None:
            yield at(node, "runs in float because its output is not quantized and its bias is float")


def not_absorbed(view: View) -> Iterator[Found]:
    """A Relu or Clip that the quantizer behind it cannot take in."""
    for node, _, _ in _quantized(view, "Conv", "Gemm"):
        found = view.requantizer(_output(node))
        if found is not None and found[1] and not found[0].at_lowest:
            yield at(node, f"runs in float because the zero point behind its {found[1][0].op_type} is not the lowest code")


def silently_quantized(view: View) -> Iterator[Found]:
    """A float layer between a DequantizeLinear and a QuantizeLinear."""
    for node in view.of_kind("Conv", "Gemm"):
        x, weight = view.dequantizer(read(node, 0), through=False), view.constant(read(node, 1))
        plain = x is not None and x.scale is not None and x.scale.size == 1 and weight is not None and weight.dtype == np.float32
        if plain and view.requantizer(_output(node)) is not None:
            yield at(node, "was kept in float, but its weight is rounded to int8 with one scale for all channels while the session loads")


def transposed(view: View) -> Iterator[Found]:
    """A quantized ConvTranspose."""
    for node, _, _ in _quantized(view, "ConvTranspose"):
        yield at(node, "runs in float: there is no int8 kernel for it")


def float_operation(view: View) -> Iterator[Found]:
    """An operation without int8 kernel between quantizers."""
    for node in view.of_kind(*FLOAT_ONLY):
        if view.dequantizer(read(node, 0)) is not None and view.requantizer(_output(node)) is not None:
            yield at(node, f"runs in float between its quantizers: there is no int8 {node.op_type}")


def half_joined(view: View) -> Iterator[Found]:
    """Add, Mul or Concat of quantized inputs without a quantized output."""
    for node in view.of_kind(*JOINING):
        inputs = [view.dequantizer(name) for name in node.input]
        quantized = [entry for entry in inputs if entry is not None and not view.has_constant_codes(entry)]
        if len(quantized) == len(inputs) > 1:
            found = view.requantizer(_output(node))
            if found is None:
                yield at(node, f"runs in float because its output is not quantized, though its {len(inputs)} inputs are")
            elif found[1] and not found[0].at_lowest:
                yield at(node, f"runs in float because the zero point behind its {found[1][0].op_type} is not the lowest code")


def one_branch(view: View) -> Iterator[Found]:
    """A residual addition with one quantized branch."""
    for node in view.of_kind("Add"):
        inputs = [view.dequantizer(name) for name in node.input]
        makers = [view.producers.get(name) for name in node.input]
        convolutions = [maker for maker in makers if maker is not None and maker.op_type == "Conv"]
        if sum(entry is not None for entry in inputs) == 1 and any(view.dequantizer(read(maker, 0)) for maker in convolutions):
            yield at(node, "runs in float, and the convolution in front of it too, because only one of its branches is quantized")


def unsigned_weights(view: View) -> Iterator[Found]:
    """Weights in uint8."""
    for node, _, w in _quantized(view, "Conv", "Gemm", "MatMul"):
        if w.bits == 8 and not w.signed and view.has_constant_codes(w):
            yield at(node, "runs 3 to 5 times slower than with signed weights")


def wide_activations(view: View) -> Iterator[Found]:
    """Activations of 16 bits."""
    for node, x, _ in _quantized(view, "Conv", "Gemm", "MatMul"):
        if x.bits == 16:
            yield at(node, "runs in float: its 16-bit activations have no kernel")


def narrow_weights(view: View) -> Iterator[Found]:
    """INT4 codes straight into the DequantizeLinear of a layer with quantized input."""
    for node, _, w in _quantized(view, "Conv", "Gemm", "MatMul"):
        if w.bits == 4:
            yield at(node, "runs in float and unpacks its 4-bit weight in every run")


def weight_only_transposed(view: View) -> Iterator[Found]:
    """A weight-only Gemm as torch exports it."""
    for node in view.of_kind("Gemm"):
        w = view.dequantizer(read(node, 1), through=False)
        if w is not None and w.bits in (4, 8) and view.dequantizer(read(node, 0)) is None and attribute(node, "transB", 0):
            yield at(node, "unpacks its weight in every run: MatMulNBits takes a weight of [inputs, outputs] only")


def signed_at_opset_21(view: View) -> Iterator[Found]:
    """int8 activations into a MatMul with bias, at opset 21 or later."""
    for node, x, w in _quantized(view, "MatMul"):
        readers = view.readers[_output(node)]
        if view.opset >= 21 and x.signed and x.bits == 8 and w.bits == 8 and [reader.op_type for reader, _ in readers] == ["Add"]:
            yield at(node, "keeps the session from loading: output_dtype INT8 does not match y_zero_point type UINT8 (onnxruntime#25526)")


def bfloat16(view: View) -> Iterator[Found]:
    """A layer in bfloat16."""
    for node in view.of_kind("Conv", "MatMul", "Gemm"):
        if any(view.types.get(name) == TensorProto.BFLOAT16 for name in node.input):
            yield at(node, "keeps the session from loading: there is no bfloat16 kernel")


def overflowing_bias(view: View) -> Iterator[Found]:
    """A float bias whose int32 code overflows."""
    for node, x, w in _quantized(view, "Conv", "Gemm"):
        bias = view.constant(read(node, 2))
        if bias is None or bias.dtype != np.float32 or x.scale is None or w.scale is None or x.scale.size != 1:
            continue
        if w.scale.size in (1, bias.size):
            with np.errstate(all="ignore"):  # bad scales are another rule's
                step = float(x.scale.ravel()[0]) * w.scale.astype(np.float64).ravel()
                beyond = int((np.abs(bias.astype(np.float64).ravel()) / step >= 2.0**31).sum())
            if beyond:
                yield at(node, f"computes wrongly: the int32 codes of {beyond} of its biases overflow (channels of tiny weights)")


def saturating(view: View) -> Iterator[Found]:
    """Neighbouring weight codes whose products may saturate."""
    for node, x, w in _quantized(view, "Conv", "Gemm"):
        codes = view.constant(w.source)
        if x.signed or w.bits != 8 or not w.signed or codes is None or codes.dtype != np.int8 or codes.ndim < 2:
            continue
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            codes = codes.T
        if node.op_type == "Conv" and attribute(node, "group", 1) == codes.shape[0]:
            continue  # the depthwise kernel widens each product first
        rows = np.moveaxis(codes, 1, -1).reshape(len(codes), -1).astype(np.int32)
        pairs = np.abs(np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2).sum(axis=2))
        channels = int((pairs > PAIR_LIMIT).any(axis=1).sum())
        if channels:
            yield at(node, f"may saturate in {channels} of {len(rows)} channels on CPUs without VNNI, which add products in 16-bit pairs")


def slow_softmax(view: View) -> Iterator[Found]:
    """A quantized Softmax."""
    for node in view.of_kind("Softmax"):
        if view.dequantizer(read(node, 0)) is not None and view.requantizer(_output(node)) is not None:
            yield at(node, "runs in int8, about 6 times slower than in float")


ORT, PROBE, BIAS = "ORT qdq_selectors.cc", "probe", "ORT weight_bias_quantization.cc"

RULES = (
    Rule("ORT001", "error", signed_at_opset_21, "unsigned activations, or opset 20", "onnxruntime#25526; probe"),
    Rule("ORT002", "error", bfloat16, "float32 for what stays in floating point", PROBE),
    Rule("ORT003", "error", overflowing_bias, "raise the weight's scale to |bias| / (input scale · 2^30)", BIAS),
    Rule("ORT101", "warning", no_output_codes, "quantize the output, behind its Relu or Clip; a Gemm may have an int32 bias", ORT),
    Rule("ORT102", "warning", not_absorbed, "unsigned codes with zero point 0, or signed ones with -128", PROBE),
    Rule("ORT103", "warning", silently_quantized, "a Max that changes nothing, or a vector of equal scales, at its input; --fix", BIAS),
    Rule("ORT104", "warning", transposed, "leave it in float: its quantizers only cost time", PROBE),
    Rule("ORT105", "warning", float_operation, "leave out the quantizers around it, or accept their price", PROBE),
    Rule("ORT106", "warning", half_joined, "quantize its output", ORT),
    Rule("ORT107", "warning", one_branch, "quantize both branches and the sum; one branch only is TensorRT's way", PROBE),
    Rule("ORT108", "warning", saturating, "7-bit weights (reduce_range), or codes as `quantkit allocate` chooses them", "onnxruntime.ai"),
    Rule("ORT109", "warning", unsigned_weights, "signed weights; --fix shifts those with zero point 128", PROBE),
    Rule("ORT110", "warning", wide_activations, "8-bit activations, or float", PROBE),
    Rule("ORT111", "warning", narrow_weights, "a Cast to INT8 in front of the DequantizeLinear; --fix", PROBE),
    Rule("ORT112", "warning", weight_only_transposed, "store the weight as [inputs, outputs], transB 0", PROBE),
    Rule("ORT113", "warning", slow_softmax, "leave it in float", "probe on a CPU with VNNI"),
)
