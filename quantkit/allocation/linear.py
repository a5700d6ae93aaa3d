"""The multiple-choice knapsack with precision changes, solved to proven optimality.

minimise Σ l_a x_a   subject to   Σ_a∈g x_a = 1 for each group g,   Σ c_a x_a + Σ_edges k_e y_e ≤ budget,   x binary.

f_g is x of g's fp32 option. Four rows, y ≥ f_p − f_c, y ≥ f_c − f_p, y ≤ f_p + f_c, y ≤ 2 − f_p − f_c, leave y = |f_p − f_c| as
the only value for whole x; so y needs no integrality and k_e may have either sign.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.highs import Row, minimise
from quantkit.allocation.problem import Chosen, Problem
from quantkit.errors import ContractError
from quantkit.table import Floats

_SLACK = 1e-12  # sums in another order differ by less


def limit(budget: float) -> float:
    """The highest cost that still counts as within budget."""
    return budget + _SLACK * abs(budget)


def least_loss(problem: Problem, losses: Floats, budget: float, gap: float = 0.0) -> tuple[Chosen, float] | None:
    """The options of least total loss within budget, and the relative gap to the proven bound; None if none are within budget."""
    rows = [*_structure(problem), Row(_costs(problem), -math.inf, budget)]
    while solution := minimise(_padded(losses, problem), rows, _binary(problem), gap):
        chosen = _chosen(problem, solution.x)
        if problem.cost.total(chosen) <= limit(budget):
            return chosen, solution.gap
        # HiGHS takes a row as kept within a tolerance. This answer is over the budget: forbid it alone, and ask again.
        taken = np.zeros(len(problem.scheme))
        taken[chosen] = 1.0
        rows.append(Row(_padded(taken, problem), -math.inf, len(problem.groups) - 1.0))
    return None


def cheapest_as_good(problem: Problem, losses: Floats, chosen: Chosen) -> Chosen:
    """The cheapest options that lose no more than `chosen`: where losses tie, `least_loss` is blind to cost."""
    rows = [*_structure(problem), Row(_padded(losses, problem), -math.inf, float(losses[chosen].sum()))]
    solution = minimise(_costs(problem), rows, _binary(problem))
    other = _chosen(problem, solution.x) if solution else chosen
    better = losses[other].sum() <= losses[chosen].sum() and problem.cost.total(other) < problem.cost.total(chosen)
    return other if better else chosen


def least_cost(problem: Problem) -> Chosen:
    """The options of least possible cost."""
    solution = minimise(_costs(problem), _structure(problem), _binary(problem))
    if solution is None:
        raise ContractError("the solver finds no allocation at all", "one scheme per group")
    return _chosen(problem, solution.x)


def _structure(problem: Problem) -> list[Row]:
    """One scheme per group, and y = |f_p − f_c| for each edge."""
    member = problem.group[None, :] == np.arange(len(problem.groups))[:, None]
    rows = [Row(_padded(row.astype(float), problem), 1.0, 1.0) for row in member]
    floats = (member & problem.is_float()).astype(float)
    for paid, edge in zip(np.eye(len(problem.edges)), problem.edges, strict=True):
        producer, consumer = floats[problem.groups.index(edge.producer)], floats[problem.groups.index(edge.consumer)]
        rows += [
            Row(np.concatenate([producer - consumer, -paid]), -math.inf, 0.0),
            Row(np.concatenate([consumer - producer, -paid]), -math.inf, 0.0),
            Row(np.concatenate([-producer - consumer, paid]), -math.inf, 0.0),
            Row(np.concatenate([producer + consumer, paid]), -math.inf, 2.0),
        ]
    return rows


def _costs(problem: Problem) -> Floats:
    return np.concatenate([problem.cost.linear, [edge.cost for edge in problem.edges]])


def _padded(values: Floats, problem: Problem) -> Floats:
    return np.concatenate([values, np.zeros(len(problem.edges))])


def _binary(problem: Problem) -> NDArray[np.bool_]:
    return np.arange(len(problem.scheme) + len(problem.edges)) < len(problem.scheme)


def _chosen(problem: Problem, x: Floats) -> Chosen:
    taken = np.flatnonzero(x[: len(problem.scheme)] > 0.5)
    return np.asarray(taken, dtype=np.intp)
