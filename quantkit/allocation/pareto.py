"""The allocation of least predicted loss within a cost budget, and the front of all budgets.

A multiple-choice knapsack (one scheme per group), solved exactly; with interactions the loss is a quadratic form, and the answer
is the best that `quadratic` finds. Infinite and nan entries of either table are schemes that a group cannot take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.allocation.linear import cheapest_as_good, least_cost, least_loss
from quantkit.allocation.plan import Edge, Plan
from quantkit.allocation.problem import Chosen, Problem, build
from quantkit.allocation.quadratic import least_quadratic
from quantkit.graph import Group
from quantkit.table import Interactions, Table

_RESTARTS = 4  # random starts of a single quadratic solve; along a front the neighbouring plan is a better one


def solve(
    loss: Table,
    cost: Table,
    budget: float,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    fixed: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Plan | None:
    """The plan of least predicted loss whose cost (groups plus edges, in the unit of `cost`) is within budget; of equals the cheapest.

    None if no allocation is within budget; `cheapest` then names the least possible cost. With `interactions` the loss is ½ x'Mx,
    its diagonal in place of `loss`, and `seed` draws the random starts of the search for it.
    Raises SchemeError for a pin that is no group, or no scheme of that group.
    """
    problem = build(loss, cost, groups, interactions, edges, fixed)
    best = _best(problem, budget, [], _RESTARTS, seed)
    return best and problem.plan(*best)


def cheapest(
    loss: Table,
    cost: Table,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    fixed: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of least possible cost, and of those the one of least predicted loss. Raises as `solve` does."""
    problem = build(loss, cost, groups, interactions, edges, fixed)
    least = least_cost(problem)
    best = _best(problem, problem.cost.total(least), [least], _RESTARTS, seed)
    return problem.plan(*(best or (least,)))


def front(
    loss: Table,
    cost: Table,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    fixed: Mapping[str, str] | None = None,
    points: int = 18,
    seed: int = 0,
) -> tuple[Plan, ...]:
    """The plans that none of the others beats on both loss and cost, cheapest first: at most one for each of `points` budgets.

    The budgets lie on a geometric grid from the least possible cost to the cost of the least loss. Raises as `solve` does.
    """
    problem = build(loss, cost, groups, interactions, edges, fixed)
    least = least_cost(problem)
    dearest = _best(problem, math.inf, [], _RESTARTS, seed) or (least, math.nan)
    low, high = problem.cost.total(least), problem.cost.total(dearest[0])
    grid = np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)
    answers = [_best(problem, low, [least], _RESTARTS, seed) or (least, math.nan)]
    for budget in grid[1:-1]:
        answers.append(_best(problem, float(budget), [answers[-1][0]], 0, seed) or answers[-1])
    return _undominated([problem.plan(*answer) for answer in (*answers, dearest)])


def _best(problem: Problem, budget: float, starts: Sequence[Chosen], restarts: int, seed: int) -> tuple[Chosen, float] | None:
    if problem.loss.pair.any():
        chosen = least_quadratic(problem, budget, starts=starts, restarts=restarts, seed=seed)
        return None if chosen is None else (chosen, math.nan)
    found = least_loss(problem, problem.loss.linear, budget)
    return (cheapest_as_good(problem, problem.loss.linear, found[0]), found[1]) if found else None


def _undominated(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.predicted_cost, plan.predicted_loss)):
        if not kept or plan.predicted_loss < kept[-1].predicted_loss:
            kept.append(plan)
    return tuple(kept)
