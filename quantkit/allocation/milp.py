"""Integer linear programming over any mix of resources (HAWQ-V3, arXiv 2011.10680), solved to proven optimality.

minimise Σ v_a x_a   subject to the rows of `program`. Loss is a resource like any other: it may be bounded while bytes, operations or
milliseconds are made small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quantkit.allocation.highs import Entry, Rows, minimise
from quantkit.allocation.problem import Chosen, Form, Problem, Within
from quantkit.allocation.program import Program, least_of
from quantkit.core.errors import ContractError


def least(problem: Problem, form: Form, limits: Sequence[Within], gap: float = 0.0) -> tuple[Chosen, float] | None:
    """The options of the least value within all limits, and the relative gap to the proven bound; None if none are within them."""
    program = Program(problem, tuple(limits))
    return least_of(program, program.objective(form), gap)


def cheapest_as_good(problem: Problem, chosen: Chosen, limits: Sequence[Within]) -> Chosen:
    """The cheapest options that lose no more than `chosen`: where losses tie, `least` is blind to cost."""
    now = problem.loss.total(chosen)
    found = least(problem, problem.cost, (Within(problem.loss, now), *limits))
    return found[0] if found and problem.cost.total(found[0]) < problem.cost.total(chosen) else chosen


def least_cost(problem: Problem, limits: Sequence[Within], form: Form | None = None) -> Chosen:
    """The options of least cost, or of least `form`, within limits that are known to be possible."""
    found = least(problem, form or problem.cost, limits)
    if found is None:
        raise ContractError("the solver finds no allocation at all", "one scheme per group")
    return found[0]


def excesses(problem: Problem, limits: Sequence[Within]) -> tuple[float, ...]:
    """How far each limit must give way, in its unit, so that there is an allocation: the least sum of shares of the limits."""
    program = Program(problem, tuple(limits))
    columns = program.width + np.arange(len(limits))
    ranges = [max(_highest(problem, limit.form) - limit.at_most, 0.0) or 1.0 for limit in limits]
    entries = [program.entry(limit.form, limit.at_most) for limit in limits]
    loose: list[Entry] = [
        (np.array([*row[0], column], dtype=np.intp), np.array([*row[1], -reach]), row[2], row[3])
        for row, column, reach in zip(entries, columns, ranges, strict=True)
    ]
    shares = [reach / limit.size for reach, limit in zip(ranges, limits, strict=True)]
    rows = Rows.of([*program.structure, *loose], program.width + len(limits))
    objective, binary = np.concatenate([np.zeros(program.width), shares]), np.append(program.binary, np.zeros(len(limits), dtype=bool))
    solution = minimise(objective, rows, binary)
    if solution is None:
        raise ContractError("the solver finds no allocation at all", "one scheme per group")
    chosen = program.chosen(solution.x[: program.width])
    return tuple(0.0 if limit.holds(chosen) else limit.form.total(chosen) - limit.at_most for limit in limits)


def _highest(problem: Problem, form: Form) -> float:
    highest = [float(form.linear[problem.group == place].max()) for place in range(len(problem.groups))]
    return math.fsum([*highest, *np.maximum(form.crossings.costs, 0.0)])
