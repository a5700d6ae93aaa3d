"""What a search gets (`Space`), what it measures (`Measured`), and what it gives back (`SearchResult`).

A search sees a network only through `measure`, which knows the data, the metric and the promise. So a search needs
neither torch nor a runtime, and the promise is judged in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from quantkit.allocation import Edge, Limit, Plan, Resource, Shortage, predict
from quantkit.core.graph import Group
from quantkit.core.spec import Allocation, Scheme
from quantkit.core.table import Interactions, Table


@dataclass(frozen=True, slots=True)
class Measured:
    """What one allocation lost on the search split, in the metric's units, positive when quality is lost; nan is a broken network.

    `passes` is the caller's verdict against the promise. `figures` is whatever else was measured: where the divergence from the float
    network is among them, searches compare by it, as it is less noisy; where a limited resource is, that counts and not what was predicted.
    """

    drop: float
    passes: bool
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def damage(self) -> float:
        """What to compare plans by; infinite for a broken network."""
        found = self.figures.get("divergence", self.drop)
        return math.inf if math.isnan(found) or math.isnan(self.drop) else found

    def to_json(self) -> dict[str, Any]:
        """A JSON form; a `nan` drop becomes null."""
        return {"drop": None if math.isnan(self.drop) else self.drop, "passes": self.passes, "figures": dict(self.figures)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`."""
        return cls(math.nan if data["drop"] is None else data["drop"], data["passes"], data["figures"])


Measure = Callable[[Allocation], Measured]


class Outlook:
    """Who is told what a search will likely measure, and knows of some plans whether they pass; this one is nobody."""

    def expect(self, plans: Sequence[Plan], others: int) -> None:
        """Likely measured next, known or not, and how many others."""

    def passes(self, plan: Plan) -> bool | None:
        """None where that is not known yet."""
        del plan
        return None


NOBODY = Outlook()


class TimeIsUp(Exception):  # noqa: N818 - no error: the best so far is the answer
    """Raised by a `Measure` in place of its first measurement past the time limit."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Tie:
    """Of plans that use of `first` within `share` of the least, the best is the one that is predicted to use least of `then`."""

    first: Resource
    then: Resource
    share: float = 0.01

    def near(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of the trials, of which there is at least one, that are as good in `first`."""
        used = [self.first.total(trial.plan.allocation) for trial in trials]
        return [trial for trial, value in zip(trials, used, strict=True) if value <= (1 + self.share) * min(used)]


