"""The rows that every allocation of a problem keeps, as an integer linear program.

    Σ_a∈g x_a = 1 for each group g,   Σ c_a x_a + Σ_edges k_e y_e ≤ limit for each resource,   x binary.

f_g is x of g's fp32 option. Four rows, y ≥ f_p − f_c, y ≥ f_c − f_p, y ≤ f_p + f_c, y ≤ 2 − f_p − f_c, leave y = |f_p − f_c| as
the only value for whole x; so y needs no integrality and k_e may have either sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.highs import Entry, Rows, minimise
from quantkit.allocation.problem import Chosen, Floats, Form, Problem, Within


@dataclass(frozen=True, eq=False)
class Program:
    """The rows that every allocation of a problem keeps, made once. Columns: options, crossings, and one excess a limit."""

    problem: Problem
    limits: tuple[Within, ...]

    @cached_property
    def crossings(self) -> dict[tuple[int, int], int]:
        """The column of each pair of groups with an edge in some resource."""
        forms = (self.problem.cost, *(limit.form for limit in self.limits))
        ends = sorted({(int(one), int(other)) for form in forms for one, other in form.crossings.ends})
        return {pair: len(self.problem.scheme) + place for place, pair in enumerate(ends)}

    @property
    def width(self) -> int:
        """How many columns there are, without those of excess."""
        return len(self.problem.scheme) + len(self.crossings)

    @cached_property
    def binary(self) -> NDArray[np.bool_]:
        """Which columns are whole."""
        return np.arange(self.width) < len(self.problem.scheme)

    @cached_property
    def structure(self) -> list[Entry]:
        """One scheme per group, and y = |f_p − f_c| for each edge."""
        problem, floats = self.problem, self.problem.loss.floats
        members = [np.flatnonzero(problem.group == place) for place in range(len(problem.groups))]
        rows: list[Entry] = [(member, np.ones(len(member)), 1.0, 1.0) for member in members]
        for (one, other), column in self.crossings.items():
            first, second = (members[end][floats[members[end]]] for end in (one, other))
            columns = np.array([*first, *second, column], dtype=np.intp)
            for signs, high in (((1, -1, -1), 0.0), ((-1, 1, -1), 0.0), ((-1, -1, 1), 0.0), ((1, 1, 1), 2.0)):
                values = np.repeat(np.array(signs, dtype=float), [len(first), len(second), 1])
                rows.append((columns, values, -math.inf, high))
        return rows

    @cached_property
    def rows(self) -> Rows:
        """The structure, and every limit."""
        held = [self.entry(limit.form, limit.at_most) for limit in self.limits if limit.at_most < math.inf]
        return Rows.of([*self.structure, *held], self.width)

    def entry(self, form: Form, high: float) -> Entry:
        """The row of form ≤ high."""
        values = self.objective(form)
        columns = np.flatnonzero(values)
        return columns, values[columns], -math.inf, high

    def objective(self, form: Form) -> Floats:
        """The form's coefficients. A form of pairs that are no crossings has none here."""
        values = np.zeros(self.width)
        values[: len(form.linear)] = form.linear
        for (one, other), cost in zip(form.crossings.ends, form.crossings.costs, strict=True):
            values[self.crossings[int(one), int(other)]] = cost
        return values

    def chosen(self, x: Floats) -> Chosen:
        """The options that a whole x takes."""
        return np.asarray(np.flatnonzero(x[: len(self.problem.scheme)] > 0.5), dtype=np.intp)

    def but(self, chosen: Chosen) -> Rows:
        """A row that forbids this one allocation."""
        return Rows.of([(chosen, np.ones(len(chosen)), -math.inf, len(chosen) - 1.0)], self.width)


def least_of(program: Program, objective: Floats, gap: float = 0.0) -> tuple[Chosen, float] | None:
    """The options of the least objective within all limits, and the relative gap to the proven bound; None if none are within them."""
    rows = program.rows
    while solution := minimise(objective, rows, program.binary, gap):
        chosen = program.chosen(solution.x)
        if all(limit.holds(chosen) for limit in program.limits):
            return chosen, relative_gap(float(objective @ solution.x), solution.bound)
        # HiGHS takes a row as kept within a tolerance. This answer is over a limit: forbid it alone, and ask again.
        rows = rows.and_(program.but(chosen))
    return None


def relative_gap(value: float, bound: float) -> float:
    """The distance of a value to its lower bound, as a share of the value: 0 where they are equal within the solver's tolerance."""
    over = value - bound
    return 0.0 if over <= 1e-9 * abs(value) or over <= 1e-300 else over / (abs(value) or 1.0)
