"""The tables as one knapsack over options, an option being one (group, scheme) that is possible.

Loss and cost have the same shape: a number for each option taken, and one for each pair of options taken together.
An edge is such a pair term: its cost stands where one option is fp32 and the other is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.plan import Edge, Plan
from quantkit.errors import ContractError, SchemeError, unknown
from quantkit.graph import Group
from quantkit.spec import is_float
from quantkit.table import Floats, Interactions, Table

Chosen = NDArray[np.intp]  # one option index per group


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """`linear[a]` for an option, `pair[a, b]` for two options of different groups; symmetric, zero within a group."""

    linear: Floats
    pair: Floats

    def total(self, chosen: Chosen) -> float:
        """The value of one option per group."""
        return math.fsum([*self.linear[chosen], *(0.5 * self.pair[np.ix_(chosen, chosen)].ravel())])  # the same in any order of groups

    def field(self, chosen: Chosen) -> Floats:
        """What each option would add, the other groups standing as chosen."""
        return np.asarray(self.linear + self.pair[:, chosen].sum(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """`group[a]`, `scheme[a]` of option a; `isolated[a]` is its loss alone; `loss` is what is minimised, under `cost`."""

    groups: tuple[str, ...]
    group: NDArray[np.intp]
    scheme: tuple[str, ...]
    isolated: Floats
    loss: Form
    cost: Form
    edges: tuple[Edge, ...]

    def plan(self, chosen: Chosen, gap: float = math.nan) -> Plan:
        """The chosen options by name, with what they lose and cost."""
        allocation = {self.groups[self.group[option]]: self.scheme[option] for option in chosen}
        return Plan(allocation, self.loss.total(chosen), self.cost.total(chosen), gap)

    def is_float(self) -> NDArray[np.bool_]:
        """Which options compute in floating point."""
        return np.array([is_float(scheme) for scheme in self.scheme])


def build(
    loss: Table,
    cost: Table,
    groups: Sequence[Group],
    interactions: Interactions | None,
    edges: Sequence[Edge],
    fixed: Mapping[str, str] | None,
) -> Problem:
    """The problem of these tables.

    Raises SchemeError for a pin that does not exist, ContractError for a group without any scheme that has both a loss and a cost.
    """
    names = tuple(group.name for group in groups)
    options = [(place, scheme) for place, group in enumerate(pin(groups, fixed)) for scheme in _menu(group, loss, cost)]
    place = np.array([place for place, _ in options], dtype=np.intp)
    schemes = tuple(scheme for _, scheme in options)
    isolated = np.array([loss.at(names[group], scheme) for group, scheme in options])
    costs = np.array([cost.at(names[group], scheme) for group, scheme in options])
    none = np.zeros((len(options), len(options)))
    losses = Form(isolated, none)
    if interactions:
        rows = [interactions.index(names[group], scheme) for group, scheme in options]
        matrix = interactions.matrix[np.ix_(rows, rows)]
        losses = Form(0.5 * np.diag(matrix), np.where(place[:, None] != place[None, :], matrix, 0.0))
    paid = tuple(edge for edge in edges if edge.producer != edge.consumer and edge.cost != 0)
    return Problem(names, place, schemes, isolated, losses, Form(costs, _changes(names, place, schemes, paid)), paid)


def predict(
    loss: Table,
    cost: Table,
    allocation: Mapping[str, str],
    *,
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
) -> Plan:
    """The plan of this allocation. With `interactions` the loss is ½ x'Mx, diagonal included, in place of the table's."""
    groups = [Group(name, (), (scheme,), "") for name, scheme in allocation.items()]
    return build(loss, cost, groups, interactions, edges, None).plan(np.arange(len(groups), dtype=np.intp))


def pin(groups: Sequence[Group], fixed: Mapping[str, str] | None) -> tuple[Group, ...]:
    """The groups, those in `fixed` with that scheme only. Raises SchemeError for a group or a scheme that is not there."""
    menus = {group.name: group.schemes for group in groups}
    pins = fixed or {}
    for name, scheme in pins.items():
        if name not in menus:
            raise SchemeError(*unknown("group", name, menus))
        if scheme not in menus[name]:
            raise SchemeError(*unknown(f"scheme of group {name!r}", scheme, menus[name]))
    return tuple(replace(group, schemes=(pins[group.name],)) if group.name in pins else group for group in groups)


def _menu(group: Group, loss: Table, cost: Table) -> list[str]:
    shared = [scheme for scheme in group.schemes if scheme in loss.schemes and scheme in cost.schemes]
    possible = [scheme for scheme in shared if np.isfinite(loss.at(group.name, scheme)) and np.isfinite(cost.at(group.name, scheme))]
    if not possible:
        got = f"group {group.name!r} has no scheme with both a {loss.name} and a {cost.name}"
        raise ContractError(got, f"a number for one of {', '.join(group.schemes)}")
    return possible


def _changes(names: Sequence[str], place: NDArray[np.intp], schemes: Sequence[str], edges: Sequence[Edge]) -> Floats:
    pair = np.zeros((len(schemes), len(schemes)))
    floats = np.array([is_float(scheme) for scheme in schemes])
    differ = floats[:, None] != floats[None, :]
    for edge in edges:
        joined = (place == names.index(edge.producer))[:, None] & (place == names.index(edge.consumer))[None, :]
        pair += edge.cost * (differ & (joined | joined.T))
    return pair
