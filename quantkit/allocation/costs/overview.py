"""What can be said of a network before anything is measured: how much of it int8 can reach, what weights would take, what stays float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from quantkit.allocation.costs.counted import byte_costs
from quantkit.core.graph import Graph, Group, Unsupported
from quantkit.core.spec import FLOAT, QuantSpec, Scheme

PRODUCTS = ("matmul", "bmm", "scaled_dot_product_attention")  # of two activations
OTHERS = ("lstm", "gru", "rnn_tanh", "rnn_relu", "convolution", "conv3d")  # products with weights that are no layers here


@dataclass(frozen=True, slots=True)
class SchemeUse:
    """How many groups can take a scheme, and the bytes of all weights and biases if each of them does and the others stay float."""

    groups: int
    weight_bytes: float


@dataclass(frozen=True, slots=True)
class StaysFloat:
    """The nodes of one operation that stay float for one reason."""

    operation: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """Multiply-accumulates are of one item: those of `macs` are counted, `int8_macs` of them lie in the `int8_groups` that can run in int8.

    Products of two activations that stay float are counted too, as far as their shapes are known; `uncounted` are those of which they are
    not. `schemes` are by name, the float weights' first.
    """

    macs: int
    int8_macs: int
    groups: int
    int8_groups: int
    uncounted: tuple[str, ...]
    schemes: Mapping[str, SchemeUse]
    stays: tuple[StaysFloat, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


def overview(graph: Graph, groups: Sequence[Group], target: ModuleType) -> Overview:
    """Of the captured network, under the target's menu."""
    int8 = [group for group in groups if any(_is_int8(scheme) for scheme in group.schemes)]
    layers = {name for group in int8 for name in group.layers}
    products = {operation.node: product_macs(graph, operation) for operation in graph.unsupported if _kind(operation) in PRODUCTS}
    others = [operation.node for operation in graph.unsupported if _kind(operation) in OTHERS]
    return Overview(
        macs=sum(layer.macs for layer in graph.layers) + sum(filter(None, products.values())),
        int8_macs=sum(layer.macs for layer in graph.layers if layer.name in layers),
        groups=len(groups),
        int8_groups=len(int8),
        uncounted=(*(node for node, macs in products.items() if macs is None), *others),
        schemes=_uses(graph, groups, target),
        stays=_stays(graph.unsupported),
    )


def product_macs(graph: Graph, operation: Unsupported) -> int | None:
    """The multiply-accumulates of a product of activations, of one item; None where a side is a symbol.

    Of `a @ b`: the values of the result times the inner side. Of attention: both of its products, queries · keys · (width + width).
    """
    shapes = {tensor.name: tensor.shape for tensor in graph.tensors}
    known = [shapes.get(name) for name in (*operation.inputs, operation.node)]
    if any(shape is None or 0 in shape for shape in known):
        return None
    first, second, *_ = (shape for shape in known if shape is not None)
    if _kind(operation) == "scaled_dot_product_attention":
        return prod(first[:-1]) * second[-2] * (first[-1] + prod((known[-1] or ())[-1:]))
    return prod(known[-1] or ()) * first[-1]


def _kind(operation: Unsupported) -> str:
    return operation.operation.split(".")[0]


def _is_int8(scheme: Scheme) -> bool:
    return isinstance(scheme.activations, QuantSpec)


def _uses(graph: Graph, groups: Sequence[Group], target: ModuleType) -> dict[str, SchemeUse]:
    schemes = tuple(dict.fromkeys((FLOAT, *(scheme for group in groups for scheme in group.schemes))))
    table = byte_costs(graph, groups, schemes, target)
    floats = np.nanmax(table.values, axis=1)  # fp32; of a group that is fixed to another scheme, what it takes
    return {
        scheme: SchemeUse(int(np.isfinite(column).sum()), float(np.where(np.isfinite(column), column, floats).sum()))
        for scheme, column in zip(schemes, table.values.T, strict=True)
    }


def _stays(unsupported: Sequence[Unsupported]) -> tuple[StaysFloat, ...]:
    """By operation and reason, the most frequent first."""
    found: dict[tuple[str, str], list[str]] = {}
    for operation in unsupported:
        found.setdefault((operation.operation, operation.reason), []).append(operation.node)
    rows = [StaysFloat(operation, reason, tuple(nodes)) for (operation, reason), nodes in found.items()]
    return tuple(sorted(rows, key=lambda row: -len(row.nodes)))
