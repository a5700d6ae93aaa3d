"""Rules of target `openvino`: what its CPU plugin makes of Q/DQ. Each was tried on 2026.4, and tests/test_lint.py runs them."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from quantkit.verification.lint.graph_view import Quantizer, View, read
from quantkit.verification.lint.rule import Found, Rule, at
from quantkit.verification.lint.tensorrt import half_quantized

WEIGHTED = ("Conv", "Gemm", "MatMul")
UNFOLDED = ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")


def wide_codes(view: View) -> Iterator[Found]:
    """A layer over codes of 16 bits."""
    for node, _ in _weights(view):
        x = view.dequantizer(read(node, 0))
        if x is not None and x.bits == 16:
            yield at(node, "runs in floating point, because its input has 16-bit codes")


def unsigned_weight(view: View) -> Iterator[Found]:
    """A weight of unsigned codes."""
    for node, weight in _weights(view):
        if weight.bits == 8 and not weight.signed:
            yield at(node, "runs in floating point, because its weight has unsigned codes")


def packed_weight(view: View) -> Iterator[Found]:
    """INT4 codes straight into a DequantizeLinear, beside a quantized input."""
    for node, weight in _weights(view):
        if weight.bits == 4 and view.dequantizer(read(node, 0)) is not None:
            yield at(node, "runs in floating point, because its 4-bit codes are not made INT8 in front of the DequantizeLinear")


def unfolded_weight(view: View) -> Iterator[Found]:
    """Weight codes that bit operations compute."""
    for node, weight in _weights(view):
        waiting, seen = [weight.source], set[str]()
        while waiting:
            maker = view.producers.get(waiting.pop())
            if maker is not None and maker.output[0] not in seen:
                seen.add(maker.output[0])
                waiting += maker.input
                if maker.op_type in UNFOLDED:
                    yield at(node, f"runs in floating point, because a {maker.op_type} in front of its weight is not folded")
                    break


def _weights(view: View) -> Iterator[tuple[NodeProto, Quantizer]]:
    """The layers whose weight is dequantized from constant codes, with what dequantizes it."""
    for node in view.of_kind(*WEIGHTED):
        weight = view.dequantizer(read(node, 1), through=False)
        if weight is not None and view.has_constant_codes(weight):
            yield node, weight


PROBE = "our probe of 2026.4, tests/test_lint.py"

RULES = (
    Rule("OVO101", "warning", half_quantized, "quantize both, or neither", PROBE),
    Rule("OVO102", "warning", wide_codes, "8-bit codes", PROBE),
    Rule("OVO103", "warning", unsigned_weight, "signed codes, zero point 0", PROBE),
    Rule("OVO104", "warning", packed_weight, "a Cast to INT8 between codes and DequantizeLinear", PROBE),
    Rule("OVO105", "warning", unfolded_weight, "`quantkit export RUN --target openvino`, or other operators", PROBE),
)
