"""The certificate: how well predictions of plans agree with measurements, on plans held out of the fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from quantkit.core.spec import Allocation
from quantkit.core.table import Floats, Interactions, Table

BAND = 0.95  # the share of tested plans whose prediction is within the band


@dataclass(frozen=True, slots=True)
class Agreement:
    """Rank correlation, and the share of variance that is explained; null where plans do not differ."""

    spearman: float | None
    r2: float | None

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> Agreement:
        """Spearman's correlation, and 1 − Σ(measured − predicted)² / Σ(measured − mean)²."""
        x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return cls(None, None)
        return cls(float(spearmanr(x, y).statistic), float(1 - np.square(y - x).sum() / np.square(y - y.mean()).sum()))


@dataclass(frozen=True, slots=True)
class Certificate:
    """`fitted` is the predictor that plans were solved with, `additive` one fitted to the same plans without interactions, `prior` the
    sensitivity as it was estimated; all on the same `plans` unseen plans, measured on `items` items, after `trained` others.

    `beyond_additive` is the share of the predicted variance that no sum over groups explains, by the fitted interactions; where plans are
    predicted by sums, and `additive` equals `fitted`, by the Gram matrix of the same passes; None where neither was measured. `band` is the
    factor within which the measured divergence of most tested plans lies of the predicted one; `predicted` and `measured` are those of the
    plan that ships, on the same items. `predicted_drop` is what the search expected of it, `measured_drop` what the gate split showed.
    `refits` counts how often a prediction outside the band made the plan be solved again.
    """

    plans: int
    trained: int
    items: int
    fitted: Agreement
    additive: Agreement
    prior: Agreement
    beyond_additive: float | None
    band: float
    predicted: float
    measured: float
    refits: int
    predicted_drop: float | None = None
    measured_drop: float | None = None

    @property
    def is_within_band(self) -> bool:
        """Whether the plan that ships is as well predicted as the tested ones."""
        return is_within(self.predicted, self.measured, self.band)

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self) | {"is_within_band": self.is_within_band}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_json`."""
        agreements: dict[str, Any] = {key: Agreement(**data[key]) for key in ("fitted", "additive", "prior")}
        rest: dict[str, Any] = {key: value for key, value in data.items() if key not in (*agreements, "is_within_band")}
        return cls(**agreements, **rest)


def band(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """The factor, at least 1, within which the share BAND of the measured values lies of the predicted ones; finite."""
    off = np.abs(_log_ratios(predicted, measured))
    return float(np.exp(np.quantile(off, BAND))) if len(off) else 1.0


def is_within(predicted: float, measured: float, factor: float) -> bool:
    """Whether the two differ by at most that factor."""
    return bool(abs(_log_ratios([predicted], [measured])[0]) <= math.log(factor) * (1 + 1e-9))


def beyond_additive(loss: Table, interactions: Interactions | None, plans: Sequence[Allocation]) -> float | None:
    """Of the variance of ½ x'Mx the share that no sum over groups explains, were each group drawn by itself as often as in `plans`.

    The second-order part of the functional analysis of variance (Hoeffding 1948), in closed form: a pair's block of M, both of its
    means taken off. None where no interactions were measured, or there are no plans.
    """
    if interactions is None or not plans:
        return None
    groups, schemes = len(loss.groups), len(loss.schemes)
    chances = np.zeros((groups, schemes))
    for plan in plans:
        for group, scheme in plan.items():
            chances[loss.groups.index(group), loss.schemes.index(scheme)] += 1 / len(plans)
    blocks = interactions.matrix.reshape(groups, schemes, groups, schemes)
    main, beyond = np.zeros(groups), 0.0
    for i in range(groups):
        effect = 0.5 * np.diag(blocks[i, :, i, :]).copy()
        for j in range(groups):
            if i != j:
                block = blocks[i, :, j, :]
                effect += block @ chances[j]
                if i < j:
                    beyond += _variance(_centred(block, chances[i], chances[j]) ** 2, chances[i], chances[j])
        main[i] = chances[i] @ effect**2 - (chances[i] @ effect) ** 2
    total = float(main.sum()) + beyond
    return beyond / total if total > 0 else 0.0


def _centred(block: Floats, rows: Floats, columns: Floats) -> Floats:
    across = block - (block @ columns)[:, None]
    return np.asarray(across - rows @ across)


def _variance(squares: Floats, rows: Floats, columns: Floats) -> float:
    return float(rows @ squares @ columns)


def _log_ratios(predicted: Sequence[float], measured: Sequence[float]) -> Floats:
    tiny = 1e-9
    x, y = (np.maximum(np.asarray(values, np.float64), tiny) for values in (predicted, measured))
    return np.asarray(np.log(y / x))
