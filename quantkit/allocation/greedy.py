"""Greedy descent (the step of HAWQ and of AIMET's AMP): from the least loss, again and again the change that loses least for what it saves.

Fast and never far off where there are many groups; it does not look back, so nothing is proven. It sees interactions: what a step loses is
asked of the plan as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.allocation.problem import Chosen, Floats, Form, Problem, Within

_NOTHING = 1e-12  # a share of a limit that is not a saving


def descend(problem: Problem, limits: Sequence[Within], start: Chosen | None = None) -> Chosen | None:
    """The first plan on the way down from `start`, or from the least loss, that is within all limits; None if the way ends outside.

    Where losses add up and one resource is limited, a larger budget never gives a greater loss: the way is the same, and ends earlier.
    """
    chosen = least_isolated(problem) if start is None else start.copy()
    loss, *used = (_Field(form, chosen) for form in (problem.loss, *(limit.form for limit in limits)))
    while max(above := [limit.form.total(chosen) - limit.highest for limit in limits], default=0.0) > 0:
        saved, over = np.zeros(len(problem.scheme)), np.zeros(len(problem.scheme))
        for field, limit, before in zip(used, limits, above, strict=True):
            change = field.change(chosen, problem) / limit.size
            over += np.maximum(before / limit.size + change, 0.0) - max(before, 0.0) / limit.size
            if before > 0:
                saved -= change
        saved[over >= -_NOTHING] = 0.0  # with several limits a saving in one may be spent in another, and the way go round in circles
        prices = np.full(len(saved), np.inf)
        np.divide(loss.change(chosen, problem), saved, out=prices, where=saved > _NOTHING)
        equal = np.flatnonzero(prices == prices.min())
        step = int(equal[saved[equal].argmax()])
        if prices[step] == np.inf:
            return None
        before = chosen[problem.group[step]]
        for field in (loss, *used):
            field.move(before, step)
        chosen[problem.group[step]] = step
    return chosen


def least_isolated(problem: Problem) -> Chosen:
    """Each group's option of least loss alone, the cheapest of equals."""
    order = np.lexsort((problem.cost.linear, problem.loss.linear, problem.group))
    return np.asarray(order[np.searchsorted(problem.group[order], np.arange(len(problem.groups)))], dtype=np.intp)


class _Field:
    """What each option would add to a form, around a plan that moves by one option at a time."""

    def __init__(self, form: Form, chosen: Chosen) -> None:
        self._form, self._values = form, form.field(chosen)

    def change(self, chosen: Chosen, problem: Problem) -> Floats:
        """By how much each option, if taken, would change the value."""
        return np.asarray(self._values - self._values[chosen][problem.group])

    def move(self, before: int, after: int) -> None:
        """One option taken in another's place."""
        if self._form.has_pairs:
            self._values = self._values + self._form.pair[after] - self._form.pair[before]
