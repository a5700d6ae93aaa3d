"""A *modelled* latency for a runtime that is not here to be timed: a roofline, no measurement, in relative time.

    t(layer, scheme) = max( macs / (rate · speed[scheme]),  bytes moved / bandwidth ) + launch         (`core.machine`)

Bytes moved are the weight's as the target stores it, and what the layer reads and writes at the width of the scheme's activations. A
tensor between two groups of which exactly one is float is charged for a conversion: read at one width, written at the other. All is
divided by what the network takes in half, so that this is 1. The machine is the user's (`--machine`), or tensor cores as data sheets have
them. What the model leaves out is more than what it holds: fusion, caches, layouts, kernels that do not exist. It ranks plans; it promises
no time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from types import ModuleType

import numpy as np

from quantkit.allocation.costs.measured import Boundary, LatencyModel, crossings
from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.machine import TENSOR_CORES, Machine
from quantkit.core.spec import FLOATING, Scheme, parse_scheme
from quantkit.core.table import Table

UNIT = "relative time"
HALF, BYTES = FLOATING["fp16"], parse_scheme("w8a8")


def model_latency(
    graph: Graph, groups: Sequence[Group], schemes: Sequence[Scheme], target: ModuleType, machine: Machine = TENSOR_CORES
) -> LatencyModel:
    """Table, boundaries and an offset of 0 as `measure_latency` gives them, in UNIT; nothing was tested, so no rank correlation."""
    whole = sum(_seconds(graph, graph.layer(name), HALF, target, machine) for group in groups for name in group.layers) or 1.0
    values = np.full((len(groups), len(schemes)), np.nan)
    for row, group in enumerate(groups):
        for column, scheme in enumerate(schemes):
            if scheme in group.schemes:
                values[row, column] = sum(_seconds(graph, graph.layer(name), scheme, target, machine) for name in group.layers) / whole
    narrow, wide = (_activation_bytes(scheme) for scheme in (BYTES, HALF))
    edges = tuple(Boundary(a, b, machine.seconds(0, size * (narrow + wide), HALF) / whole) for a, b, size in crossings(graph, groups))
    table = Table(f"modelled latency on {machine.name}", UNIT, tuple(group.name for group in groups), tuple(schemes), values)
    return LatencyModel(table, edges, 0.0, math.nan, ())


def _seconds(graph: Graph, layer: Layer, scheme: Scheme, target: ModuleType, machine: Machine) -> float:
    """The formula above, not yet divided."""
    elements = sum(_elements(graph.tensor(name).shape) for name in layer.inputs) + _elements(layer.output_shape)
    return machine.seconds(layer.macs, target.weight_bytes(layer, scheme) + elements * _activation_bytes(scheme), scheme)


def _activation_bytes(scheme: Scheme) -> float:
    return scheme.precision[0] / 8


def _elements(shape: Sequence[int]) -> int:
    return prod(side or 1 for side in shape)  # 0 stands for a symbolic side
