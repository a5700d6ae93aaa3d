"""The predictor fitted to a few measured plans: few labels on a strong prior (the idea of APQ, arXiv 2006.08509; methods: NNLS and ridge).

    predicted(x) = Σ_o θ_o x_o + a Σ_{o<p} M_op x_o x_p
    θ = argmin Σ_plans (measured − predicted)² / measured + λ Σ_o ((θ_o − b d_o) / s_o)²

d is each option's own predicted loss (½ M_oo where there are interactions, else the table), M the interactions, x the plan. First b and a
by least squares that stay at or above 0; then θ, at or above a tenth of b d. The spread s is either b d itself, so that options err by
shares, or the same for all, so that one that the sensitivity missed altogether can be found; it and λ are what predicts best what is left
out, if that is better than no θ of its own by more than half its standard error (after the rule of one standard error: Breiman et al.,
Classification and Regression Trees, 1984, section 3.4.3). Errors are weighed as those of counts: relative ones would waste plans that lose
much, plain ones all others. So a sensitivity gets the scale of what is measured, the share of the interactions that is really there, and
the groups that it misjudged, and keeps what was not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from quantkit.core.spec import Allocation
from quantkit.core.table import Floats, Interactions, Table

MeasuredLoss = tuple[Allocation, float]  # a plan, and the loss that was measured of it
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, np.inf)  # how firmly options are held, in shares of what a plan's own options weigh
FLOOR = 0.02  # of the median loss of plans that lose: below, noise is more than the loss itself
LEAST = 0.1  # of what was predicted: θ falls no lower
# Standard errors by which options are to gain. Of 0, ½ and 1, on plans that were not fitted to: rank correlation 0.70, 0.82 and 0.82 on
# STS-b (46 plans fitted to), R² 0.61, 0.61 and −0.65 on SqueezeNet (13 plans).
SURE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class FittedLosses:
    """`own` and `between` are b and a; `ridge` how strongly single options are held to the prior, infinite where they are not touched."""

    loss: Table
    interactions: Interactions | None
    own: float
    between: float
    ridge: float

    def predicted(self, allocation: Allocation) -> float:
        """The loss of one scheme per group."""
        return predicted_loss(self.loss, self.interactions, allocation)


def predicted_loss(loss: Table, interactions: Interactions | None, allocation: Allocation) -> float:
    """½ x'Mx where there are interactions, else the table's sum."""
    return loss.total(allocation) if interactions is None else interactions.predicted(allocation)


def fit_losses(loss: Table, interactions: Interactions | None, seen: Sequence[MeasuredLoss]) -> FittedLosses:
    """The tables fitted to what was `seen`; as they are where that is fewer than three plans, or says that nothing loses."""
    measured = np.array([value for _, value in seen])
    if len(seen) < 3 or not measured.max() > 0:
        return FittedLosses(loss, interactions, 1.0, 1.0, np.inf)
    own = loss.values.copy() if interactions is None else 0.5 * np.diag(interactions.matrix).reshape(loss.values.shape)
    d = np.nan_to_num(own).ravel()
    taken = np.stack([_indicator(loss, allocation) for allocation, _ in seen])
    pairs = np.zeros(len(seen)) if interactions is None else _between(interactions, taken)
    weights = 1 / np.sqrt(np.maximum(measured, FLOOR * np.median(measured[measured > 0])))
    (b, a), _ = nnls(np.stack([taken @ d, pairs], axis=1) * weights[:, None], measured * weights)
    if b == 0:  # everything was said to be interaction, or nothing to be lost: no prior for single options
        return FittedLosses(loss, interactions, 1.0, 1.0, np.inf)
    left, taken = (measured - b * taken @ d - a * pairs) * weights, taken * weights[:, None]
    spreads = (b * d, np.where(d > 0, b * d[d > 0].mean(), 0.0))
    spread, ridge = _held_best(taken, left, spreads)
    moved = _moved(taken * spread, left, ridge, lowest=np.divide((LEAST - 1) * b * d, spread, out=np.zeros_like(d), where=spread > 0))
    theta = (b * d + spread * moved).reshape(own.shape)
    fitted = replace(loss, values=np.where(np.isnan(loss.values), np.nan, theta))
    if interactions is None:
        return FittedLosses(fitted, None, float(b), 1.0, float(ridge))
    matrix = a * interactions.matrix
    np.fill_diagonal(matrix, 2 * theta.ravel())
    return FittedLosses(fitted, replace(interactions, matrix=matrix), float(b), float(a), float(ridge))


def _indicator(table: Table, allocation: Allocation) -> Floats:
    x = np.zeros(table.values.shape)
    for group, scheme in allocation.items():
        x[table.groups.index(group), table.schemes.index(scheme)] = 1.0
    return x.ravel()


def _between(interactions: Interactions, taken: Floats) -> Floats:
    """½ x'Mx without the diagonal, of each plan."""
    apart = interactions.matrix - np.diag(np.diag(interactions.matrix))
    return np.asarray(0.5 * np.einsum("ko,op,kp->k", taken, apart, taken, optimize=True))


def _moved(design: Floats, left: Floats, strength: float, lowest: Floats) -> Floats:
    """δ ≥ `lowest` (at most 0) of least ‖left − design δ‖² + λ ‖δ‖²; 0 for columns that are 0, and where λ is infinite."""
    found, used = np.zeros(design.shape[1]), np.flatnonzero(design.any(axis=0))
    if np.isfinite(strength) and len(used):
        root = np.sqrt(_held(design @ design.T, strength))
        rows = np.concatenate([design[:, used], root * np.eye(len(used))])
        wanted = np.concatenate([left - design @ lowest, -root * lowest[used]])
        found[used] = lowest[used] + nnls(rows, wanted)[0]
    return found


def _held_best(taken: Floats, left: Floats, spreads: Sequence[Floats]) -> tuple[Floats, float]:
    """The spread and the ridge that predict best what is left out; an infinite ridge where none is better by SURE standard errors."""
    best, most = (spreads[0], np.inf), 0.0
    for spread, ridge in itertools.product(spreads, RIDGES):
        gains = left**2 - _left_out(taken * spread, left, ridge) ** 2
        gain = float(gains.mean())
        if gain > max(most, SURE * float(gains.std(ddof=1)) / np.sqrt(len(gains))):
            best, most = (spread, ridge), gain
    return best


def _left_out(design: Floats, left: Floats, strength: float) -> Floats:
    """The error on each plan, predicted by the others (the closed form of leaving one out)."""
    if np.isinf(strength):
        return left
    kernel = design @ design.T
    inverse = np.linalg.inv(kernel + _held(kernel, strength) * np.eye(len(left)))
    return np.asarray((inverse @ left) / np.diag(inverse))


def _held(kernel: Floats, strength: float) -> float:
    return float(strength * max(np.trace(kernel) / len(kernel), 1e-30))
