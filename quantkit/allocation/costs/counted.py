"""What each (group, scheme) costs without a measurement: bytes as the target stores them, bit operations, a part of the average bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import Scheme
from quantkit.core.table import Table
from quantkit.settings.bounds import FLOAT_BITS


def byte_costs(graph: Graph, groups: Sequence[Group], schemes: Sequence[Scheme], target: ModuleType) -> Table:
    """Bytes of weights, scales and biases; a weight that several layers share counts once."""

    def stored(layers: Sequence[Layer], scheme: Scheme) -> float:
        return float(sum(target.weight_bytes(layer, scheme) for layer in _owners(layers)))

    return _filled("bytes", "bytes", graph, groups, schemes, stored)


def bop_costs(graph: Graph, groups: Sequence[Group], schemes: Sequence[Scheme]) -> Table:
    """Bit operations of one item (HAWQ-V3): multiply-accumulates · weight bits · activation bits; of float 32 · 32."""
    return _filled("bops", "bops", graph, groups, schemes, lambda layers, scheme: sum(layer.macs for layer in layers) * _product(scheme))


def bit_costs(graph: Graph, groups: Sequence[Group], schemes: Sequence[Scheme]) -> Table:
    """Bits of the weights over the count of all weights: their sum is the average. A weight that several layers share counts once."""
    total = max(sum(layer.weight_count for layer in _owners(graph.layers)), 1)
    counted = ("average_bits", "bits", graph, groups, schemes)
    return _filled(*counted, lambda layers, scheme: sum(layer.weight_count for layer in _owners(layers)) * _weight_bits(scheme) / total)


def float_bops(graph: Graph) -> float:
    """The bit operations of the float network."""
    return float(sum(layer.macs for layer in graph.layers)) * FLOAT_BITS * FLOAT_BITS


def _filled(
    name: str,
    unit: str,
    graph: Graph,
    groups: Sequence[Group],
    schemes: Sequence[Scheme],
    cost: Callable[[Sequence[Layer], Scheme], float],
) -> Table:
    values = np.full((len(groups), len(schemes)), np.nan)
    for row, group in enumerate(groups):
        layers = [graph.layer(layer) for layer in group.layers]
        for column, scheme in enumerate(schemes):
            if scheme in group.schemes:
                values[row, column] = cost(layers, scheme)
    return Table(name, unit, tuple(group.name for group in groups), tuple(schemes), values)


def _owners(layers: Sequence[Layer]) -> list[Layer]:
    """One layer for each weight."""
    return list({layer.weight or f"activation of {layer.name}": layer for layer in reversed(layers)}.values())


def _weight_bits(scheme: Scheme) -> int:
    return FLOAT_BITS if scheme.weights is None else scheme.weights.bits


def _product(scheme: Scheme) -> int:
    """Bits of both factors; weights that are only stored narrow are computed with in float."""
    return FLOAT_BITS * FLOAT_BITS if scheme.activations is None else scheme.activations.bits * _weight_bits(scheme)
