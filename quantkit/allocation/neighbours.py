"""The plans one or two changes away, in the order in which they are predicted to lose least: what a search on measured losses tries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.allocation.plan import Edge, Limit, Plan
from quantkit.allocation.quadratic import short_list, swaps
from quantkit.allocation.translation import build, plan_of
from quantkit.core.graph import Group
from quantkit.core.spec import Allocation
from quantkit.core.table import Interactions, Table


def neighbours(
    loss: Table,
    cost: Table,
    plan: Plan,
    budget: float,
    *,
    count: int,
    groups: Sequence[Group],
    interactions: Interactions | None = None,
    edges: Sequence[Edge] = (),
    limits: Sequence[Limit] = (),
    fixed: Allocation | None = None,
) -> tuple[Plan, ...]:
    """The `count` plans of least predicted loss that differ from `plan` in one group or two and are within the budget and `limits`."""
    problem = build(loss, cost, groups, interactions=interactions, edges=edges, limits=limits, fixed=fixed)
    options = zip(problem.group, problem.scheme, strict=True)
    places = {(problem.groups[group], scheme): place for place, (group, scheme) in enumerate(options)}
    chosen = np.array([places[name, plan.allocation[name]] for name in problem.groups], dtype=np.intp)
    held = problem.under(budget)
    listed = short_list(problem, chosen, held)
    losses = swaps(problem, problem.loss, chosen, listed)
    losses[np.tril_indices(len(listed), -1)] = np.inf  # each pair once
    standing = np.isin(listed, chosen)  # what is taken already makes no pair
    losses[standing[:, None] | standing[None, :]] = np.inf
    found: list[Plan] = []
    for place in np.argsort(losses, axis=None, kind="stable"):
        first, second = np.unravel_index(int(place), losses.shape)
        if len(found) == count or losses[first, second] == np.inf:
            break
        swapped = chosen.copy()
        pair = listed[[first, second]]
        swapped[problem.group[pair]] = pair
        if all(limit.holds(swapped) for limit in held):
            found.append(plan_of(problem, swapped))
    return tuple(found)
