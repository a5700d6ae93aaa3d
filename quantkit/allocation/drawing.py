"""Random plans of nearly one cost: what a predictor is fitted to, and what it is tested on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from quantkit.allocation.plan import Resource
from quantkit.core.graph import Group
from quantkit.core.spec import Allocation, Scheme
from quantkit.core.table import Floats

TRIES = 60  # for each plan that is wanted


def draw(
    base: Allocation, groups: Sequence[Group], cost: Resource, *, count: int, width: float, seed: int
) -> tuple[dict[str, Scheme], ...]:
    """Up to `count` different plans whose cost is that of `base`, give or take the share `width`; `base` is none of them.

    Each departs from `base` in a share of groups that is drawn itself, from a few to all. Those take schemes at random, the cheaper the
    likelier where the plan would come out too dear, and the other way round. Fewer than `count` where too few such plans exist.
    """
    random = np.random.default_rng(seed)
    wanted, found = cost.total(base), dict[tuple[Scheme, ...], dict[str, Scheme]]()
    menus = [sorted(group.schemes, key=lambda scheme: scheme.precision) for group in groups]
    costs = np.full((len(groups), max(map(len, menus))), np.nan)  # nan: no scheme, or one that the group cannot take
    for place, (group, menu) in enumerate(zip(groups, menus, strict=True)):
        costs[place, : len(menu)] = [cost.table.at(group.name, scheme) for scheme in menu]
    costs[~np.isfinite(costs)] = np.nan
    spread = max(float(np.mean(np.nanmax(costs, axis=1) - np.nanmin(costs, axis=1))), 1e-12)
    tilt = 0.0
    for _ in range(TRIES * count):
        share = random.uniform(0.1, 1.0)
        plan, chances = dict(base), _cumulated(costs / spread, tilt)
        for group, menu, row in zip(groups, menus, chances, strict=True):
            if random.random() < share:
                plan[group.name] = menu[bisect_right(row, random.random())]
        total = cost.total(plan)
        tilt += 0.1 * float(np.clip((total - wanted) / (abs(wanted) or 1.0) / width, -1.0, 1.0))
        if abs(total - wanted) <= width * abs(wanted) and plan != dict(base):
            found.setdefault(tuple(plan.values()), plan)
        if len(found) == count:
            break
    return tuple(found.values())


def _cumulated(costs: Floats, tilt: float) -> list[list[float]]:
    """Of each row the chances up to each place: exp(−tilt · cost) of what can be had, 0 for the rest."""
    powers = -tilt * costs
    weights = np.nan_to_num(np.exp(powers - np.nanmax(powers, axis=1, keepdims=True)))
    sums = weights.cumsum(axis=1)
    return (sums / sums[:, -1:]).tolist()  # type: ignore[no-any-return]
