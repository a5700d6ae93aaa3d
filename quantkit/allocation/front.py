"""The allocation of least predicted loss within a cost budget and other limits, the front of all budgets, and why there is none.

`SOLVERS` says who answers: proven optima where losses add up, the best that `quadratic` finds, with its gap, where they interact.
Infinite and nan entries of any table are schemes that a group cannot take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quantkit.allocation import pareto
from quantkit.allocation.greedy import descend
from quantkit.allocation.milp import cheapest_as_good, excesses, least, least_cost
from quantkit.allocation.plan import Binding, Edge, Limit, Plan, Shortage
from quantkit.allocation.problem import Chosen, Problem, Within
from quantkit.allocation.program import Program
from quantkit.allocation.quadratic import RESTARTS, least_quadratic
from quantkit.allocation.relaxation import relax
from quantkit.allocation.translation import build, plan_of
from quantkit.core.errors import RequestError, unknown
from quantkit.core.graph import Group
from quantkit.core.spec import Allocation
from quantkit.core.table import Interactions, Table

Answer = tuple[Chosen, float]  # and the relative gap to the proven bound


def _greedy(problem: Problem, limits: Sequence[Within]) -> Answer | None:
    found = descend(problem, limits)
    return None if found is None else (found, math.nan)


def _pareto(problem: Problem, limits: Sequence[Within]) -> Answer | None:
    if not pareto.applies(problem, limits):
        raise RequestError("solver pareto with edges, interactions or several limits", "sums under one budget", "use milp or quadratic")
    front = pareto.whole_front(problem)
    found = front.within(limits[0])
    return None if found is None else (found, 0.0 if front.exact else math.nan)


def _milp(problem: Problem, limits: Sequence[Within]) -> Answer | None:
    found = least(problem, problem.loss, limits)
    return found and (cheapest_as_good(problem, found[0], limits), found[1])


def _quadratic(
    problem: Problem, limits: Sequence[Within], *, starts: Sequence[Chosen] = (), restarts: int = RESTARTS, seed: int = 0
) -> Answer | None:
    program = Program(problem, tuple(limits))
    relaxed = relax(program)
    return None if relaxed is None else least_quadratic(program, relaxed, starts=starts, restarts=restarts, seed=seed)


SOLVERS: Mapping[str, Callable[[Problem, Sequence[Within]], Answer | None]] = {
    "greedy": _greedy,
    "pareto": _pareto,
    "milp": _milp,
    "quadratic": _quadratic,
}


def solve(
    loss: Table,
    cost: Table,
    budget: float,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Allocation | None = None,
    solver: str | None = None,
    seed: int = 0,
) -> Plan | None:
    """The plan of least predicted loss whose cost (groups plus edges, in the unit of `cost`) is within budget; of equals the cheapest.

    None if no allocation is within the budget and `limits`; `shortage` then says why. With `interactions` the loss is ½ x'Mx, its diagonal
    in place of `loss`, and `seed` draws the random starts of the search for it. `solver` is one of `SOLVERS`, the fitting one if None.
    Raises SchemeError for a pin that is not a group, or no scheme of that group; RequestError for a solver that cannot do it.
    """
    problem = build(loss, cost, groups, interactions=interactions, edges=edges, limits=limits, fixed=fixed)
    if solver is None:
        best = _best(problem, problem.under(budget), [], seed)
    elif solver in SOLVERS:
        best = SOLVERS[solver](problem, problem.under(budget))
    else:
        raise RequestError(*unknown("solver", solver, SOLVERS))
    return best and plan_of(problem, *best)


def cheapest(
    loss: Table,
    cost: Table,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Allocation | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of least cost within `limits`, which must be possible, and of those the one of least predicted loss. Raises as `solve` does.

    A limit may be one on the loss: HAWQ-V3 with bytes, operations or milliseconds as the objective.
    """
    problem = build(loss, cost, groups, interactions=interactions, edges=edges, limits=limits, fixed=fixed)
    return plan_of(problem, *_cheapest(problem, seed))


def shortage(
    loss: Table,
    cost: Table,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Allocation | None = None,
    seed: int = 0,
) -> Shortage | None:
    """The limits that no allocation keeps together, with the plan that exceeds them least; None where they can be kept.

    "Least" is the sum of the shares by which limits are exceeded. Of the plans that are as near the one of least loss is named.
    """
    problem = build(loss, cost, groups, interactions=interactions, edges=edges, limits=limits, fixed=fixed)
    over = excesses(problem, problem.limits)
    if not any(over):
        return None
    eased = [Within(held.form, held.at_most + more, held.offset) for held, more in zip(problem.limits, over, strict=True)]
    found = _best(problem, eased, [], seed)
    chosen, gap = found or (least_cost(problem, eased), math.nan)
    binding = []
    for limit, held, more in zip(limits, problem.limits, over, strict=True):
        if more:
            alone, offset = least_cost(problem, (), held.form), limit.resource.offset
            needed, possible = (held.form.total(plan) + offset for plan in (chosen, alone))
            binding.append(Binding(limit.resource.name, limit.resource.table.unit, limit.at_most, needed, possible))
    return Shortage(tuple(binding), plan_of(problem, chosen, gap))


def front(
    loss: Table,
    cost: Table,
    *,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Allocation | None = None,
    points: int = 18,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> tuple[Plan, ...]:
    """The plans that none of the others beats on both loss and cost, cheapest first: at most one for each of `points` budgets.

    All are within `limits`, which must be possible. The budgets lie on a geometric grid from the least possible cost to the cost of the
    least loss. `restarts` are the random starts at both ends, where there are interactions. Raises as `solve` does.
    """
    problem = build(loss, cost, groups, interactions=interactions, edges=edges, limits=limits, fixed=fixed)
    first = _cheapest(problem, seed, restarts)
    dearest = _best(problem, problem.under(math.inf), [first[0]], seed, restarts=restarts) or first
    low, high = problem.cost.total(first[0]), problem.cost.total(dearest[0])
    grid = np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)
    answers = [first]
    whole = pareto.whole_front(problem) if pareto.applies(problem, problem.limits) else None
    for budget in grid[1:-1]:
        limit = Within(problem.cost, float(budget))
        if whole is not None and whole.exact:
            chosen = whole.within(limit)
            answers.append(answers[-1] if chosen is None else (chosen, 0.0))
        else:
            answers.append(_best(problem, (limit, *problem.limits), [answers[-1][0]], seed, restarts=0) or answers[-1])
    return undominated([plan_of(problem, *answer) for answer in (*answers, dearest)])


def undominated(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Those that none of the others beats on both predicted loss and cost, cheapest first."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.predicted_cost, plan.predicted_loss)):
        if not kept or plan.predicted_loss < kept[-1].predicted_loss:
            kept.append(plan)
    return tuple(kept)


def _cheapest(problem: Problem, seed: int, restarts: int = RESTARTS) -> Answer:
    chosen = least_cost(problem, problem.limits)
    return _best(problem, problem.under(problem.cost.total(chosen)), [chosen], seed, restarts=restarts) or (chosen, math.nan)


def _best(problem: Problem, limits: Sequence[Within], starts: Sequence[Chosen], seed: int, *, restarts: int = RESTARTS) -> Answer | None:
    if not problem.loss.has_pairs:
        return _milp(problem, limits)
    return _quadratic(problem, limits, starts=starts, restarts=restarts, seed=seed)
