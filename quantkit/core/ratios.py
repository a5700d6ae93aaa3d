"""Ratios of paired timings, how sure rounds or sittings are of them, and whether they keep a bound, in the words of `core.statistics`."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, hypot, log, sqrt

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from quantkit.core.statistics import ERROR_RATE, INTERVAL, Decision, Floats

# What no sitting of seconds sees: the standard deviation of a ratio's logarithm between comparisons that are made minutes apart, on a
# virtual machine (`tools/bench_latency.py --parts repeatability`).
DRIFT = 0.02


@dataclass(frozen=True, slots=True)
class RatioVerdict:
    """What `n` sittings say of a ratio of timings, with its 95 % bounds; `sittings_to_decide` as `items_to_decide` of a `Verdict`."""

    decision: Decision
    n: int
    ratio: float
    low: float
    high: float
    sittings_to_decide: int | None


def decide_ratio(ratios: Floats, at_most: float) -> RatioVerdict:
    """Kept (broken) where the one-sided 95 % bound of the ratio, over two sittings' or more, is at most (above) `at_most`.

    No number of sittings decides about a ratio that is as near to `at_most` as DRIFT reaches; `sittings_to_decide` is None then.
    """
    ratio, low, high = sittings_interval(ratios)
    level, count = 1 - ERROR_RATE, len(ratios)
    reach = exp(_half(ratios, level))
    decision: Decision = "kept" if ratio * reach <= at_most else "broken" if ratio / reach > at_most else "undecided"
    room = log(at_most / ratio) ** 2 - _drift(level) ** 2
    needed = max(count + 1, ceil(count * _spread(ratios, level) ** 2 / room)) if decision == "undecided" and room > 0 else None
    return RatioVerdict(decision, count, ratio, low, high, needed)


def ratio_interval(numerator_ms: Floats, denominator_ms: Floats, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """The ratio of two paired timings, and its 95 % interval: the median over rounds of each round's ratio, bootstrapped over rounds."""
    ratio, medians = _ratios(numerator_ms, denominator_ms, seed, resamples)
    low, high = np.quantile(medians, INTERVAL)
    return ratio, float(low), float(high)


def sittings_interval(ratios: Floats) -> tuple[float, float, float]:
    """The mean of two sittings' ratios or more, and where it will be found again, 95 % sure: by Student's t over their logarithms, and
    by DRIFT, which is independent of it.
    """
    middle, reach = exp(float(np.log(ratios).mean())), exp(_half(ratios, INTERVAL[1]))
    return middle, middle / reach, middle * reach


def _half(ratios: Floats, level: float) -> float:
    """How far the bound at `level` is from the mean, in logarithms."""
    return hypot(_spread(ratios, level), _drift(level))


def _spread(ratios: Floats, level: float) -> float:
    """The same, by how sittings differ alone."""
    return float(student.ppf(level, len(ratios) - 1)) * float(np.log(ratios).std(ddof=1)) / sqrt(len(ratios))


def _drift(level: float) -> float:
    """The same, by DRIFT alone."""
    return float(norm.ppf(level)) * DRIFT


def _ratios(numerator_ms: Floats, denominator_ms: Floats, seed: int, resamples: int = 2000) -> tuple[float, Floats]:
    """The median ratio, and those of resampled rounds."""
    ratios = np.asarray(numerator_ms, dtype=np.float64) / np.asarray(denominator_ms, dtype=np.float64)
    index = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    return float(np.median(ratios)), np.median(ratios[index], axis=1)
