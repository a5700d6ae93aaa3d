"""The tables as one knapsack over options, an option being one (group, scheme) that is possible.

Loss and every resource have the same shape: a number for each option taken, and one for each pair of options taken together.
An edge is such a pair term: its cost stands where one option is fp32 and the other is not. Groups are sorted by name in here, so that the
order in which they are given changes no answer, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.plan import SLACK, Edge, Limit, Plan, Resource
from quantkit.errors import ContractError, SchemeError, unknown
from quantkit.graph import Group
from quantkit.spec import is_float
from quantkit.table import Floats, Interactions, Table

Chosen = NDArray[np.intp]  # one option index per group


@dataclass(frozen=True, slots=True, eq=False)
class Crossings:
    """`costs[e]` is paid where exactly one of the groups `ends[e]`, by index, is fp32; ends sorted, none twice."""

    ends: NDArray[np.intp]
    costs: Floats

    def __len__(self) -> int:
        return len(self.costs)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """`linear[a]` for an option, `pair[a, b]` for two options of different groups; symmetric, zero within a group.

    Where `pair` comes of edges, `crossings` says the same of groups, and `floats` which options are fp32.
    """

    linear: Floats
    pair: Floats
    crossings: Crossings
    floats: NDArray[np.bool_]

    @property
    def has_pairs(self) -> bool:
        """Whether there is any pair term."""
        return self.pair.strides != (0, 0)

    def total(self, chosen: Chosen) -> float:
        """The value of one option per group."""
        pairs: Iterable[float] = ()
        if self.crossings:
            floats = self.floats[chosen][self.crossings.ends]
            pairs = self.crossings.costs[floats[:, 0] != floats[:, 1]].tolist()
        elif self.has_pairs:
            pairs = 0.5 * self.pair[chosen][:, chosen].sum(axis=1)
        return math.fsum([*self.linear[chosen].tolist(), *pairs])

    def field(self, chosen: Chosen) -> Floats:
        """What each option would add, the other groups standing as chosen."""
        return np.asarray(self.linear + self.pair[chosen].sum(axis=0)) if self.has_pairs else self.linear


@dataclass(frozen=True, slots=True, eq=False)
class Within:
    """At most so much of a form. An excess is told as a share of `at_most` and the `offset` that the form leaves out."""

    form: Form
    at_most: float
    offset: float = 0.0

    def holds(self, chosen: Chosen) -> bool:
        """Whether the options are within it."""
        return self.form.total(chosen) <= self.highest

    @property
    def size(self) -> float:
        """What shares are of."""
        return abs(self.at_most + self.offset) or 1.0

    @property
    def highest(self) -> float:
        """The highest value that still counts as within."""
        return self.at_most + SLACK * abs(self.at_most)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """`group[a]`, `scheme[a]` of option a; `isolated[a]` is its loss alone; `loss` is what is minimised, under `limits` and on `cost`.

    `order` is that of the groups as they were given. `matrix` is the whole M behind `loss` where there are interactions.
    """

    groups: tuple[str, ...]
    order: tuple[str, ...]
    group: NDArray[np.intp]
    scheme: tuple[str, ...]
    isolated: Floats
    loss: Form
    cost: Form
    limits: tuple[Within, ...]
    matrix: Floats | None

    def plan(self, chosen: Chosen, gap: float = math.nan) -> Plan:
        """The chosen options by name, with what they lose and cost."""
        found = {self.groups[self.group[option]]: self.scheme[option] for option in chosen}
        return Plan({name: found[name] for name in self.order}, self.loss.total(chosen), self.cost.total(chosen), gap)

    def is_float(self) -> NDArray[np.bool_]:
        """Which options compute in floating point."""
        return np.array([is_float(scheme) for scheme in self.scheme])

    def under(self, budget: float) -> tuple[Within, ...]:
        """The limits, and at most `budget` of the cost."""
        return (Within(self.cost, budget), *self.limits)


def build(
    loss: Table,
    cost: Table,
    groups: Sequence[Group],
    *,
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Mapping[str, str] | None = None,
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
    floats = np.array([is_float(scheme) for scheme in schemes])

    def form(resource: Resource) -> Form:
        crossings = _crossings(names, resource)
        return Form(_column(resource.table, names, options), _pairs(place, floats, crossings), crossings, floats)

    isolated, none = _column(loss, names, options), Crossings(np.empty((0, 2), dtype=np.intp), np.empty(0))
    losses, matrix = Form(isolated, _nothing(len(options)), none, floats), None
    if interactions:
        rows = [interactions.index(names[group], scheme) for group, scheme in options]
        matrix = interactions.matrix[np.ix_(rows, rows)]
        apart = np.where(place[:, None] != place[None, :], matrix, 0.0)
        losses = Form(0.5 * np.diag(matrix), apart if apart.any() else _nothing(len(options)), none, floats)
    held = tuple(Within(form(limit.resource), limit.at_most - limit.resource.offset, limit.resource.offset) for limit in limits)
    given = tuple(group.name for group in groups)
    return Problem(names, given, place, schemes, isolated, losses, form(Resource(cost, tuple(edges))), held, matrix)


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
    return build(loss, cost, groups, interactions=interactions, edges=edges).plan(np.arange(len(groups), dtype=np.intp))


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


def _menu(group: Group, tables: Sequence[Table]) -> list[str]:
    shared = [scheme for scheme in group.schemes if all(scheme in table.schemes for table in tables)]
    possible = [scheme for scheme in shared if all(math.isfinite(table.at(group.name, scheme)) for table in tables)]
    if not possible:
        got = f"group {group.name!r} has no scheme with both a {' and a '.join(table.name for table in tables)}"
        raise ContractError(got, f"a number for one of {', '.join(group.schemes)}")
    return possible


def _column(table: Table, names: Sequence[str], options: Sequence[tuple[int, str]]) -> Floats:
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
