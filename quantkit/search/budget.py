"""Bisection of the cost budget over the front, on the measured drop.

Along the front cost rises and predicted loss falls, so the cheapest plan that keeps the promise is found in ⌈log₂ n⌉ steps if the
measured drop falls too. It is measured on a sample and need not fall everywhere; so a few plans just below the cut are measured as well.
"""

from __future__ import annotations

from quantkit.search.measured import Measure, SearchResult, Space, Trials
from quantkit.search.repair import repair

_NEIGHBOURS = 3


def search_front(measure: Measure, space: Space, *, repairs: int) -> SearchResult:
    """The cheapest plan of the front that passes, made cheaper by at most `repairs` single-group trials."""
    trials = Trials(measure)
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
    repair(trials, space, repairs)
    return trials.result()
