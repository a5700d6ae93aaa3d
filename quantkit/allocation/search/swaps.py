"""Swaps ranked by the surrogate and accepted on the measured loss (CASA, Fujitsu 2026).

CASA found that pair terms inside the knapsack change little, while a local search on the true loss, its candidates ranked by those
very terms, gains much. A candidate moves one group up and one down, or one alone, within the cost of the plan that it improves. Of each
round the best ranked few are measured, the least damaged is taken, and the next round starts from there.
Here the plan to improve is the most expensive one of the front that fails, so that what is gained is cost; for the least drop, the best.
"""

from __future__ import annotations

from quantkit.allocation import Plan, neighbours
from quantkit.allocation.search.budget import front_trials, walk_front
from quantkit.allocation.search.measured import NOBODY, Measure, Outlook, SearchResult, Space, Trials
from quantkit.allocation.search.repair import repair

_ROUNDS = 3


def search_swaps(measure: Measure, space: Space, *, repairs: int, outlook: Outlook = NOBODY) -> SearchResult:
    """As the walk along the front, and then at most three rounds of `repairs` swaps each, and the greedy pass."""
    trials = Trials(measure, space, outlook)
    with trials.while_there_is_time():
        cut = walk_front(trials, space, repairs, repairs)  # of the rounds one, the least; another is expected when it begins
        start = cut if space.least_drop else min(cut, len(space.front)) - 1
        if start >= 0:
            _improve(trials, space, space.front[start], repairs)
        repair(trials, space, repairs)
    return trials.result()


def swaps_trials(space: Space, repairs: int) -> int:
    """How many plans `search_swaps` measures, if every round finds swaps to try."""
    return front_trials(space, repairs) + _ROUNDS * repairs


def _improve(trials: Trials, space: Space, start: Plan, count: int) -> None:
    standing = trials.of(start)
    for _ in range(_ROUNDS):
        near = neighbours(
            space.loss, space.cost, standing.plan, start.predicted_cost, count=count, groups=space.groups, interactions=space.interactions,
            edges=space.edges, limits=space.limits, fixed=space.fixed,
        )  # fmt: skip
        trials.outlook.expect(near, count)
        best = min((trials.of(plan) for plan in near), key=lambda trial: trial.measured.damage, default=standing)
        if best.measured.damage >= standing.measured.damage:
            return
        standing = best
        if standing.measured.passes and not space.least_drop:
            return
