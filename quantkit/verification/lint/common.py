"""Rules of every target: what the ONNX standard itself asks of Q/DQ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from quantkit.verification.lint.graph_view import View, read
from quantkit.verification.lint.rule import Found, Rule, at

INVALID = "Q001"
STANDARD = "onnx.ai/onnx/operators: QuantizeLinear, DequantizeLinear"


def invalid(view: View) -> Iterator[Found]:
    """The standard's own checker."""
    try:
        onnx.checker.check_model(view.model)
    except onnx.checker.ValidationError as error:
        yield "the model", "is not valid ONNX: " + " ".join(str(error).split())[:200]
    except (ValueError, UnicodeDecodeError, MemoryError) as error:
        yield "the model", f"cannot be checked: {' '.join(str(error).split())[:200]}"


def bad_scale(view: View) -> Iterator[Found]:
    """A scale that is not a positive finite number."""
    for node in view.of_kind("QuantizeLinear", "DequantizeLinear"):
        scale = view.constant(read(node, 1))
        if scale is None and not (read(node, 1) in view.producers or read(node, 1) in view.types):
            yield at(node, "has no scale")
        elif scale is not None and not (
            np.issubdtype(scale.dtype, np.floating) and np.isfinite(scale).all() and bool(np.all(np.greater(scale, 0)))
        ):
            yield at(node, "has a scale that is not positive and finite: everything it touches becomes 0, NaN or infinite")


def other_zero_point(view: View) -> Iterator[Found]:
    """A zero point of another shape than its scale."""
    for node in view.of_kind("QuantizeLinear", "DequantizeLinear"):
        scale, zero = view.constant(read(node, 1)), view.constant(read(node, 2))
        if scale is not None and zero is not None and scale.shape != zero.shape:
            yield at(node, f"has a scale of shape {scale.shape} and a zero point of shape {zero.shape}")


RULES = (
    Rule(INVALID, "error", invalid, "export it again; the message names the place", "onnx.checker"),
    Rule("Q002", "error", bad_scale, "calibrate again: a scale is a positive constant", STANDARD),
    Rule("Q003", "error", other_zero_point, "give both the same shape", STANDARD),
)
