"""Loops that measure: which allocation is cheapest among those that keep the promise.

measured.py   Space, Measured, Trial, SearchResult: what goes in and what comes out
budget.py     pareto: bisection of the cost budget over a front
bisection.py  bisection: precision by precision along an ordering
swaps.py      the same, and then swaps accepted on the measured loss
refine.py     the same, and then plans that qNEHVI asks for (extra)
repair.py     the greedy pass behind all
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from quantkit.allocation.search.bisection import bisect_precisions, bisection_trials
from quantkit.allocation.search.budget import front_trials, search_front
from quantkit.allocation.search.measured import NOBODY, Measure, Measured, Outlook, SearchResult, Space, Tie, TimeIsUp, Trial
from quantkit.allocation.search.refine import refined_trials, search_refined
from quantkit.allocation.search.swaps import search_swaps, swaps_trials


class Search(Protocol):
    """How every search is called."""

    def __call__(self, measure: Measure, space: Space, *, repairs: int, outlook: Outlook = NOBODY) -> SearchResult:
        """The best passing trial and all others; `measure` is called at most once for each allocation.

        `repairs` bounds the trials of the greedy pass at the end. `outlook` is told what is likely still to be measured, whenever that is
        known better: at best a guess, as it hangs on what passes. What `measure` raises comes through, save TimeIsUp,
        which ends the search with what it has.
        """


SEARCHES: Mapping[str, Search] = {
    "pareto": search_front,
    "bisection": bisect_precisions,
    "swaps": search_swaps,
    "refine": search_refined,
}

# How many plans each measures where nothing ends it early: (space, repairs) → trials.
MOST_TRIALS: Mapping[str, Callable[[Space, int], int]] = {
    "pareto": front_trials,
    "bisection": bisection_trials,
    "swaps": swaps_trials,
    "refine": refined_trials,
}

__all__ = ["MOST_TRIALS", "SEARCHES", "Measure", "Measured", "Outlook", "Search", "SearchResult", "Space", "Tie", "TimeIsUp", "Trial"]
