"""Target `openvino`: Intel's engine, which reads ONNX with explicit Q/DQ and fuses it by rules of its own (2026.4 probed).

It takes ONNX Runtime's structure as it is, with differences: a layer kept in float needs no barrier, as its weights are never rounded
behind one's back; of the ways to store narrow codes it folds INT4 behind a Cast only, so others lie in the file as INT8; float weights
it takes as FLOAT16 behind a Cast only, as codes times scales it would take for a quantized layer's, and run that in int8; and average
pools stay float behind a barrier, as it pads codes with 0 whatever the zero point is (2026.4: outputs wrong by more than their size).
Source: docs.openvino.ai, "Low Precision Transformations"; tests/test_openvino.py runs it where openvino is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import FLOAT, QuantSpec, Scheme, parse_scheme
from quantkit.targets import common, ort_cpu
from quantkit.targets.common import adapt_to_integers, check_schemes, weight_bytes_stored
from quantkit.targets.ort_cpu import ACTIVATIONS, OPSET, isolate, product_rows
from quantkit.targets.placement import Adapted, Barrier, Placement, Slot, Storage

__all__ = ["ACTIVATIONS", "OPSET", "adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "openvino"
PACKAGE, MINIMUM_RUNTIME = "openvino", "2024.4"
SCHEMES = ("fp32", "w8a8", "w4a8", "w16a32")
STORAGE: Mapping[int, Storage] = {4: "int4", **dict.fromkeys((2, 3, 5, 6, 7, 8), "int8")}
POOL, FLOAT_KINDS = "avg_pool", ("avg_pool", "global_pool")
SESSION_OPTIONS: Mapping[str, str] = {"INFERENCE_PRECISION_HINT": "f32"}  # a CPU that has bf16 would take it for what stays float


def groups(graph: Graph, schemes: Sequence[Scheme]) -> tuple[Group, ...]:
    """As `common.groups`; average pools are float."""
    pools = {layer.name for layer in graph.layers if layer.kind in FLOAT_KINDS}
    found = common.groups(graph, schemes)
    return tuple(replace(group, schemes=(FLOAT,)) if pools.issuperset(group.layers) else group for group in found)


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:
    """The allocation of another target's plan, by layer, as this one can run it: float weights that lie as codes become half."""
    in_call = [name for name, scheme in allocation.items() if scheme.is_dynamic]
    static = {name: parse_scheme("w4a8" if allocation[name].precision[1] == 4 else "w8a8") for name in in_call}
    adapted, half = adapt_to_integers({**allocation, **static}), parse_scheme("w16a32")
    codes = {name for name, scheme in adapted.schemes.items() if scheme.is_stored and isinstance(scheme.weights, QuantSpec)}
    pools = [layer.name for layer in graph.layers if layer.kind in FLOAT_KINDS and not allocation[layer.name].is_float]
    changes = [f"{name}: {allocation[name].name} became w16a32, as codes would make the layer int8" for name in sorted(codes)]
    changes += [f"{name}: {allocation[name].name} became fp32, as average pools of codes may come out wrong" for name in pools]
    changes += [f"{name}: {allocation[name].name} became {static[name].name}, as activations have fixed ranges there" for name in in_call]
    schemes = {**adapted.schemes, **dict.fromkeys(codes, half), **dict.fromkeys(pools, FLOAT)}
    return Adapted(schemes, (*adapted.changes, *changes), adapted.notes)


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme; average pools stay float."""
    floats = {layer.name: FLOAT for layer in graph.layers if layer.kind in FLOAT_KINDS}
    placed = ort_cpu.place(graph, {**allocation, **floats})
    coded = {layer.output for layer in graph.layers if layer.name in placed.outputs}
    pools = [(layer.node, layer.inputs[0]) for layer in graph.layers if layer.kind == POOL]
    pools += [(entry.node, entry.inputs[0]) for entry in graph.unsupported if entry.operation.startswith(POOL)]
    barriers: dict[Slot, Barrier] = {(node, 0): "max" for node, source in pools if graph.source(source) in coded}
    return replace(placed, barriers=barriers, unscaled=frozenset(), sums=frozenset(), storage=STORAGE, made=False)


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE, made=False)
