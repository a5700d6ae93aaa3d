"""From tables to a solver's problem, and from its answer to a plan.

Groups are sorted by name on the way in, so that the order in which they are given changes no answer, ties included.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.plan import Edge, Limit, Plan, Resource
from quantkit.allocation.problem import Chosen, Crossings, Form, Problem, Within
from quantkit.core.errors import ContractError, SchemeError, unknown
from quantkit.core.graph import Group
from quantkit.core.spec import Allocation, Scheme
from quantkit.core.table import Floats, Interactions, Table


def build(
    loss: Table,
    cost: Table,
    groups: Sequence[Group],
    *,
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Allocation | None = None,
) -> Problem:
    """The problem of these tables.

    Raises SchemeError for a pin that does not exist, ContractError for a group without any scheme that has both a loss and a cost.
    """
    ordered = sorted(pin(groups, fixed), key=lambda group: group.name)
    names = tuple(group.name for group in ordered)
    tables = (loss, cost, *(limit.resource.table for limit in limits))
    options = [(place, scheme) for place, group in enumerate(ordered) for scheme in _menu(group, tables)]
    place = np.array([place for place, _ in options], dtype=np.intp)
    schemes = tuple(scheme for _, scheme in options)
    floats = np.array([scheme.reads_float for scheme in schemes])

    def form(resource: Resource) -> Form:
        crossings = _crossings(names, resource)
        return Form(_column(resource.table, names, options), _pairs(place, floats, crossings), crossings, floats)

    isolated, none = _column(loss, names, options), Crossings(np.empty((0, 2), dtype=np.intp), np.empty(0))
    losses, matrix = Form(isolated, _nothing(len(options)), none, floats), None
    if interactions:
        rows = [interactions.index(names[group], scheme) for group, scheme in options]
        matrix = interactions.matrix[np.ix_(rows, rows)]
        apart, ends = matrix.copy(), np.searchsorted(place, np.arange(len(names) + 1))
        for start, end in itertools.pairwise(ends):
            apart[start:end, start:end] = 0.0
        losses = Form(0.5 * np.diag(matrix), apart if apart.any() else _nothing(len(options)), none, floats)
    held = tuple(Within(form(limit.resource), limit.at_most - limit.resource.offset, limit.resource.offset) for limit in limits)
    given = tuple(group.name for group in groups)
    return Problem(names, given, place, schemes, isolated, losses, form(Resource(cost, tuple(edges))), held, matrix)


def plan_of(problem: Problem, chosen: Chosen, gap: float = math.nan) -> Plan:
    """The chosen options by name, with what they lose and cost."""
    found = {problem.groups[problem.group[option]]: problem.scheme[option] for option in chosen}
    return Plan({name: found[name] for name in problem.order}, problem.loss.total(chosen), problem.cost.total(chosen), gap)


def predict(
    loss: Table,
    cost: Table,
    allocation: Allocation,
    *,
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
) -> Plan:
    """The plan of this allocation. With `interactions` the loss is ½ x'Mx, diagonal included, in place of the table's."""
    groups = [Group(name, (), (scheme,), "") for name, scheme in allocation.items()]
    problem = build(loss, cost, groups, interactions=interactions, edges=edges)
    return plan_of(problem, np.arange(len(groups), dtype=np.intp))


def pin(groups: Sequence[Group], fixed: Allocation | None) -> tuple[Group, ...]:
    """The groups, those in `fixed` with that scheme only. Raises SchemeError for a group or a scheme that is not there."""
    menus = {group.name: group.schemes for group in groups}
    pins = fixed or {}
    for name, scheme in pins.items():
        if name not in menus:
            raise SchemeError(*unknown("group", name, menus))
        if scheme not in menus[name]:
            raise SchemeError(*unknown(f"scheme of group {name!r}", scheme, menus[name]))
    return tuple(replace(group, schemes=(pins[group.name],)) if group.name in pins else group for group in groups)


def _menu(group: Group, tables: Sequence[Table]) -> list[Scheme]:
    shared = [scheme for scheme in group.schemes if all(scheme in table.schemes for table in tables)]
    possible = [scheme for scheme in shared if all(math.isfinite(table.at(group.name, scheme)) for table in tables)]
    if not possible:
        got = f"group {group.name!r} has no scheme with both a {' and a '.join(table.name for table in tables)}"
        raise ContractError(got, f"a number for one of {', '.join(group.schemes)}")
    return possible


def _column(table: Table, names: Sequence[str], options: Sequence[tuple[int, Scheme]]) -> Floats:
    rows = {name: place for place, name in enumerate(table.groups)}
    columns = {name: place for place, name in enumerate(table.schemes)}
    return np.array([table.values[rows[names[group]], columns[scheme]] for group, scheme in options])


def _crossings(names: Sequence[str], resource: Resource) -> Crossings:
    places = {name: place for place, name in enumerate(names)}
    paid: dict[tuple[int, int], list[float]] = {}
    for edge in resource.edges:
        if edge.producer != edge.consumer and edge.cost != 0:
            ends = sorted((places[edge.producer], places[edge.consumer]))
            paid.setdefault((ends[0], ends[1]), []).append(edge.cost)
    joined = sorted(paid)
    return Crossings(np.array(joined, dtype=np.intp).reshape(-1, 2), np.array([math.fsum(paid[ends]) for ends in joined]))


def _pairs(place: NDArray[np.intp], floats: NDArray[np.bool_], crossings: Crossings) -> Floats:
    if not crossings:
        return _nothing(len(place))
    pair = np.zeros((len(place), len(place)))
    for (one, other), cost in zip(crossings.ends, crossings.costs, strict=True):
        ones, others = np.flatnonzero(place == one), np.flatnonzero(place == other)
        paid = cost * (floats[ones][:, None] != floats[others][None, :])
        pair[np.ix_(ones, others)] += paid
        pair[np.ix_(others, ones)] += paid.T
    return pair


def _nothing(size: int) -> Floats:
    return np.broadcast_to(0.0, (size, size))  # zeros that take no room
