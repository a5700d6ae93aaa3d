"""Slow and obviously right: what the fast versions in quantkit are compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from quantkit.allocation import Edge
from quantkit.core.graph import Graph, Group
from quantkit.core.table import Interactions, Table

UNIT_ROUNDOFF = 2.0**-24  # of float32


def pass_error(graph: Graph) -> float:
    """How far a float32 pass forward and back may be off, relative to the norm of what it gives.

    A sum of n products is off by at most n roundings of its terms, and an element of another layer by a few; what follows passes it on.
    Orders of addition differ with the processor, the threads and the batch, all within this.
    """
    sums = [layer.macs // math.prod(layer.output_shape) for layer in graph.layers]
    return 2 * sum(products + 4 for products in sums) * UNIT_ROUNDOFF


def allocations(loss: Table, cost: Table, groups: Sequence[Group], fixed: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Every allocation that the menus, the tables and the pins allow."""
    menus = []
    for group in groups:
        menu = [scheme for scheme in group.schemes if loss.at(group.name, scheme) == loss.at(group.name, scheme)]
        menu = [scheme for scheme in menu if cost.at(group.name, scheme) == cost.at(group.name, scheme)]
        menus.append([scheme for scheme in menu if scheme == (fixed or {}).get(group.name, scheme)])
    for picked in itertools.product(*menus):
        yield {group.name: scheme for group, scheme in zip(groups, picked, strict=True)}


def allocation_loss(loss: Table, interactions: Interactions | None, allocation: Mapping[str, str]) -> float:
    """The table's sum; with interactions ½ x'Mx, pair by pair."""
    if interactions is None:
        return sum(loss.at(group, scheme) for group, scheme in allocation.items())
    pairs = itertools.product(allocation.items(), allocation.items())
    return sum(0.5 * interactions.matrix[interactions.index(*one), interactions.index(*other)] for one, other in pairs)


def allocation_cost(cost: Table, edges: Sequence[Edge], allocation: Mapping[str, str]) -> float:
    """The table's sum, and each edge between a float group and one that is not."""
    total = sum(cost.at(group, scheme) for group, scheme in allocation.items())
    for edge in edges:
        if [allocation[edge.producer], allocation[edge.consumer]].count("fp32") == 1:
            total += edge.cost
    return total


def every_allocation(
    loss: Table,
    cost: Table,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    fixed: Mapping[str, str] | None = None,
) -> list[tuple[float, float, dict[str, str]]]:
    """(loss, cost, allocation) of everything that is possible."""
    return [
        (allocation_loss(loss, interactions, allocation), allocation_cost(cost, edges, allocation), allocation)
        for allocation in allocations(loss, cost, groups, fixed)
    ]


def dense_hessian(module: nn.Module, loss: Callable[[Tensor], Tensor], inputs: Tensor, weight: str) -> Tensor:
    """[n, n], the whole block of one weight: every second derivative of loss(module(inputs)), n numbers in the weight."""
    parameter = dict(module.named_parameters(remove_duplicate=False))[weight].detach()

    def of_weight(flat: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return loss(torch.func.functional_call(module, {weight: flat.reshape(parameter.shape)}, (inputs,), tie_weights=True))

    return torch.autograd.functional.hessian(of_weight, parameter.flatten())


def round_half_even(value: float) -> int:
    """The nearest whole number, the even one of two; from floor and a comparison, no library rounding."""
    whole = math.floor(value)
    rest = value - whole
    return whole + int(rest > 0.5 or (rest == 0.5 and whole % 2 == 1))


def quantize_loop(values: Sequence[float], scale: float, zero_point: int, code_min: int, code_max: int) -> list[int]:
    """ONNX QuantizeLinear, value by value: one float32 division, then rounding, then the zero point, then saturation."""
    quotients = [float(np.float32(value) / np.float32(scale)) for value in values]
    return [min(max(round_half_even(quotient) + zero_point, code_min), code_max) for quotient in quotients]


def nearest_codes(values: Sequence[float], scale: float, largest: int) -> list[int]:
    """The codes in ±largest with the least error, by trying them all."""
    return [min(range(-largest, largest + 1), key=lambda code: abs(code * scale - value)) for value in values]
