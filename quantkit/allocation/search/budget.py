"""Bisection of the cost budget over the front, on the measured drop.

Along the front cost rises and predicted loss falls, so the cheapest plan that keeps the promise is found in ⌈log₂ n⌉ steps if the
measured drop falls too. It is measured on a sample and need not fall everywhere; so a few plans just below the cut are measured as well.
Where the least drop is wanted, only the most expensive few are.
"""

from __future__ import annotations

from quantkit.allocation.search.measured import Measure, SearchResult, Space, Trials
from quantkit.allocation.search.repair import repair

_NEIGHBOURS = 3


def search_front(measure: Measure, space: Space, *, repairs: int) -> SearchResult:
    """The cheapest plan of the front that passes, made cheaper by at most `repairs` single-group trials."""
    trials = Trials(measure, space)
    with trials.while_there_is_time():
        walk_front(trials, space)
        repair(trials, space, repairs)
    return trials.result()


def walk_front(trials: Trials, space: Space) -> int:
    """Measures until it is known where along the front the promise begins to be kept; the place, the front's length if nowhere."""
    if space.least_drop:
        for plan in reversed(space.front[-1 - _NEIGHBOURS :]):
            trials.of(plan)
        return len(space.front) - 1
    low, high = 0, len(space.front)
    while low < high:
        middle = (low + high) // 2
        if trials.of(space.front[middle]).measured.passes:
            high = middle
        else:
            low = middle + 1
    for plan in reversed(space.front[max(0, low - 1 - _NEIGHBOURS) : max(0, low - 1)]):
        trials.of(plan)
    if low == len(space.front):  # nothing passed: what is predicted to lose nothing need not be what is float
        trials.of(space.plan(space.highest_precision()))
    return low
