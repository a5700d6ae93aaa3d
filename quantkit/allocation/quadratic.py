"""Allocation under interactions: minimise ½ x'Mx within the limits, and say how far from the least possible the answer may be.

Starts are improved in two ways until neither helps. (1) Sequential linearisation: with the other groups standing as they are, option a
costs ½ M_aa + Σ_b taken M_ab; a knapsack over these numbers moves all groups at once. (2) Swaps of one and of two groups, judged on the
true quadratic; of many options only those that change the loss most for the better or for what they save. The best true value wins.
`relaxation` bounds what any allocation can reach: its fractional answer is a start, and the gap to it a part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.greedy import descend, least_isolated
from quantkit.allocation.highs import Solution, minimise
from quantkit.allocation.problem import Chosen, Floats, Form, Problem, Within
from quantkit.allocation.program import Program, least_of, relative_gap

_STEPS = 4  # linearisations of one start; they settle or begin to circle long before
GAP = 1e-3  # of a linearisation, which is no more exact than that itself
_SPREAD = 2.0  # of the logarithm of the factor that disturbs a random start's losses: wide enough to reorder most groups
_BEST_STARTS = 2  # of those without restarts, that are improved
RESTARTS = 4  # random starts of a single solve; along a front the neighbouring plan is a better one
FEW = 100  # options; beyond, knapsacks are solved as linear programs, and the fractional groups are then made whole
MANY = 600  # options; beyond, pairs are drawn from a short list, and the relaxation and the greedy answer are starts enough
_LISTED = 150  # the length of each half of the short list


def least_quadratic(
    program: Program, relaxed: Solution, *, starts: Sequence[Chosen] = (), restarts: int = RESTARTS, seed: int = 0
) -> tuple[Chosen, float] | None:
    """The best options found within all limits, and their relative gap to the bound of `relaxed`; None if none are within them.

    Never worse than any of `starts` that is within the limits. `restarts` counts the random starts beside those that the problem suggests.
    """
    problem, limits = program.problem, program.limits
    distinct = {start.tobytes(): start for start in (*starts, *_starts(program, relaxed, restarts, seed))}
    inside = [start for start in distinct.values() if all(limit.holds(start) for limit in limits)]
    if not inside:
        return None
    tried = inside if restarts else sorted(inside, key=lambda start: _worth(problem, start))[:_BEST_STARTS]
    best = min((_swapped(problem, _linearised(program, start), limits) for start in tried), key=lambda found: _worth(problem, found))
    return best, relative_gap(problem.loss.total(best), relaxed.bound)


def _worth(problem: Problem, chosen: Chosen) -> tuple[float, float]:
    return problem.loss.total(chosen), problem.cost.total(chosen)


def _starts(program: Program, relaxed: Solution, restarts: int, seed: int) -> Iterator[Chosen]:
    """The relaxation made whole, the greedy descent, and knapsacks that see the relaxation's prices; of few options many more."""
    problem = program.problem
    prices = problem.loss.linear + problem.loss.pair @ relaxed.x
    given = [_whole(program, relaxed.x), descend(problem, program.limits), _knapsack(program, prices)]
    if len(problem.scheme) <= MANY:
        isolated = [problem.loss.linear, problem.isolated][: 2 if restarts else 1]
        context = [problem.loss.field(least_isolated(problem))] if restarts else []
        random = np.random.default_rng(seed)
        disturbed = [problem.loss.linear * random.lognormal(0.0, _SPREAD, len(problem.scheme)) for _ in range(restarts)]
        given += [_knapsack(program, losses) for losses in (*isolated, *context, *disturbed)]
    yield from (start for start in given if start is not None)


def _knapsack(program: Program, losses: Floats) -> Chosen | None:
    """The options of least total loss within the limits, or nearly: of many a linear program, made whole."""
    objective = np.concatenate([losses, np.zeros(program.width - len(losses))])
    if len(losses) <= FEW:
        found = least_of(program, objective, GAP)
        return found and found[0]
    solution = minimise(objective, program.rows, np.zeros(program.width, dtype=bool))
    return None if solution is None else _whole(program, solution.x[: len(losses)])


def _whole(program: Program, x: Floats) -> Chosen | None:
    """The greatest share of each group taken whole, and from there down into the limits."""
    problem = program.problem
    order = np.lexsort((problem.loss.linear, -x, problem.group))
    taken = order[np.searchsorted(problem.group[order], np.arange(len(problem.groups)))]
    return descend(problem, program.limits, np.asarray(taken, dtype=np.intp))


def _linearised(program: Program, start: Chosen) -> Chosen:
    problem, best, here = program.problem, start, start
    for _ in range(_STEPS):
        found = _knapsack(program, problem.loss.field(here))
        if found is None or np.array_equal(found, here):
            break
        here = found
        if problem.loss.total(here) < problem.loss.total(best):
            best = here
    return best


def _swapped(problem: Problem, chosen: Chosen, limits: Sequence[Within]) -> Chosen:
    """The best swap of one or two groups, again and again until none lowers the loss (or keeps it and lowers the cost)."""
    while True:
        listed = short_list(problem, chosen, limits)
        losses, costs = (swaps(problem, form, chosen, listed) for form in (problem.loss, problem.cost))
        for limit in limits:
            changes = costs if limit.form is problem.cost else swaps(problem, limit.form, chosen, listed)
            losses[limit.form.total(chosen) + changes > limit.highest] = np.inf
        ties = np.where(losses == losses.min(), costs, np.inf)
        first, second = listed[np.array(np.unravel_index(int(ties.argmin()), ties.shape))]
        swapped = chosen.copy()
        swapped[problem.group[[first, second]]] = first, second
        if not (_worth(problem, swapped) < _worth(problem, chosen) and all(limit.holds(swapped) for limit in limits)):
            return chosen
        chosen = swapped


def short_list(problem: Problem, chosen: Chosen, limits: Sequence[Within]) -> NDArray[np.intp]:
    """The options worth pairing: all, or of many those of least loss and those of least loss for what they save."""
    everything = np.arange(len(problem.scheme))
    if len(everything) <= MANY:
        return everything
    change, *used = (_alone(problem, form, chosen) for form in (problem.loss, *(limit.form for limit in limits)))
    saved = np.sum([-use / limit.size for use, limit in zip(used, limits, strict=True)], axis=0)
    moves = everything[chosen[problem.group] != everything]
    by_loss = moves[np.argsort(change[moves] / np.maximum(-saved[moves], 1e-15), kind="stable")][:_LISTED]
    saving = moves[saved[moves] > 0]
    by_price = saving[np.argsort(change[saving] / saved[saving], kind="stable")][:_LISTED]
    return np.unique(np.concatenate([by_loss, by_price]))


def _alone(problem: Problem, form: Form, chosen: Chosen) -> Floats:
    field = form.field(chosen)
    return np.asarray(field - field[chosen][problem.group])


def swaps(problem: Problem, form: Form, chosen: Chosen, listed: NDArray[np.intp]) -> Floats:
    """[listed, listed]: by how much the form changes when both options are taken at once; one swap alone on the diagonal."""
    group, standing, pair = problem.group[listed], chosen[problem.group[listed]], form.pair
    alone = _alone(problem, form, chosen)[listed]
    change = alone[:, None] + alone[None, :]
    if form.has_pairs:
        change = change + pair[np.ix_(listed, listed)] - pair[np.ix_(listed, standing)]
        change = change - pair[np.ix_(standing, listed)] + pair[np.ix_(standing, standing)]
    change[group[:, None] == group[None, :]] = np.inf
    np.fill_diagonal(change, alone)
    return np.asarray(change)
