"""Ratios of paired timings, how sure rounds or sittings are of them, and whether they keep a bound, in the words of `core.statistics`."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from scipy.stats import t as student

from quantkit.core.statistics import ERROR_RATE, INTERVAL, NORMAL, Decision, Floats


@dataclass(frozen=True, slots=True)
class RatioVerdict:
    """What `n` rounds say of a ratio of timings; `low` and `high` bound it with 95 % confidence. `rounds_to_decide` as of a `Verdict`."""

    decision: Decision
    n: int
    ratio: float
    low: float
    high: float
    rounds_to_decide: int | None


def decide_ratio(numerator_ms: Floats, denominator_ms: Floats, at_most: float, seed: int = 0) -> RatioVerdict:
    """Kept (broken) where the one-sided 95 % bound of the ratio is at most (above) `at_most`."""
    ratio, medians = _ratios(numerator_ms, denominator_ms, seed)
    low, least, most, high = (float(bound) for bound in np.quantile(medians, (INTERVAL[0], ERROR_RATE, 1 - ERROR_RATE, INTERVAL[1])))
    decision: Decision = "kept" if most <= at_most else "broken" if least > at_most else "undecided"
    rounds, needed = len(numerator_ms), None
    if decision == "undecided" and ratio != at_most:
        z = NORMAL.inv_cdf(1 - ERROR_RATE)
        needed = max(rounds + 1, ceil(rounds * float(medians.var()) * (z / (at_most - ratio)) ** 2))
    return RatioVerdict(decision, rounds, ratio, low, high, needed)


def ratio_interval(numerator_ms: Floats, denominator_ms: Floats, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """The ratio of two paired timings, and its 95 % interval: the median over rounds of each round's ratio, bootstrapped over rounds."""
    ratio, medians = _ratios(numerator_ms, denominator_ms, seed, resamples)
    low, high = np.quantile(medians, INTERVAL)
    return ratio, float(low), float(high)


def sittings_interval(ratios: Floats) -> tuple[float, float, float]:
    """The mean of two sittings' ratios or more, and its 95 % interval, by Student's t over their logarithms."""
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    half = float(student.ppf(INTERVAL[1], len(logs) - 1)) * float(logs.std(ddof=1)) / sqrt(len(logs))
    low, middle, high = (float(np.exp(logs.mean() + step)) for step in (-half, 0.0, half))
    return middle, low, high


def _ratios(numerator_ms: Floats, denominator_ms: Floats, seed: int, resamples: int = 2000) -> tuple[float, Floats]:
    """The median ratio, and those of resampled rounds."""
    ratios = np.asarray(numerator_ms, dtype=np.float64) / np.asarray(denominator_ms, dtype=np.float64)
    index = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    return float(np.median(ratios)), np.median(ratios[index], axis=1)
