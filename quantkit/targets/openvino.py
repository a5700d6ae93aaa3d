"""Target `openvino`: Intel's engine, which reads ONNX with explicit Q/DQ and fuses it by rules of its own (2026.4 probed).

It takes ONNX Runtime's structure as it is, with three differences: a layer kept in float needs no barrier, as its weights are never rounded
behind one's back; of the ways to store narrow codes it folds INT4 behind a Cast only, so other widths lie in the file as INT8; and average
pools stay float behind a barrier, as it pads codes with 0 whatever the zero point is (2026.4: outputs wrong by more than their size).
Source: docs.openvino.ai, "Low Precision Transformations"; tests/test_openvino.py runs it where openvino is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.graph import Graph, Layer
from quantkit.spec import FLOAT, Scheme
from quantkit.targets import ort_cpu
from quantkit.targets.common import check_schemes, groups, weight_bytes_stored
from quantkit.targets.ort_cpu import ACTIVATIONS, OPSET, isolate, product_rows
from quantkit.targets.placement import Adapted, Barrier, Placement, Slot, Storage

__all__ = ["ACTIVATIONS", "OPSET", "adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "openvino"
MINIMUM_RUNTIME = "2024.4"
STORAGE: Mapping[int, Storage] = {4: "int4", **dict.fromkeys((2, 3, 5, 6, 7, 8), "int8")}
POOL = "avg_pool"
SESSION_OPTIONS: Mapping[str, str] = {}


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:
    """The allocation of another target's plan, by layer, as this one can run it."""
    pools = [layer.name for layer in graph.layers if layer.kind == POOL and not allocation[layer.name].is_float]
    notes = tuple(f"{name}: {allocation[name].name} became fp32, as an average pool of codes would pad with the wrong value" for name in pools)
    return Adapted({**allocation, **dict.fromkeys(pools, FLOAT)}, notes)


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme, as `adapt` leaves it."""
    placed = ort_cpu.place(graph, adapt(graph, allocation).schemes)
    coded = {layer.output for layer in graph.layers if layer.name in placed.outputs}
    pools = [(layer.node, layer.inputs[0]) for layer in graph.layers if layer.kind == POOL]
    pools += [(entry.node, entry.inputs[0]) for entry in graph.unsupported if entry.operation.startswith(POOL)]
    barriers: dict[Slot, Barrier] = {(node, 0): "max" for node, source in pools if graph.source(source) in coded}
    return replace(placed, barriers=barriers, unscaled=frozenset(), storage=STORAGE)


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE)
