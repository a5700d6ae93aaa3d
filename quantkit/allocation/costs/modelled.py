"""A *modelled* latency for a runtime that is not here to be timed: a roofline, no measurement, in relative time.

    t(layer, scheme) = max( macs / (MACS_PER_BYTE · speed[scheme]),  bytes moved )          in bytes that memory could have moved meanwhile

Bytes moved are the weight's as the target stores it, and what the layer reads and writes at the width of the scheme's activations. A
tensor between two groups of which exactly one is float is charged for a conversion: read at one width, written at the other. All is
divided by what the network takes in half, so that this is 1.

Speeds are the ratios that NVIDIA's data sheets give for dense tensor cores (half : int8 : fp8 as 1 : 2 : 2, float32 as TF32 at a half; int4
on a T4 or A100 is 4, and 16-bit integers, which these have not, are taken as half);
MACS_PER_BYTE is near that of an A100 (156 tera-MAC/s in half over 1.6 TB/s) and a T4, which are alike. What it leaves out is more than
what it holds: launches, fusion, caches, layouts, kernels that do not exist. It ranks plans; it promises no time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod
from types import ModuleType

import numpy as np

from quantkit.allocation.costs.measured import Boundary, LatencyModel, crossings
from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import FLOATING, Scheme, parse_scheme
from quantkit.core.table import Table

UNIT = "relative time"
MACS_PER_BYTE = 100.0
SPEED: Mapping[str, float] = {"fp32": 0.5, "fp16": 1.0, "w4a16": 1.0, "fp8": 2.0}
HALF_BITS = 16
HALF, BYTES = FLOATING["fp16"], parse_scheme("w8a8")


def model_latency(graph: Graph, groups: Sequence[Group], schemes: Sequence[Scheme], target: ModuleType) -> LatencyModel:
    """Table, boundaries and an offset of 0 as `measure_latency` gives them, in UNIT; nothing was tested, so no rank correlation."""
    whole = sum(_moved_time(graph, graph.layer(name), HALF, target) for group in groups for name in group.layers) or 1.0
    values = np.full((len(groups), len(schemes)), np.nan)
    for row, group in enumerate(groups):
        for column, scheme in enumerate(schemes):
            if scheme in group.schemes:
                values[row, column] = sum(_moved_time(graph, graph.layer(name), scheme, target) for name in group.layers) / whole
    narrow, wide = (_activation_bytes(scheme) for scheme in (BYTES, HALF))
    edges = tuple(Boundary(a, b, size * (narrow + wide) / whole) for a, b, size in crossings(graph, groups))
    table = Table("modelled latency", UNIT, tuple(group.name for group in groups), tuple(schemes), values)
    return LatencyModel(table, edges, 0.0, math.nan, ())


def _moved_time(graph: Graph, layer: Layer, scheme: Scheme, target: ModuleType) -> float:
    """The formula above, not yet divided."""
    elements = sum(_elements(graph.tensor(name).shape) for name in layer.inputs) + _elements(layer.output_shape)
    moved = target.weight_bytes(layer, scheme) + elements * _activation_bytes(scheme)
    return float(max(layer.macs / (MACS_PER_BYTE * _speed(scheme)), moved))


def _speed(scheme: Scheme) -> float:
    """Products a second, over those of half; of integers as the wider operand has it."""
    return SPEED[scheme] if scheme in SPEED else HALF_BITS / max(scheme.precision[:2])


def _activation_bytes(scheme: Scheme) -> float:
    return scheme.precision[0] / 8


def _elements(shape: Sequence[int]) -> int:
    return prod(side or 1 for side in shape)  # 0 stands for a symbolic side
