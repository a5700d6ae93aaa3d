"""Random plans of nearly one cost: what a predictor is fitted to, and what it is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.allocation.plan import Resource
from quantkit.core.graph import Group
from quantkit.core.spec import parse_scheme
from quantkit.core.table import Floats

TRIES = 60  # for each plan that is wanted


def draw(
    base: Mapping[str, str], groups: Sequence[Group], cost: Resource, *, count: int, width: float, seed: int
) -> tuple[dict[str, str], ...]:
    """Up to `count` different plans whose cost is that of `base`, give or take the share `width`; `base` is none of them.

    Each departs from `base` in a share of groups that is drawn itself, from a few to all. Those take schemes at random, the cheaper the
    likelier where the plan would come out too dear, and the other way round. Fewer than `count` where too few such plans exist.
    """
    random = np.random.default_rng(seed)
    wanted, found = cost.total(base), dict[tuple[str, ...], dict[str, str]]()
    menus = [sorted(group.schemes, key=lambda scheme: parse_scheme(scheme).precision) for group in groups]
    costs = [np.array([cost.table.at(group.name, scheme) for scheme in menu]) for group, menu in zip(groups, menus, strict=True)]
    spread = max(float(np.mean([np.ptp(row[np.isfinite(row)]) for row in costs])), 1e-12)
    tilt = 0.0
    for _ in range(TRIES * count):
        share = random.uniform(0.1, 1.0)
        plan = dict(base)
        for group, menu, row in zip(groups, menus, costs, strict=True):
            if random.random() < share:
                plan[group.name] = menu[random.choice(len(menu), p=_chances(row / spread, tilt))]
        total = cost.total(plan)
        tilt += 0.1 * float(np.clip((total - wanted) / (abs(wanted) or 1.0) / width, -1.0, 1.0))
        if abs(total - wanted) <= width * abs(wanted) and plan != dict(base):
            found.setdefault(tuple(plan.values()), plan)
        if len(found) == count:
            break
    return tuple(found.values())


def _chances(costs: Floats, tilt: float) -> Floats:
    """exp(−tilt · cost), of what can be had; 0 for the rest."""
    powers = np.where(np.isfinite(costs), -tilt * np.nan_to_num(costs), -np.inf)
    weights = np.exp(powers - powers.max())
    return np.asarray(weights / weights.sum())