@dataclass(frozen=True, slots=True)
class Space:
    """What may be chosen, what is predicted of it, and the front of those predictions, cheapest first.

    `limits` hold beside the promise; with a `shortage` none can keep them all, and the front is the plan that is nearest. With `least_drop`
    the cost is no object: of plans within the limits the least damaged is the best. `tie` says which is best of those of nearly one cost.
    """

    groups: Sequence[Group]
    loss: Table
    cost: Table
    front: Sequence[Plan]
    interactions: Interactions | None = None
    edges: Sequence[Edge] = ()
    fixed: Allocation = field(default_factory=dict)
    limits: Sequence[Limit] = ()
    least_drop: bool = False
    shortage: Shortage | None = None
    tie: Tie | None = None

    def excess(self, plan: Plan, figures: Mapping[str, float] | None = None) -> float:
        """The sum of the shares by which the plan exceeds its limits, as measured where it was; 0 within all of them."""
        seen = figures or {}
        used = {limit.resource.name: seen.get(limit.resource.name, limit.resource.total(plan.allocation)) for limit in self.limits}
        return math.fsum(limit.excess(used[limit.resource.name]) for limit in self.limits)

    def judged(self, trials: tuple[Trial, ...], untried: Plan | None = None) -> SearchResult:
        """Which of the trials, of which there is at least one, is best and which nearest."""
        over = [self.excess(trial.plan, trial.measured.figures) for trial in trials]
        passing = [trial for trial, excess in zip(trials, over, strict=True) if trial.measured.passes and excess == 0]
        worth = _damage_first if self.least_drop else _cost_first
        best = min(passing, key=worth, default=None)
        if best is not None and self.tie is not None:
            then = self.tie.then
            best = min(self.tie.near(passing), key=lambda trial: (then.total(trial.plan.allocation), _drop(trial)))
        near = min(range(len(trials)), key=lambda place: (over[place], _drop(trials[place]), trials[place].plan.predicted_cost))
        return SearchResult(best, best or trials[near], trials, untried)

    def plan(self, allocation: Allocation) -> Plan:
        """The plan of any allocation of the space."""
        return predict(self.loss, self.cost, allocation, interactions=self.interactions, edges=self.edges)

    def menu(self, group: Group) -> tuple[Scheme, ...]:
        """The schemes that the group can take (on its menu, possible in both tables, not ruled out by a pin), highest precision first."""
        menu = (self.fixed[group.name],) if group.name in self.fixed else group.schemes
        tables = (self.loss, self.cost)
        possible = [scheme for scheme in menu if all(math.isfinite(table.at(group.name, scheme)) for table in tables)]
        return tuple(sorted(possible, key=lambda scheme: scheme.precision, reverse=True))

    def highest_precision(self) -> dict[str, Scheme]:
        """The allocation that nothing lies above: all float, but for pins and menus without it."""
        return {group.name: self.menu(group)[0] for group in self.groups}


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`best` is the cheapest trial that passes within the limits, or the least damaged where that is wanted; None if none does.

    `nearest` is `best`, or else the trial that exceeds the limits least and of those lost least. `measured` holds every trial in the order
    of measurement, none twice. `untried` is what came next when the time was up; None where the search came to its end.
    """

    best: Trial | None
    nearest: Trial
    measured: tuple[Trial, ...]
    untried: Plan | None = None

    def extended(self, space: Space, trials: Sequence[Trial]) -> SearchResult:
        """The result had these trials been made too."""
        return space.judged((*self.measured, *trials), self.untried)

    def to_json(self) -> dict[str, Any]:
        """A JSON form: the trials, and where among them the two stand."""
        best = None if self.best is None else self.measured.index(self.best)
        trials = [trial.to_json() for trial in self.measured]
        untried = self.untried and self.untried.to_json()
        return {"best": best, "nearest": self.measured.index(self.nearest), "measured": trials, "untried": untried}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchResult:
        """The inverse of `to_json`."""
        measured = tuple(Trial.from_json(trial) for trial in data["measured"])
        best = None if data["best"] is None else measured[data["best"]]
        return cls(best, measured[data["nearest"]], measured, data["untried"] and Plan.from_json(data["untried"]))


class Trials:
    """The trials of one search so far: an allocation is measured once, whoever asks again."""

    def __init__(self, measure: Measure, space: Space, outlook: Outlook = NOBODY) -> None:
        self._measure, self._space, self.outlook = measure, space, outlook
        self._trials: dict[frozenset[tuple[str, str]], Trial] = {}
        self._untried: Plan | None = None

    def of(self, plan: Plan) -> Trial:
        """The trial of this plan, measured now if it was not before."""
        key = frozenset(plan.allocation.items())
        if key not in self._trials:
            self._untried = plan
            self._trials[key] = Trial(plan, self._measure(plan.allocation))
            self._untried = None
        return self._trials[key]

    @contextmanager
    def while_there_is_time(self) -> Iterator[None]:
        """Ends quietly where a measurement finds the time up; by then at least one must have been made."""
        try:
            yield
        except TimeIsUp:
            if not self._trials:
                raise

    def result(self) -> SearchResult:
        """What came of it; at least one trial must have been made."""
        return self._space.judged(tuple(self._trials.values()), self._untried)


def _cost_first(trial: Trial) -> tuple[float, float]:
    return trial.plan.predicted_cost, _drop(trial)


def _damage_first(trial: Trial) -> tuple[float, float]:
    return trial.measured.damage, trial.plan.predicted_cost


def _drop(trial: Trial) -> float:
    return math.inf if math.isnan(trial.measured.drop) else trial.measured.drop
