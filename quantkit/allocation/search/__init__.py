"""Loops that measure: which allocation is cheapest among those that keep the promise.

measured.py   Space, Measured, Trial, SearchResult: what goes in and what comes out
budget.py     pareto: bisection of the cost budget over a front
bisection.py  bisection: precision by precision along an ordering
swaps.py      the same, and then swaps accepted on the measured loss
refine.py     the same, and then plans that qNEHVI asks for (extra)
repair.py     the greedy pass behind all
"""

from collections.abc import Mapping
from typing import Protocol

from quantkit.allocation.search.bisection import bisect_precisions
from quantkit.allocation.search.budget import search_front
from quantkit.allocation.search.measured import Measure, Measured, SearchResult, Space, Tie, TimeIsUp, Trial
from quantkit.allocation.search.refine import search_refined
from quantkit.allocation.search.swaps import search_swaps


class Search(Protocol):
    """How every search is called."""

    def __call__(self, measure: Measure, space: Space, *, repairs: int) -> SearchResult:
        """The best passing trial and all others; `measure` is called at most once for each allocation.

        `repairs` bounds the trials of the greedy pass at the end. What `measure` raises comes through, save TimeIsUp,
        which ends the search with what it has.
        """


SEARCHES: Mapping[str, Search] = {
    "pareto": search_front,
    "bisection": bisect_precisions,
    "swaps": search_swaps,
    "refine": search_refined,
}

__all__ = ["SEARCHES", "Measure", "Measured", "Search", "SearchResult", "Space", "Tie", "TimeIsUp", "Trial"]
