"""The drop of right-or-wrong answers, estimated from margins: less noisy than counting the few answers that changed.

An item's margin is the score of its own class less the best other: right above 0, wrong below. Quantization moves margins a little, so
the answers that change are near ties, and which of them were right before is a matter of luck. Two things are known of near ties that a
count does not use:

- how far margins move is seen on every item, and items of nearly the same margin move alike: a chance of changing takes the place of the
  change itself (the Rao-Blackwell idea, over the nearest margins, `neighbours` of them);
- right and wrong answers are equally likely at a margin of 0, and right ones the likelier the larger it is: one logistic slope for all
  takes the place of each item's own luck.

The moves are those of the labelled margins, so a network that is pushed away from what is right shows it. The estimate is ours
[reconstruction]; `tools/bench_items.py` measures its error rates on real networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

Floats = NDArray[np.float64]

BLOCKS = 20  # of the jackknife
LEAST_ITEMS = 2 * BLOCKS
ROWS = 1000  # that are compared with their neighbours at once
TIE = 1e-9  # of the largest margin: on which side of 0 a tie lies, as the answer was right or wrong
DOUBT = 3.0  # standard errors between estimate and count, beyond which the estimate is not believed
STEEPEST = 1e12  # of the slope, where every answer is right


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The share of right answers that is lost, and the variance of that estimate, which has BLOCKS − 1 degrees of freedom."""

    drop: float
    variance: float


def neighbours(n: int) -> int:
    """Of each item among `n`: about n^0.8, so that the error of taking them for alike falls faster than that of drawing items."""
    return max(1, min(300, int(0.8 * n**0.8), n // 4))


def smoothed_drop(
    before: Floats, after: Floats, was_right: NDArray[np.bool_] | None = None, is_right: NDArray[np.bool_] | None = None
) -> Smoothed | None:
    """The drop from the margins of every item before and after quantization; None where they are too few, not finite, or contradict it.

    `was_right` and `is_right` decide ties, of which quantized scores have many; else a tie is wrong.
    The variance is that of a jackknife over blocks of items. The count contradicts the estimate where they differ by more than `DOUBT`
    standard errors of their difference: then something moves answers that margins do not explain.
    """
    n = len(before)
    if n < LEAST_ITEMS or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    before, after = _untied(before, was_right), _untied(after, is_right)
    moves, block = after - before, np.arange(n) % BLOCKS
    changed = (before > 0).astype(np.float64) - (after > 0)
    drop = _estimate(before, moves)
    left_out = np.array([[_estimate(before[block != b], moves[block != b]), changed[block != b].mean()] for b in range(BLOCKS)])
    variance = _jackknife(left_out[:, 0])
    apart = changed.mean() - drop
    if abs(apart) > DOUBT * sqrt(_jackknife(left_out[:, 1] - left_out[:, 0]) + 1 / n**2):
        return None
    return Smoothed(drop, variance)


def _untied(margins: Floats, right: NDArray[np.bool_] | None) -> Floats:
    least = TIE * float(np.abs(margins).max())
    return margins if right is None else np.where(margins == 0, np.where(right, least, -least), margins)


def _jackknife(left_out: Floats) -> float:
    """The variance of an estimate from those with one block left out each."""
    return float((len(left_out) - 1) * left_out.var())


def _estimate(before: Floats, moves: Floats) -> float:
    """The mean over items of P(right) · P(right → wrong) − P(wrong) · P(wrong → right), each at the item's distance from a tie."""
    order = np.argsort(before, kind="stable")
    margins, moved = before[order], moves[order]
    near = margins[np.abs(margins) <= np.abs(moves).max()]  # no other can change
    if not len(near):
        return 0.0
    count, distance = neighbours(len(before)), np.abs(near)
    windows = np.lib.stride_tricks.sliding_window_view(moved, count)

    def share_below(margin: Floats, least: Floats) -> Floats:
        """Of the moves of the neighbours of each margin, the share at most `least`."""
        first = np.clip(np.searchsorted(margins, margin) - count // 2, 0, len(margins) - count)
        parts = [slice(start, start + ROWS) for start in range(0, len(margin), ROWS)]
        return np.concatenate([(windows[first[part]] <= least[part, None]).mean(axis=1) for part in parts])

    loss, gain = share_below(distance, -distance), 1 - share_below(-distance, distance)
    right = expit(_slope(distance, near > 0, loss + gain) * distance)
    return float((right * loss - (1 - right) * gain).sum()) / len(before)


def _slope(distance: Floats, is_right: NDArray[np.bool_], weight: Floats) -> float:
    """The likeliest slope of log-odds of being right over the distance from a tie, each item weighed by its chance of changing."""

    def surplus(slope: float) -> float:  # the derivative of the log likelihood, which falls
        return float(np.sum(weight * distance * (is_right - expit(slope * distance))))

    steep = 1 / max(float(distance.max()), 1e-300)
    if surplus(0.0) <= 0:
        return 0.0
    while surplus(steep) > 0:
        if steep * float(distance.max()) > STEEPEST:
            return steep
        steep *= 4
    return float(brentq(surplus, 0.0, steep))
