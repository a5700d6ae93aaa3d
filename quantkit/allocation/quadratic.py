"""Allocation under interactions: minimise ½ x'Mx within the budget.

Each start is improved in two ways until neither helps. (1) Sequential linearisation: with the other groups standing as
they are, option a costs ½ M_aa + Σ_b taken M_ab; a knapsack over these numbers moves all groups at once. (2) Exhaustive swaps of
one and of two groups, judged on the true quadratic. The best true value wins; nothing here proves it optimal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from quantkit.allocation.linear import least_loss, limit
from quantkit.allocation.problem import Chosen, Form, Problem
from quantkit.table import Floats

_STEPS = 4  # linearisations of one start; they settle or begin to circle long before
GAP = 1e-3  # of a linearisation, which is no more exact than that itself
_SPREAD = 2.0  # of the logarithm of the factor that disturbs a random start's losses: wide enough to reorder most groups


def least_quadratic(problem: Problem, budget: float, *, starts: Sequence[Chosen], restarts: int, seed: int) -> Chosen | None:
    """The best options found within budget, never worse than any of `starts` that is within budget; None if none are within it.

    `restarts` counts the random starts beside those that the problem itself suggests.
    """
    best: Chosen | None = None
    tried: set[bytes] = set()
    for start in (*starts, *_starts(problem, budget, restarts, seed)):
        if problem.cost.total(start) > limit(budget) or start.tobytes() in tried:
            continue
        tried.add(start.tobytes())
        found = _swapped(problem, _linearised(problem, start, budget), budget)
        if best is None or _worth(problem, found) < _worth(problem, best):
            best = found
    return best


def _worth(problem: Problem, chosen: Chosen) -> tuple[float, float]:
    return problem.loss.total(chosen), problem.cost.total(chosen)


def _starts(problem: Problem, budget: float, restarts: int, seed: int) -> Iterator[Chosen]:
    """Answers of knapsacks that ignore the interactions, see them at the lossless end, or see disturbed losses."""
    isolated = [problem.loss.linear, problem.isolated]
    if not restarts:  # along a front the neighbour's answer is the better start
        isolated = isolated[:1]
    lossless = least_loss(problem, problem.loss.linear, np.inf, GAP)
    context = [problem.loss.field(lossless[0])] if lossless and restarts else []
    random = np.random.default_rng(seed)
    disturbed = [problem.loss.linear * random.lognormal(0.0, _SPREAD, len(problem.scheme)) for _ in range(restarts)]
    for losses in (*isolated, *context, *disturbed):
        if found := least_loss(problem, losses, budget, GAP):
            yield found[0]


def _linearised(problem: Problem, start: Chosen, budget: float) -> Chosen:
    best = here = start
    for _ in range(_STEPS):
        found = least_loss(problem, problem.loss.field(here), budget, GAP)
        if found is None or np.array_equal(found[0], here):
            break
        here = found[0]
        if problem.loss.total(here) < problem.loss.total(best):
            best = here
    return best


def _swapped(problem: Problem, chosen: Chosen, budget: float) -> Chosen:
    """The best swap of one or two groups, again and again until none lowers the loss (or keeps it and lowers the cost)."""
    while True:
        losses, costs = _swaps(problem, problem.loss, chosen), _swaps(problem, problem.cost, chosen)
        now, cost = _worth(problem, chosen)
        losses[cost + costs > limit(budget)] = np.inf
        least = losses.min()
        ties = np.where(losses == least, costs, np.inf)
        first, second = np.unravel_index(int(ties.argmin()), ties.shape)
        swapped = chosen.copy()
        swapped[problem.group[[first, second]]] = first, second
        if not (_worth(problem, swapped) < (now, cost) and problem.cost.total(swapped) <= limit(budget)):
            return chosen
        chosen = swapped


def _swaps(problem: Problem, form: Form, chosen: Chosen) -> Floats:
    """[options, options]: by how much the form changes when both options are taken at once; one swap alone on the diagonal."""
    standing = chosen[problem.group]
    field = form.field(chosen)
    alone = field - field[standing]
    pair = form.pair
    joint = pair - pair[:, standing] - pair[standing, :] + pair[np.ix_(standing, standing)]
    change = alone[:, None] + alone[None, :] + joint
    change[problem.group[:, None] == problem.group[None, :]] = np.inf
    np.fill_diagonal(change, alone)
    return np.asarray(change)
