"""The order in which a guided bisection lowers groups: least sensitive first (2302.01382, 2306.04879).

With interactions the sensitivity of a group depends on what is already lowered, so the order is built one group at a time:
next comes the group whose lowering adds least to ½ x'Mx, given those before it. Our reconstruction: 2306.04879's own
combination of the Hessian with the dependence between layers was not to be had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.core.spec import Allocation, Scheme
from quantkit.core.table import Floats, Interactions, Table


def order(
    sensitivity: Table,
    groups: Sequence[str],
    scheme: Scheme,
    *,
    interactions: Interactions | None = None,
    start: Allocation | None = None,
) -> tuple[str, ...]:
    """The groups that can take `scheme`, in the order in which to lower them to it; of equals, the first given is first.

    `start` is the whole allocation that they are lowered from; interactions need it, and nothing else reads it.
    """
    possible = [group for group in groups if np.isfinite(sensitivity.at(group, scheme))]
    if interactions is None:
        return tuple(sorted(possible, key=lambda group: sensitivity.at(group, scheme)))
    standing = start or {}
    moves = {group: _indicator(interactions, {group: scheme}) - _indicator(interactions, {group: standing[group]}) for group in possible}
    taken = _indicator(interactions, standing)
    ordered: list[str] = []
    while moves:
        field = interactions.matrix @ taken
        group = min(moves, key=lambda name: float(moves[name] @ (field + 0.5 * (interactions.matrix @ moves[name]))))
        taken = taken + moves.pop(group)
        ordered.append(group)
    return tuple(ordered)


def _indicator(interactions: Interactions, allocation: Allocation) -> Floats:
    x = np.zeros(len(interactions.matrix))
    x[[interactions.index(group, scheme) for group, scheme in allocation.items()]] = 1.0
    return x
