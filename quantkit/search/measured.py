"""What a search gets (`Space`), what it measures (`Measured`), and what it gives back (`SearchResult`).

A search looks at a network only through `measure`, which knows the data, the metric and the promise. So a search needs
neither torch nor a runtime, and the promise is judged in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantkit.allocation import Edge, Plan, predict
from quantkit.graph import Group
from quantkit.spec import parse_scheme
from quantkit.table import Interactions, Table


@dataclass(frozen=True, slots=True)
class Measured:
    """What one allocation lost on the search split, in the metric's units, positive when quality is lost; nan is a broken network.

    `passes` is the caller's verdict against the promise. `figures` is whatever else was seen; no search reads it.
    """

    drop: float
    passes: bool
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON form; a `nan` drop becomes null."""
        return {"drop": None if math.isnan(self.drop) else self.drop, "passes": self.passes, "figures": dict(self.figures)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`."""
        return cls(math.nan if data["drop"] is None else data["drop"], data["passes"], data["figures"])


Measure = Callable[[Mapping[str, str]], Measured]


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan beside what was measured of it."""

    plan: Plan
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"plan": self.plan.to_json(), "measured": self.measured.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of `to_json`."""
        return cls(Plan.from_json(data["plan"]), Measured.from_json(data["measured"]))


def precision(scheme: str) -> tuple[int, int, int]:
    """What sorts schemes by precision."""
    return parse_scheme(scheme).precision


@dataclass(frozen=True, slots=True)
class Space:
    """What may be chosen, what is predicted of it, and the front of those predictions, cheapest first."""

    groups: Sequence[Group]
    loss: Table
    cost: Table
    front: Sequence[Plan]
    interactions: Interactions | None = None
    edges: Sequence[Edge] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)

    def plan(self, allocation: Mapping[str, str]) -> Plan:
        """The plan of any allocation of the space."""
        return predict(self.loss, self.cost, allocation, interactions=self.interactions, edges=self.edges)

    def menu(self, group: Group) -> tuple[str, ...]:
        """The schemes that the group can take (on its menu, possible in both tables, not ruled out by a pin), highest precision first."""
        menu = (self.fixed[group.name],) if group.name in self.fixed else group.schemes
        tables = (self.loss, self.cost)
        possible = [scheme for scheme in menu if all(math.isfinite(table.at(group.name, scheme)) for table in tables)]
        return tuple(sorted(possible, key=precision, reverse=True))

    def highest_precision(self) -> dict[str, str]:
        """The allocation that nothing lies above: all float, but for pins and menus without it."""
        return {group.name: self.menu(group)[0] for group in self.groups}


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`best` is the cheapest trial that passes, None if none does; `nearest` is `best`, or else the trial that lost least.

    `measured` holds every trial in the order of measurement, none twice.
    """

    best: Trial | None
    nearest: Trial
    measured: tuple[Trial, ...]

    def extended(self, trials: Sequence[Trial]) -> SearchResult:
        """The result had these trials been made too."""
        return judged((*self.measured, *trials))

    def to_json(self) -> dict[str, Any]:
        """A JSON form: the trials, and where among them the two stand."""
        best = None if self.best is None else self.measured.index(self.best)
        return {"best": best, "nearest": self.measured.index(self.nearest), "measured": [trial.to_json() for trial in self.measured]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchResult:
        """The inverse of `to_json`."""
        measured = tuple(Trial.from_json(trial) for trial in data["measured"])
        return cls(None if data["best"] is None else measured[data["best"]], measured[data["nearest"]], measured)


class Trials:
    """The trials of one search so far: an allocation is measured once, whoever asks again."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._trials: dict[frozenset[tuple[str, str]], Trial] = {}

    def of(self, plan: Plan) -> Trial:
        """The trial of this plan, measured now if it was not before."""
        key = frozenset(plan.allocation.items())
        if key not in self._trials:
            self._trials[key] = Trial(plan, self._measure(plan.allocation))
        return self._trials[key]

    def result(self) -> SearchResult:
        """What came of it; at least one trial must have been made."""
        return judged(tuple(self._trials.values()))


def judged(trials: tuple[Trial, ...]) -> SearchResult:
    """Which of the trials, of which there is at least one, is best and which nearest."""
    passing = [trial for trial in trials if trial.measured.passes]
    best = min(passing, key=lambda trial: (trial.plan.predicted_cost, _drop(trial)), default=None)
    return SearchResult(best, best or min(trials, key=lambda trial: (_drop(trial), trial.plan.predicted_cost)), trials)


def _drop(trial: Trial) -> float:
    return math.inf if math.isnan(trial.measured.drop) else trial.measured.drop
