"""How good plans are as a set, and each of them against the best known: hypervolume, and DPFR (arXiv 2502.11921).

A point is (loss, cost), both to be small. Loss and cost are each brought to [0, 1] between the ideal and a reference, so that neither
unit weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.core.table import Floats

Point = tuple[float, float]


def hypervolume(points: Sequence[Point], ideal: Point, reference: Point) -> float:
    """The share of the box from `ideal` to `reference` that is no better than some point; in [0, 1]."""
    area, lowest = 0.0, 1.0
    for loss, cost in sorted(_scaled(points, ideal, reference).tolist(), key=lambda point: (point[1], point[0])):
        if cost < 1 and loss < lowest:
            area += (lowest - max(loss, 0.0)) * (1 - max(cost, 0.0))
            lowest = max(loss, 0.0)
    return area


def distances(points: Sequence[Point], front: Sequence[Point], ideal: Point, reference: Point) -> tuple[float, ...]:
    """How far each point would have to move, both axes scaled, until no point of the front beats it; 0 on the front and beyond.

    The front is the staircase of its points: what lies above and to the right of one of them is beaten.
    """
    steps = _scaled(sorted(front, key=lambda point: (point[1], point[0])), ideal, reference)
    if not len(steps):
        return tuple(0.0 for _ in points)
    losses, costs = np.minimum.accumulate(steps[:, 0]), steps[:, 1]
    # To get out from under the staircase between two steps a point must lose no more than the step on its left, and cost no more than that
    # on its right; left of the first any loss will do, right of the last any cost.
    lowest = np.concatenate([[np.inf], losses])
    left = np.concatenate([costs, [np.inf]])
    found = []
    for loss, cost in _scaled(points, ideal, reference):
        moves = np.hypot(np.maximum(loss - lowest, 0.0), np.maximum(cost - left, 0.0))
        found.append(float(moves.min()))
    return tuple(found)


def undominated_points(points: Sequence[Sequence[float]]) -> tuple[bool, ...]:
    """Of points on any number of axes, all to be small: whether no other is at least as good on each axis and better on one."""
    values = np.array(points, dtype=np.float64)
    return tuple(not bool(np.any(np.all(values <= point, axis=1) & np.any(values < point, axis=1))) for point in values)


def _scaled(points: Sequence[Point], ideal: Point, reference: Point) -> Floats:
    span = [(high - low) or 1.0 for low, high in zip(ideal, reference, strict=True)]
    return np.asarray((np.array(points, dtype=np.float64).reshape(-1, 2) - np.array(ideal)) / np.array(span))
