"""Target `openvino`: Intel's engine, which reads ONNX with explicit Q/DQ and fuses it by rules of its own (2026.4 probed).

It takes ONNX Runtime's structure as it is, with two differences: a layer kept in float needs no barrier, as its weights are never rounded
behind one's back; and of the ways to store narrow codes it folds INT4 behind a Cast only, so others lie in the file as INT8. Float weights
it takes as FLOAT16 behind a Cast only: codes times scales it would take for a quantized layer's, and run that in int8.
Source: docs.openvino.ai, "Low Precision Transformations"; tests/test_openvino.py runs it where openvino is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.graph import Graph, Layer
from quantkit.spec import QuantSpec, Scheme, parse_scheme
from quantkit.targets import ort_cpu
from quantkit.targets.common import adapt_to_integers, check_schemes, groups, weight_bytes_stored
from quantkit.targets.ort_cpu import ACTIVATIONS, OPSET, isolate, product_rows
from quantkit.targets.placement import Adapted, Placement, Storage

__all__ = ["ACTIVATIONS", "OPSET", "adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "openvino"
PACKAGE, MINIMUM_RUNTIME = "openvino", "2024.4"
SCHEMES = ("fp32", "w8a8", "w4a8", "w16a32")
STORAGE: Mapping[int, Storage] = {4: "int4", **dict.fromkeys((2, 3, 5, 6, 7, 8), "int8")}
SESSION_OPTIONS: Mapping[str, str] = {"INFERENCE_PRECISION_HINT": "f32"}  # a CPU that has bf16 would take it for what stays float


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:  # noqa: ARG001 - every target's
    """The allocation of another target's plan, by layer, as this one can run it: float weights that lie as codes become half."""
    adapted, half = adapt_to_integers(allocation), parse_scheme("w16a32")
    codes = {name for name, scheme in adapted.schemes.items() if scheme.is_stored and isinstance(scheme.weights, QuantSpec)}
    changes = [f"{name}: {allocation[name].name} became w16a32, as codes would make the layer int8" for name in sorted(codes)]
    return Adapted({**adapted.schemes, **dict.fromkeys(codes, half)}, (*adapted.changes, *changes), adapted.notes)


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme."""
    return replace(ort_cpu.place(graph, allocation), barriers={}, unscaled=frozenset(), storage=STORAGE, made=False)


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE, made=False)
