"""The front of plans by what they are predicted to lose and the bytes they take: one multiple-choice knapsack a plan, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantkit.allocation.milp import least
from quantkit.allocation.problem import Crossings, Floats, Form, Problem, Within
from quantkit.core.errors import RequestError
from quantkit.core.spec import Allocation, Scheme, parse_scheme
from quantkit.export.outline import Part, slices
from quantkit.settings.bounds import FLOAT_BITS, Bounds
from quantkit.streaming.rounding import is_float
from quantkit.streaming.shelf import Record

LEVELS = 33  # of predicted loss, from the least to that of the smallest plan, in equal steps of its logarithm
GAP = 1e-3  # of the optimum, at which a proof may end: blocks are much alike, and so many plans nearly tie


@dataclass(frozen=True, eq=False)  # without slots: properties are kept
class Choices:
    """Every group with its schemes, in the order of the network. `fixed_bytes` are those of the table; `weights` all numbers there are."""

    records: tuple[Record, ...]
    fixed_bytes: int
    weights: int

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Layers by group."""
        return {name: layers for record in self.records for name, layers in record.groups.items()}

    @cached_property
    def loss(self) -> Mapping[str, Mapping[str, float]]:
        """By group and scheme."""
        return {name: losses for record in self.records for name, losses in record.loss.items()}

    @cached_property
    def _parts(self) -> Mapping[str, Mapping[str, Part]]:
        found: dict[str, dict[str, Part]] = {}
        for record in self.records:
            for scheme, layers in record.parts.items():
                found.setdefault(scheme, {}).update(layers)
        return found

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Weights of each layer."""
        return {layer: count for record in self.records for layer, count in record.weights.items()}

    def parts(self, plan: Allocation) -> dict[str, Part]:
        """Where each layer lies under a plan."""
        return {layer: self._parts[scheme][layer] for name, scheme in plan.items() for layer in self.groups[name]}

    def bytes_of(self, group: str, scheme: str) -> int:
        """What a group's matrices take in the file."""
        return sum(one.bytes for one in slices(self._parts[scheme][layer] for layer in self.groups[group]))

    def bytes(self, plan: Allocation) -> int:
        """What all weights take in the file."""
        return self.fixed_bytes + sum(self.bytes_of(name, scheme) for name, scheme in plan.items())

    def predicted(self, plan: Allocation) -> float:
        """The sum of the groups' losses."""
        return math.fsum(self.loss[name][scheme] for name, scheme in plan.items())

    def average_bits(self, plan: Allocation) -> float:
        """Bits of a code, a mean over the weights of all groups; scales are not counted."""
        sizes = {name: sum(self.counts[layer] for layer in layers) for name, layers in self.groups.items()}
        return math.fsum(sizes[name] * bits(scheme) for name, scheme in plan.items()) / sum(sizes.values())

    def uniform(self, scheme: str) -> dict[str, Scheme]:
        """That scheme wherever a group may have it, else the group's first."""
        return {name: parse_scheme(scheme if scheme in losses else next(iter(losses))) for name, losses in self.loss.items()}


def bits(scheme: Scheme) -> int:
    """Of a code of the scheme's weights."""
    return FLOAT_BITS if is_float(scheme) or scheme.weights is None else scheme.weights.bits


def front(choices: Choices, bounds: Bounds, *, smaller: bool) -> tuple[Allocation, ...]:
    """Plans within the bounds, from that of least predicted loss to the smallest; of two the smaller one is predicted to lose more.

    Without `smaller`, the first alone. RequestError where no plan is within the bounds.
    """
    problem = _problem(choices)
    limits = _limits(choices, problem, bounds)
    best = least(problem, problem.loss, limits, GAP)
    smallest = least(problem, problem.cost, (), GAP)
    if best is None or smallest is None:
        got = f"--max-bytes or --average-bits below what the schemes reach ({choices.bytes(_plan(choices, problem, smallest)):,} bytes)"
        raise RequestError(got, "bounds that a plan can keep", "raise them, or add narrower schemes")
    if not smaller:
        return (_plan(choices, problem, best),)
    low, high = problem.loss.total(best[0]), problem.loss.total(smallest[0])
    levels = np.geomspace(max(low, 1e-12), max(high, low, 1e-12), LEVELS) * (1 + 1e-9)
    found = [least(problem, problem.cost, (Within(problem.loss, float(level)), *limits), GAP) for level in levels]
    plans = [_plan(choices, problem, one) for one in (best, *found, smallest) if one is not None]
    within = [plan for plan in plans if all(limit.holds(_chosen(problem, plan)) for limit in limits)]
    kept: list[Allocation] = []
    for plan in sorted(within, key=lambda plan: (choices.bytes(plan), choices.predicted(plan))):
        if not kept or choices.predicted(plan) < choices.predicted(kept[-1]):
            kept.append(plan)
    return tuple(reversed(kept))


def _problem(choices: Choices) -> Problem:
    options = [(place, name, scheme) for place, (name, losses) in enumerate(choices.loss.items()) for scheme in losses]
    loss = np.array([choices.loss[name][scheme] for _, name, scheme in options])
    cost = np.array([float(choices.bytes_of(name, scheme)) for _, name, scheme in options])
    schemes, groups = tuple(scheme for _, _, scheme in options), tuple(choices.loss)
    group = np.array([place for place, _, _ in options], dtype=np.intp)
    return Problem(groups, groups, group, schemes, loss, _form(loss), _form(cost), (), None)


def _form(values: Floats) -> Form:
    count = len(values)
    none = Crossings(np.zeros((0, 2), np.intp), np.zeros(0))
    return Form(values, np.broadcast_to(0.0, (count, count)), none, np.zeros(count, bool))


def _limits(choices: Choices, problem: Problem, bounds: Bounds) -> tuple[Within, ...]:
    found = []
    if bounds.bytes is not None:
        most = bounds.bytes.at_most(4.0 * choices.weights)
        found.append(Within(problem.cost, most - choices.fixed_bytes, choices.fixed_bytes))
    if bounds.average_bits is not None:
        sizes = [sum(choices.counts[layer] for layer in choices.groups[name]) for name in problem.groups]
        options = zip(problem.group, problem.scheme, strict=True)
        shares = [sizes[place] * bits(parse_scheme(scheme)) / sum(sizes) for place, scheme in options]
        found.append(Within(_form(np.array(shares)), bounds.average_bits.at_most(FLOAT_BITS)))
    return tuple(found)


def _plan(choices: Choices, problem: Problem, found: tuple[np.ndarray[tuple[int], np.dtype[np.intp]], float] | None) -> dict[str, Scheme]:
    if found is None:
        return {}
    chosen = {problem.groups[problem.group[option]]: parse_scheme(problem.scheme[option]) for option in found[0]}
    return {name: chosen[name] for name in choices.groups}


def _chosen(problem: Problem, plan: Allocation) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    places = [place for place, option in enumerate(problem.group) if plan[problem.groups[option]] == problem.scheme[place]]
    return np.array(places, dtype=np.intp)


def uniform_plans(choices: Choices, schemes: Sequence[Scheme]) -> dict[str, Allocation]:
    """By scheme."""
    return {scheme.name: choices.uniform(scheme) for scheme in schemes}
