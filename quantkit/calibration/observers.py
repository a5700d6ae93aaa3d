"""Observers: what calibration remembers of a tensor, in bounded memory, and the range each method reads from it.

One pass keeps a histogram of fixed size whose range doubles when a value falls outside, so that any observer can be
chosen afterwards without the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.errors import DataError, SchemeError, unknown
from quantkit.core.numerics.affine import choose_qparams, fake_quantize
from quantkit.core.spec import PerTensor, QuantSpec

BINS = 4096
PERCENTILE = 99.99  # 99.9 clips too much on every network tried
MSE_STEPS = 81
CHUNK = 1 << 20  # values that are counted at once: they and their bins fit in the caches (half the time of four times as many)
TINY = 2.0**-40  # the first bound of a histogram
ACTIVATION = QuantSpec(8, signed=False, symmetric=False, granularity=PerTensor())


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What was observed: exact `low` and `high`, and how many values fell in each of BINS equal bins over [−bound, bound)."""

    low: float
    high: float
    bound: float
    counts: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """A JSON form; counts as pairs (bin, count) of the bins that are not empty."""
        filled = np.flatnonzero(self.counts)
        return {"low": self.low, "high": self.high, "bound": self.bound, "counts": [[int(b), float(self.counts[b])] for b in filled]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observed:
        """The inverse of `to_json`."""
        counts = np.zeros(BINS)
        for position, count in data["counts"]:
            counts[position] = count
        return cls(data["low"], data["high"], data["bound"], counts)

    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        width = 2 * self.bound / BINS
        return np.asarray(-self.bound + width * (np.arange(BINS) + 0.5), np.float64)


def observe(seen: Observed | None, values: Tensor) -> Observed:
    """`seen` with `values` added; `seen` itself is left as it was. The result does not depend on how the values were cut into calls.

    Raises DataError for values that are not finite: they have no range.
    """
    values = values.detach().float().flatten()
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise DataError(
            "the network computes NaN or infinite values", "finite activations", "check the weights, and the inputs' preprocessing"
        )
    if seen is None:
        seen = Observed(low, high, TINY, np.zeros(BINS))
    bound, counts = seen.bound, seen.counts
    while bound <= max(abs(low), abs(high)):
        counts = counts.reshape(-1, 2).sum(axis=1)
        counts = np.concatenate([np.zeros(BINS // 4), counts, np.zeros(BINS // 4)])
        bound *= 2
    return Observed(min(low, seen.low), max(high, seen.high), bound, counts + _histogram(values, bound))


def _histogram(values: Tensor, bound: float) -> NDArray[np.float64]:
    """Counts in whole numbers: torch.histc stops counting at 2^24, and a layer behind a ReLU has more zeros than that."""
    total = torch.zeros(BINS, dtype=torch.int64, device=values.device)
    for part in torch.split(values, CHUNK):
        bins = (part * (BINS / 2 / bound)).floor_().long().add_(BINS // 2)  # bound is a power of two, so the product is exact
        total += torch.bincount(bins, minlength=BINS)
    return total.cpu().numpy().astype(np.float64)


def min_max(seen: Observed, spec: QuantSpec) -> tuple[float, float]:  # noqa: ARG001 - the table's
    """The whole observed range."""
    return seen.low, seen.high


def percentile(seen: Observed, spec: QuantSpec) -> tuple[float, float]:  # noqa: ARG001
    """The range that leaves out (100 − PERCENTILE) % of the values, half on each side where both sides are used."""
    share = np.cumsum(seen.counts) / seen.counts.sum()
    tail = (100 - PERCENTILE) / 100
    edges = -seen.bound + 2 * seen.bound / BINS * np.arange(BINS + 1)
    one_sided = seen.low >= 0
    low = seen.low if one_sided else float(edges[np.searchsorted(share, tail / 2)])
    high = float(edges[min(np.searchsorted(share, 1 - (tail if one_sided else tail / 2)) + 1, BINS)])
    return max(low, seen.low), min(high, seen.high)


def mean_squared_error(seen: Observed, spec: QuantSpec) -> tuple[float, float]:
    """The range, shrunk in equal steps from the whole to a fifth of it, whose grid has the least squared error on the histogram."""
    filled = np.flatnonzero(seen.counts)
    centers, counts = torch.from_numpy(seen.centers()[filled]), torch.from_numpy(seen.counts[filled])
    best, least = (seen.low, seen.high), torch.inf
    for ratio in np.linspace(1.0, 0.2, MSE_STEPS):
        low, high = torch.tensor(seen.low * ratio), torch.tensor(seen.high * ratio)
        error = float((fake_quantize(centers, choose_qparams(low, high, spec)) - centers).square() @ counts)
        if error < least:
            best, least = (float(low), float(high)), error
    return best


OBSERVERS: dict[str, Callable[[Observed, QuantSpec], tuple[float, float]]] = {
    "minmax": min_max,
    "percentile": percentile,
    "mse": mean_squared_error,
}


def read_range(seen: Observed, observer: str, spec: QuantSpec = ACTIVATION) -> tuple[float, float]:
    """The (low, high) for a grid of format `spec` that `observer` reads from what was observed. Raises SchemeError for an unknown one."""
    if observer not in OBSERVERS:
        raise SchemeError(*unknown("observer", observer, OBSERVERS))
    return OBSERVERS[observer](seen, spec)
