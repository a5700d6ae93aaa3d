"""The predictor fitted to a few measured plans: few labels on a strong prior (the idea of APQ, arXiv 2006.08509; methods: NNLS and ridge).

    predicted(x) = Σ_o θ_o x_o + a Σ_{o<p} M_op x_o x_p,      θ_o = b · d_o · (1 + δ_o)

d is each option's own predicted loss (½ M_oo where there are interactions, else the table), M the interactions, x the plan. First b and a
by least squares that stay at or above 0; then δ by a ridge towards 0, as strong as predicts best what is left out. Both weigh relative
errors: a plan of twice the loss may be missed by twice as much. So a sensitivity gets the scale of what is measured, the share of the
interactions that is really there, and the groups that it misjudged, and keeps what was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from quantkit.table import Floats, Interactions, Table

Seen = tuple[Mapping[str, str], float]  # a plan, and the loss that was measured of it
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, np.inf)  # how firmly options are held, in shares of what a plan's own options weigh
FLOOR = 0.02  # of the median loss of plans that lose: below, noise is more than the loss itself
LEAST = 0.1  # of what was predicted: θ falls no lower


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """`own` and `between` are b and a; `ridge` how strongly single options are held to the prior, infinite where they are not touched."""

    loss: Table
    interactions: Interactions | None
    own: float
    between: float
    ridge: float

    def predicted(self, allocation: Mapping[str, str]) -> float:
        """The loss of one scheme per group."""
        return predicted_loss(self.loss, self.interactions, allocation)


def predicted_loss(loss: Table, interactions: Interactions | None, allocation: Mapping[str, str]) -> float:
    """½ x'Mx where there are interactions, else the table's sum."""
    return loss.total(allocation) if interactions is None else interactions.predicted(allocation)


def blend(loss: Table, interactions: Interactions | None, seen: Sequence[Seen]) -> Blend:
    """The tables fitted to what was `seen`; as they are where that is fewer than three plans, or says that nothing loses."""
    measured = np.array([value for _, value in seen])
    if len(seen) < 3 or not measured.max() > 0:
        return Blend(loss, interactions, 1.0, 1.0, np.inf)
    own = loss.values.copy() if interactions is None else 0.5 * np.diag(interactions.matrix).reshape(loss.values.shape)
    taken = np.stack([_indicator(loss, allocation) for allocation, _ in seen])
    parts = taken * np.nan_to_num(own).ravel()
    pairs = np.zeros(len(seen)) if interactions is None else _between(interactions, taken)
    weights = 1.0 / np.maximum(measured, FLOOR * np.median(measured[measured > 0]))
    terms = np.stack([parts.sum(axis=1), pairs], axis=1)
    (b, a), _ = nnls(terms * weights[:, None], measured * weights)
    if b == 0:  # everything was said to be interaction, or nothing to be lost: no prior for single options
        return Blend(loss, interactions, 1.0, 1.0, np.inf)
    design, left = b * parts * weights[:, None], (measured - terms @ np.array([b, a])) * weights
    ridge = min(RIDGES, key=lambda strength: _left_out(design, left, strength))
    factors = b * np.maximum(1.0 + _ridge(design, left, ridge), LEAST)
    fitted = replace(loss, values=np.where(np.isnan(loss.values), np.nan, own * factors.reshape(own.shape)))
    if interactions is None:
        return Blend(fitted, None, float(b), 1.0, float(ridge))
    matrix = a * interactions.matrix
    np.fill_diagonal(matrix, 2 * np.nan_to_num(own).ravel() * factors)
    return Blend(fitted, replace(interactions, matrix=matrix), float(b), float(a), float(ridge))


def _indicator(table: Table, allocation: Mapping[str, str]) -> Floats:
    x = np.zeros(table.values.shape)
    for group, scheme in allocation.items():
        x[table.groups.index(group), table.schemes.index(scheme)] = 1.0
    return x.ravel()


def _between(interactions: Interactions, taken: Floats) -> Floats:
    """½ x'Mx without the diagonal, of each plan."""
    apart = interactions.matrix - np.diag(np.diag(interactions.matrix))
    return np.asarray(0.5 * np.einsum("ko,op,kp->k", taken, apart, taken, optimize=True))


def _ridge(design: Floats, left: Floats, strength: float) -> Floats:
    """δ of least ‖left − design δ‖² + λ ‖δ‖²; 0 where λ is infinite."""
    if np.isinf(strength):
        return np.zeros(design.shape[1])
    kernel = design @ design.T
    return np.asarray(design.T @ np.linalg.solve(kernel + _held(kernel, strength) * np.eye(len(left)), left))


def _left_out(design: Floats, left: Floats, strength: float) -> float:
    """The squared error on each plan, predicted by the others (the closed form of leaving one out)."""
    if np.isinf(strength):
        return float(left @ left)
    kernel = design @ design.T
    inverse = np.linalg.inv(kernel + _held(kernel, strength) * np.eye(len(left)))
    errors = (inverse @ left) / np.diag(inverse)
    return float(errors @ errors)


def _held(kernel: Floats, strength: float) -> float:
    return float(strength * max(np.trace(kernel) / len(kernel), 1e-30))
