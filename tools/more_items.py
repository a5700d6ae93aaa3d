"""What more items would give a verdict beside the labelled ones that it has: unlabelled ones, and those of calibration.

Unlabelled items as a control variate (prediction-powered inference: Angelopoulos and others, Science 382, 2023): a model of the drop that
needs no label is averaged over the labelled items and over UNLABELLED times as many others, and the estimate is moved by the weight that
helps most times the difference. That is right on average whatever the model. The weight is fitted to the very draws that are judged, so
the gain is the most that there is.

Calibration items by cross-fitting would need a second set of ranges and rounded weights, and each candidate twice. `cross_fitting` is the
most that it could give: as if those items were as fresh as the search's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from quantkit.core.near_ties import _estimate, _slope, neighbours
from quantkit.core.statistics import ALLOWANCE, PRIOR_WIDTH

Floats = NDArray[np.float64]
UNLABELLED = 4  # times the labelled items
CALIBRATION_OVER_SEARCH, GATE_OVER_SEARCH = 0.5, 1.0  # as the splits are cut


def margins(scores: Floats, classes: NDArray[np.int64]) -> Floats:
    """How far the score of each item's class is above the best other one."""
    rows, others = np.arange(len(scores)), scores.copy()
    others[rows, classes] = -np.inf
    return np.asarray(scores[rows, classes] - others.max(axis=1))


class WithoutLabels:
    """The drop at an item of which only its lead is known: the chance of changing, by the moves of leads like it, times that of having
    been right less that of having been wrong.
    """

    def __init__(self, leads: Floats, moves: Floats, labelled: Floats) -> None:
        order = np.argsort(leads)
        self.leads, self.reach = leads[order], float(np.abs(moves).max())
        self.windows = np.lib.stride_tricks.sliding_window_view(moves[order], neighbours(len(leads)))
        distance = np.abs(labelled)
        near = distance <= self.reach
        self.slope = _slope(distance[near], labelled[near] > 0, self.change(distance[near])) if near.any() else 0.0

    def change(self, leads: Floats) -> Floats:
        """The chance of another answer, of leads within reach."""
        first = np.searchsorted(self.leads, leads) - self.windows.shape[1] // 2
        windows = self.windows[np.clip(first, 0, len(self.windows) - 1)]
        return np.asarray((windows <= -leads[:, None]).mean(axis=1))

    def drop(self, leads: Floats) -> float:
        """The mean over all items; those out of reach lose nothing."""
        near = leads[leads <= self.reach]
        return float((self.change(near) * (2 * expit(self.slope * near) - 1)).sum()) / len(leads)


def with_unlabelled(labelled: tuple[Floats, Floats, NDArray[np.int64]], others: tuple[Floats, Floats]) -> tuple[float, float]:
    """The drop by the labelled items, and how far the model's mean over the `others` is above that over the labelled ones."""
    before, after, labels = labelled
    own = margins(before, labels)
    leads, moves = [], []
    for one, two in ((before, after), others):
        answers = one.argmax(axis=1)
        leads.append(margins(one, answers))
        moves.append(margins(two, answers) - leads[-1])
    model = WithoutLabels(np.concatenate(leads), np.concatenate(moves), own)
    return _estimate(own, margins(after, labels) - own), model.drop(leads[1]) - model.drop(leads[0])


def gain(estimates: Floats, differences: Floats, flips: float, n: int) -> float:
    """The variance with unlabelled items over that without, over many draws, with what a verdict allows for its assumptions in both."""
    spread = np.cov(estimates, differences)
    allowed = ALLOWANCE * (flips + 1) / n**2
    removed = spread[0, 1] ** 2 / spread[1, 1] if spread[1, 1] > 0 else 0.0
    return float((spread[0, 0] - removed + allowed) / (spread[0, 0] + allowed))


def cross_fitting(drop: float, variance: float) -> float:
    """The spread of what a search expects of the gate with calibration items over that without (`Expectation`), at a plan's drop and the
    variance of its estimate.
    """

    def spread(variance_of_search: float) -> float:
        width = max(PRIOR_WIDTH * abs(drop), 1e-9)
        return variance_of_search / (1 + variance_of_search / width**2) + variance / GATE_OVER_SEARCH

    return float(np.sqrt(spread(variance / (1 + CALIBRATION_OVER_SEARCH)) / spread(variance)))
