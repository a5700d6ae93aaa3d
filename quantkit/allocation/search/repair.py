"""One greedy pass behind a search: what else can be made cheaper while the promise still holds?"""

from __future__ import annotations

from quantkit.allocation import Plan
from quantkit.allocation.search.measured import Space, Trial, Trials
from quantkit.core.spec import Scheme


def repair(trials: Trials, space: Space, count: int) -> None:
    """Tries, at most `count` times, to lower one group of the best trial to a cheaper scheme; what passes is the new best.

    The group that is predicted to lose least per cost saved goes first; what failed once is not tried again. Nothing is to do where the
    least drop is wanted.
    """
    if space.least_drop:
        return
    refused: set[tuple[str, Scheme]] = set()
    for left in range(count, 0, -1):
        best = trials.result().best
        step = best and _next(best, space, refused)
        if not step:
            return
        group, scheme, plan = step
        trials.outlook.expect([plan], left - 1)
        if not trials.of(plan).measured.passes:
            refused.add((group, scheme))


def likely_repairs(space: Space, plan: Plan, count: int) -> int:
    """How many `repair` tries at most from that plan: no more than there are groups' schemes by which it gets cheaper."""
    if space.least_drop:
        return 0
    standing, found = plan.allocation, 0
    for group in space.groups:
        name = group.name
        beside = [(edge.cost, standing[edge.producer if edge.consumer == name else edge.consumer].reads_float)
                  for edge in space.edges if name in (edge.producer, edge.consumer)]  # fmt: skip
        costs = {
            scheme: space.cost.at(name, scheme) + sum(cost for cost, is_float in beside if is_float != scheme.reads_float)
            for scheme in space.menu(group)
        }
        found += sum(cost < costs[standing[name]] for cost in costs.values())
    return min(count, found)


def _next(best: Trial, space: Space, refused: set[tuple[str, Scheme]]) -> tuple[str, Scheme, Plan] | None:
    standing = best.plan
    steps = [
        (group.name, scheme, space.plan({**standing.allocation, group.name: scheme}))
        for group in space.groups
        for scheme in space.menu(group)
        if scheme != standing.allocation[group.name] and (group.name, scheme) not in refused
    ]
    cheaper = [step for step in steps if step[2].predicted_cost < standing.predicted_cost and space.excess(step[2]) == 0]
    return min(cheaper, key=lambda step: _price(standing, step[2]), default=None)


def _price(before: Plan, after: Plan) -> float:
    """Predicted loss added for each unit of cost saved."""
    return (after.predicted_loss - before.predicted_loss) / (before.predicted_cost - after.predicted_cost)
