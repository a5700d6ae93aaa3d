"""Bisection of the cost budget over the front, on the measured drop.

Along the front cost rises and predicted loss falls, so the cheapest plan that keeps the promise is found in ⌈log₂ n⌉ steps if the
measured drop falls too. It is measured on a sample and need not fall everywhere; so a few plans just below the cut are measured as well.
Where the least drop is wanted, only the dearest few are. Where plans of nearly one cost are told apart, the step of the front between the
last plan that failed and the first that passed is too long, and is bisected too.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.allocation import Plan, solve
from quantkit.allocation.search.measured import NOBODY, Measure, Outlook, SearchResult, Space, Trials
from quantkit.allocation.search.repair import likely_repairs, repair

_NEIGHBOURS = 3
_BETWEEN = 4  # plans between two of the front: a sixteenth of the step from one to the next


def search_front(measure: Measure, space: Space, *, repairs: int, outlook: Outlook = NOBODY) -> SearchResult:
    """The cheapest plan of the front that passes, made cheaper by at most `repairs` single-group trials."""
    trials = Trials(measure, space, outlook)
    with trials.while_there_is_time():
        cut = walk_front(trials, space, _BETWEEN if space.tie else 0, repairs)
        if space.tie is not None and 0 < cut < len(space.front):
            _walk_between(trials, space, space.front[cut - 1].predicted_cost, space.front[cut].predicted_cost, repairs)
        repair(trials, space, repairs)
    return trials.result()


def front_trials(space: Space, repairs: int) -> int:
    """How many plans `search_front` measures, if everything that it can try is there to be tried."""
    if space.least_drop:
        return min(1 + _NEIGHBOURS, len(space.front))
    return len(space.front).bit_length() + _NEIGHBOURS + (_BETWEEN if space.tie else 0) + repairs


def walk_front(trials: Trials, space: Space, between: int, repairs: int) -> int:
    """Measures until it is known where along the front the promise begins to be kept; the place, the front's length if nowhere.

    About so many plans are measured behind it, `between` and by `repairs` at most.
    """
    if space.least_drop:
        plans = space.front[-1 - _NEIGHBOURS :][::-1]
        for place, plan in enumerate(plans):
            trials.outlook.expect(plans[place:], 0)
            trials.of(plan)
        return len(space.front) - 1
    low, high = 0, len(space.front)
    while low < high:
        cut = _likely_cut(trials.outlook, space.front, low, high)
        behind = between * (cut > 0) + likely_repairs(space, space.front[min(cut, len(space.front) - 1)], repairs)
        trials.outlook.expect(_to_come(space.front, low, high, cut), behind)
        middle = (low + high) // 2
        if trials.of(space.front[middle]).measured.passes:
            high = middle
        else:
            low = middle + 1
    below = _below(space.front, low)
    for place, plan in enumerate(below):
        trials.outlook.expect(below[place:], between + likely_repairs(space, space.front[min(low, len(space.front) - 1)], repairs))
        trials.of(plan)
    if low == len(space.front):  # nothing passed: what is predicted to lose nothing need not be what is float
        trials.of(space.plan(space.highest_precision()))
    return low


def _below(front: Sequence[Plan], cut: int) -> Sequence[Plan]:
    """Those that are measured below the cut, the next one first; the one at it was."""
    return front[max(0, cut - 1 - _NEIGHBOURS) : max(0, cut - 1)][::-1]


def _likely_cut(outlook: Outlook, front: Sequence[Plan], low: int, high: int) -> int:
    """Half-way between those that are known to fail and those that are known to pass."""
    known = {place: passes for place in range(low, high) if (passes := outlook.passes(front[place])) is not None}
    high = min((place for place, passes in known.items() if passes), default=high)
    return (max((place + 1 for place, passes in known.items() if not passes and place < high), default=low) + high) // 2


def _to_come(front: Sequence[Plan], low: int, high: int, cut: int) -> list[Plan]:
    """What is measured if the cut is there."""
    found = list[Plan]()
    while low < high:
        middle = (low + high) // 2
        found.append(front[middle])
        low, high = (low, middle) if middle >= cut else (middle + 1, high)
    return [*found, *(plan for plan in _below(front, cut) if plan not in found)]


def _walk_between(trials: Trials, space: Space, low: float, high: float, behind: int) -> None:
    """Measures the plans of least predicted loss at budgets between one that failed and one that passed."""
    for left in range(_BETWEEN, 0, -1):
        trials.outlook.expect([], left + behind)
        middle = (low + high) / 2
        plan = solve(
            space.loss, space.cost, middle, groups=space.groups, interactions=space.interactions, edges=space.edges, limits=space.limits,
            fixed=space.fixed,
        )  # fmt: skip
        if plan is None or not trials.of(plan).measured.passes:
            low = middle
        else:
            high = min(middle, plan.predicted_cost)
