"""Target `openvino`: Intel's engine, which reads ONNX with explicit Q/DQ and fuses it by rules of its own (2026.4 probed).

It takes ONNX Runtime's structure as it is, with two differences: a layer kept in float needs no barrier, as its weights are never rounded
behind one's back; and of the ways to store narrow codes it folds INT4 behind a Cast only, so other widths lie in the file as INT8.
Source: docs.openvino.ai, "Low Precision Transformations"; tests/test_openvino.py runs it where openvino is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.graph import Graph, Layer
from quantkit.spec import Scheme
from quantkit.targets import ort_cpu
from quantkit.targets.common import check_schemes, groups, weight_bytes_stored
from quantkit.targets.ort_cpu import ACTIVATIONS, OPSET, adapt, isolate, product_rows
from quantkit.targets.placement import Placement, Storage

__all__ = ["ACTIVATIONS", "OPSET", "adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "openvino"
MINIMUM_RUNTIME = "2024.4"
SCHEMES = ("fp32", "w8a8", "w4a8")
STORAGE: Mapping[int, Storage] = {4: "int4", **dict.fromkeys((2, 3, 5, 6, 7, 8), "int8")}
SESSION_OPTIONS: Mapping[str, str] = {}


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme."""
    return replace(ort_cpu.place(graph, allocation), barriers={}, unscaled=frozenset(), storage=STORAGE, made=False)


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE, made=False)
