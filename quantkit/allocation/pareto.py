"""The whole front by dynamic programming (HAWQ-V2, arXiv 1911.03852; ZeroQ, 2001.00281): one loss, one cost, no interactions, no edges.

Group by group, every plan so far is joined with every option, and what another beats on both loss and cost is dropped (Nemhauser and
Ullmann): what is left at the end are all undominated plans. Beyond `MOST` of them one is kept for each of as many steps of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.problem import Chosen, Floats, Problem, Within

MOST = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """The undominated plans, cheapest first, and whether they are all there are."""

    costs: Floats
    losses: Floats
    chosen: NDArray[np.intp]  # [plans, groups]
    exact: bool

    def within(self, limit: Within) -> Chosen | None:
        """The plan of least loss within a limit on the cost; None if there is none."""
        place = int(np.searchsorted(self.costs, limit.highest, side="right"))
        found = next((self.chosen[at] for at in range(min(place, len(self.costs) - 1), -1, -1) if limit.holds(self.chosen[at])), None)
        return None if found is None else np.asarray(found, dtype=np.intp)


def applies(problem: Problem, limits: Sequence[Within]) -> bool:
    """Whether there is nothing but sums, and the cost alone is limited."""
    return not (problem.loss.has_pairs or problem.cost.crossings) and all(limit.form is problem.cost for limit in limits)


def whole_front(problem: Problem, most: int = MOST) -> Front:
    """Every undominated plan of a problem to which dynamic programming `applies`."""
    costs, losses, exact = np.zeros(1), np.zeros(1), True
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for place in range(len(problem.groups)):
        options = np.flatnonzero(problem.group == place)
        joined = (costs[:, None] + problem.cost.linear[options]).ravel()
        lost = (losses[:, None] + problem.loss.linear[options]).ravel()
        kept = _undominated(joined, lost)
        if len(kept) > most:
            kept, exact = _thinned(joined[kept], kept, most), False
        steps.append((kept // len(options), options[kept % len(options)]))
        costs, losses = joined[kept], lost[kept]
    chosen = np.empty((len(costs), len(problem.groups)), dtype=np.intp)
    at = np.arange(len(costs))
    for place in reversed(range(len(problem.groups))):
        before, taken = steps[place]
        chosen[:, place] = taken[at]
        at = before[at]
    return Front(costs, losses, chosen, exact)


def _undominated(costs: Floats, losses: Floats) -> NDArray[np.intp]:
    """The places of those that no other beats, by rising cost; of equals the first."""
    order = np.lexsort((losses, costs))
    falling = losses[order]
    lowest = np.concatenate([[np.inf], np.minimum.accumulate(falling)[:-1]])
    return np.asarray(order[falling < lowest], dtype=np.intp)


def _thinned(costs: Floats, kept: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Of each step of the cost the last, which loses least; and the cheapest of all."""
    step = np.floor((costs - costs[0]) / (costs[-1] - costs[0]) * (most - 1))
    last = np.append(step[1:] != step[:-1], True)
    last[0] = True
    return np.asarray(kept[last], dtype=np.intp)
