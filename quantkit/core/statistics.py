"""Paired results and a budget → kept, broken or undecided. The one decision that every judging command calls.

Items that are right or wrong (an accuracy) and everything else need different arithmetic:

- right or wrong, with margins: the drop is estimated from near ties (`near_ties`), and decided by Student's t; a part of the counted
  variance is added (`ALLOWANCE`), for what the estimate supposes.
- right or wrong, without: the restricted score statistic for a difference of paired proportions (Tango, Statistics in Medicine 17, 1998),
  whose tail is summed exactly over the trinomial of losses and gains, at the nuisance that is likeliest under "drop = budget"
  (as Storer and Kim do for unpaired ones, JASA 85, 1990). With a handful of flipped items the score's normal tail is wrong in up
  to 9 % of cases where 5 % are promised, a bootstrap in more; this stays below 5.2 % (n = 400, budgets of 0.25 to 5 points).
- everything else: the bias-corrected accelerated bootstrap over items (Efron, JASA 82, 1987).

Ratios of paired timings are decided in the same words (`core.ratios`), and what an undecided answer means for who must act is decided once
(`stands`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, hypot, inf, isfinite, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from quantkit.core.errors import MetricError
from quantkit.core.near_ties import BLOCKS, LEAST_ITEMS, Smoothed, smoothed_drop

Floats = NDArray[np.float64]
Score = Callable[[NDArray[np.int64]], float]
Decision = Literal["kept", "broken", "undecided"]
Number = float  # `Verdict.float` would hide the type from the fields behind it

ERROR_RATE = 0.05
INTERVAL = (0.025, 0.975)
NORMAL = NormalDist()
ALLOWANCE = 1 / 6  # of the counted variance: an estimate from margins is never believed as if there were more than six times the items
MOST_ITEMS = 10_000_000  # that anyone would be told to gather
SURE = 0.85  # how sure a search must be of a promise that the gate can prove
EVEN = 0.5  # odds of a promise that the items cannot tell
PRIOR_WIDTH = 0.5  # of the expected drop: plans of equal divergence differ that much


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `n` items say. `drop` is positive where quality is lost, whichever way the metric points.

    `low` and `high` bound the drop with 95 % confidence. `items_to_decide` is how many items in all would decide if the drop stayed
    what it is; None when decided, or when the drop equals the budget. Where `drop` is estimated from margins, `counted_drop` is the
    difference of the two scores; else None.
    """

    decision: Decision
    n: int
    float: Number
    quantized: Number
    drop: Number
    low: Number
    high: Number
    items_to_decide: int | None
    counted_drop: Number | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Chances of a drop at most (at least) this large if the true drop were the budget; an interval; the variance of one item.

    `estimate` is the drop where it is not the difference of the scores.
    """

    chance_kept: float
    chance_broken: float
    low: float
    high: float
    variance: float
    estimate: float | None = None


def decide(
    *,
    float_score: Score,
    quantized_score: Score,
    n: int,
    budget: float,
    higher_is_better: bool,
    per_item: tuple[Floats, Floats] | None = None,
    margins: tuple[Floats, Floats] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """The verdict over `n` items: kept (broken) where the one-sided 95 % bound of the drop is at most (above) `budget`.

    Scores take the positions of items, repeats included. `per_item`: the values (float, quantized) whose means these scores are.
    `margins`: of items that are right or wrong, how far (float, quantized) each answer is from the other one, above 0 where it is right.
    The interval is the paired percentile bootstrap over items; for right-or-wrong items it is widened to the score interval, since
    few flips make a bootstrap too short; with margins it is Student's. Raises MetricError for fewer than two items, and for a score that
    is not finite.
    """
    if n < 2:
        raise MetricError(f"{n} items", "at least two, to say anything of others", "pass more data")
    sign = 1.0 if higher_is_better else -1.0
    everything = np.arange(n)
    float_value, quantized_value = _finite(float_score(everything)), _finite(quantized_score(everything))
    items = per_item or tuple(_pseudo_values(score, n, resamples) for score in (float_score, quantized_score))
    step = _step(*items) if len(items[0]) == n else 0.0
    generator = np.random.default_rng(seed)
    right = (items[0] > step / 2, items[1] > step / 2)
    smoothed = smoothed_drop(*margins, *right) if margins and step and higher_is_better else None
    if smoothed is not None:
        evidence = _judge_smoothed(smoothed, float(np.count_nonzero(items[0] != items[1])), step, budget, n)
    elif step:
        evidence = _judge_flips(items[0], items[1], step, budget, sign, resamples, generator)
    else:
        differences = sign * (items[0] - items[1])

        def drop_of(index: NDArray[np.int64]) -> float:
            return float(differences[index].mean()) if per_item else sign * (_finite(float_score(index)) - _finite(quantized_score(index)))

        drops = np.array([drop_of(generator.integers(0, n, n)) for _ in range(resamples)])
        evidence = _judge_resampled(drops, drop_of(everything), differences, budget, n)
    return _verdict(evidence, n, float_value, quantized_value, sign * (float_value - quantized_value), budget)


def stands(decision: Decision, holds: bool, undecided: str) -> bool:
    """Whether to act as if kept: an undecided answer fails, passes, or leaves it to the point estimate, which `holds` or does not."""
    return decision == "kept" or (decision == "undecided" and {"point": holds, "fail": False, "pass": True}[undecided])


def _verdict(evidence: _Evidence, n: int, float_value: float, quantized_value: float, drop: float, budget: float) -> Verdict:
    counted_drop = None if evidence.estimate is None else drop
    drop = drop if evidence.estimate is None else evidence.estimate
    decision: Decision = "undecided"
    if evidence.chance_kept <= ERROR_RATE:
        decision = "kept"
    elif evidence.chance_broken <= ERROR_RATE:
        decision = "broken"
    needed = None
    if decision == "undecided" and drop != budget:
        z = NORMAL.inv_cdf(1 - ERROR_RATE)
        needed = max(n + 1, ceil(z**2 * evidence.variance / (budget - drop) ** 2))
        needed = needed if needed <= MOST_ITEMS else None  # the drop is the budget
    return Verdict(decision, n, float_value, quantized_value, drop, evidence.low, evidence.high, needed, counted_drop)


def _finite(value: float) -> float:
    if not isfinite(value):
        raise MetricError(
            f"the metric gave {value}",
            "a finite number on every resampling of the items",
            "let it answer for any items, those of one class only too",
        )
    return float(value)


def _pseudo_values(score: Score, n: int, most: int) -> Floats:
    """Jackknife pseudo-values K·s − (K−1)·s₍₋ₖ₎ over K = min(n, most) blocks: of a mean over items, the items' own values."""
    count = min(n, most)
    everything = np.arange(n)
    left_out = [score(np.delete(everything, block)) for block in np.array_split(everything, count)]
    return count * score(everything) - (count - 1) * np.array([_finite(value) for value in left_out])


def _step(one: Floats, other: Floats) -> float:
    """What a right item is worth, where every item is worth that or nothing; else 0."""
    values = np.concatenate([one, other])
    step = float(values.max())
    binary = step > 0 and bool(np.all(np.minimum(np.abs(values), np.abs(values - step)) < 1e-6 * step))
    return step if binary else 0.0


def _judge_smoothed(smoothed: Smoothed, flips: float, step: float, budget: float, n: int) -> _Evidence:
    """By Student's t. The counted variance takes one flip more than there were, so that no certainty comes from seeing none."""
    spread = step * sqrt(smoothed.variance + ALLOWANCE * (flips + 1) / n**2)
    drop, law = step * smoothed.drop, student(BLOCKS - 1)
    reach = float(law.ppf(INTERVAL[1])) * spread
    kept, broken = float(law.cdf((drop - budget) / spread)), float(law.sf((drop - budget) / spread))
    return _Evidence(kept, broken, drop - reach, drop + reach, n * spread**2, drop)


def _judge_flips(
    one: Floats, other: Floats, step: float, budget: float, sign: float, resamples: int, generator: np.random.Generator
) -> _Evidence:
    n = len(one)
    flips = np.rint(sign * (one - other) / step)
    losses, gains = int((flips > 0).sum()), int((flips < 0).sum())
    # The counts of a resample of items are multinomial, so they need no resampling of items.
    drawn = generator.multinomial(n, [losses / n, gains / n, 1 - (losses + gains) / n], size=resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, INTERVAL)
    score_low, score_high = (_score_bound(losses, gains, n, side) for side in (-1, 1))
    kept, broken = _tails(losses, gains, n, budget / step)
    variance = _restricted_variance(np.float64(losses), np.float64(gains), n, min(budget / step, 1.0))
    return _Evidence(kept, broken, step * min(float(low), score_low), step * max(float(high), score_high), step**2 * float(variance))


def _tails(losses: int, gains: int, n: int, delta: float) -> tuple[float, float]:
    """Chances of a score at most, and at least, the seen one, where the true drop is `delta` and gains are as likely as fits that best."""
    if delta >= 1:
        return 0.0, 1.0
    gain = float(_likeliest_gain(np.float64(losses), np.float64(gains), n, delta))
    lost, gained, chance = _trinomial(n, gain + delta, gain)
    scores = _score(lost, gained, n, delta)
    seen = float(_score(np.float64(losses), np.float64(gains), n, delta))
    return float(chance[scores <= seen + 1e-9].sum()), float(chance[scores >= seen - 1e-9].sum())


def _likeliest_gain(losses: Floats | np.float64, gains: Floats | np.float64, n: int, delta: float) -> Floats:
    """The chance of a gain that maximises the likelihood of the counts, where that of a loss is it + delta: root of a quadratic."""
    b = (losses + gains) * (1 - delta) - 2 * delta * (n - losses)
    return np.maximum(0.0, (b + np.sqrt(b**2 + 8 * n * gains * delta * (1 - delta))) / (4 * n))


def _restricted_variance(losses: Floats | np.float64, gains: Floats | np.float64, n: int, delta: float) -> Floats:
    """The variance of one item's loss minus gain, where the mean of that is `delta`."""
    return 2 * _likeliest_gain(losses, gains, n, delta) + delta * (1 - delta)


def _score(losses: Floats | np.float64, gains: Floats | np.float64, n: int, delta: float) -> Floats:
    """(losses − gains − nδ) / √(n · restricted variance); for δ < 0 by exchanging losses and gains. 0 where nothing can vary."""
    if delta < 0:
        return -_score(gains, losses, n, -delta)
    variance = n * _restricted_variance(losses, gains, n, delta)
    return np.where(variance > 0, (losses - gains - n * delta) / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)


def _score_bound(losses: int, gains: int, n: int, side: int) -> float:
    """The drop, as a share, at which the score test just turns: the low (side −1) or high (+1) end of its 95 % interval."""
    inside, outside = (losses - gains) / n, float(side)
    z = NORMAL.inv_cdf(INTERVAL[1])
    for _ in range(40):
        middle = (inside + outside) / 2
        if abs(float(_score(np.float64(losses), np.float64(gains), n, middle))) < z:
            inside = middle
        else:
            outside = middle
    return inside


def _trinomial(n: int, loss: float, gain: float) -> tuple[Floats, Floats, Floats]:
    """Counts of losses [a, 1] and of gains [1, b], and the chance of each pair [a, b]; what is left out is below 1e-12."""
    lost, gained = _likely_counts(n, loss)[:, None], _likely_counts(n, gain)[None, :]
    same = n - lost - gained
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    terms = [(lost, loss), (gained, gain), (np.maximum(same, 0), max(0.0, 1 - loss - gain))]
    log_chance = np.full(same.shape, log_factorial[n])
    for count, share in terms:
        log_chance = log_chance - log_factorial[count] + (count * np.log(share) if share > 0 else np.where(count > 0, -np.inf, 0.0))
    return lost.astype(np.float64), gained.astype(np.float64), np.where(same >= 0, np.exp(log_chance), 0.0)


def _likely_counts(n: int, share: float) -> NDArray[np.int64]:
    reach = 9 * sqrt(n * share * (1 - share)) + 12
    return np.arange(max(0, int(n * share - reach)), min(n, ceil(n * share + reach)) + 1)


def _judge_resampled(drops: Floats, drop: float, pseudo: Floats, budget: float, n: int) -> _Evidence:
    low, high = np.quantile(drops, INTERVAL)
    kept, broken = (_accelerated(drops, drop, pseudo, level) for level in (1 - ERROR_RATE, ERROR_RATE))
    # The bounds themselves decide here; 0 and 1 stand for the chances that a bootstrap does not give.
    return _Evidence(float(kept > budget), float(broken <= budget), float(low), float(high), n * float(drops.var()))


def _accelerated(drops: Floats, drop: float, pseudo: Floats, level: float) -> float:
    """The bias-corrected accelerated bound: the Φ(z₀ + z / (1 − a z)) quantile, z = z₀ + z_level, a = skew of the pseudo-values / 6√K."""
    below = (np.sum(drops < drop) + 0.5 * np.sum(drops == drop)) / len(drops)
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / len(drops), 1 - 1 / len(drops))))
    centred = pseudo - pseudo.mean()
    spread = float(np.sum(centred**2))
    acceleration = float(np.sum(centred**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    z = bias + NORMAL.inv_cdf(level)
    return float(np.quantile(drops, NORMAL.cdf(bias + z / max(1e-9, 1 - acceleration * z))))


def can_be_kept(values: Floats, n: int, budget: float, *, with_margins: bool = False) -> bool:
    """Whether `n` items could show that a drop is within `budget`, if not one of them changed.

    `values` are the float network's, item by item. Where they are right or wrong, no change among n items has the chance (1 − budget)ⁿ
    even if the true drop were the budget, and that must be at most 5 %; `with_margins`, what is allowed for the estimate's assumptions
    must be within the budget. Other values have no such limit.
    """
    step = _step(values, values)
    if step and with_margins and n >= LEAST_ITEMS:
        return _judge_smoothed(Smoothed(0.0, 0.0), 0.0, step, budget, n).chance_kept <= ERROR_RATE
    return not step or budget >= step or (1 - budget / step) ** n <= ERROR_RATE


def looked_at(look: Mapping[str, float], items: int) -> Verdict:
    """What was measured of a candidate, `look`, as a verdict without a decision; over `items`, where it does not say how many."""
    n = int(look.get("items", items))
    return Verdict("undecided", n, look["float"], look["quantized"], look["drop"], look["low"], look["high"], None)


def noise(verdict: Verdict) -> float:
    """The standard deviation of the drop, from its 95 % interval."""
    return (verdict.high - verdict.low) / (2 * NORMAL.inv_cdf(INTERVAL[1]))


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a plan will probably lose, from its own measured drop and from its divergence.

    On a few hundred items a drop of half a point is a handful of flips. The divergence of the outputs is far less noisy, and near the
    float network the drop grows in proportion to it; `rate` is that proportion, fitted on plans measured on the same items, and
    `error` its standard error: infinite where the rate is unknown, so that a drop is then taken as it was measured.
    """

    rate: float
    error: float

    @classmethod
    def fit(cls, drops: Floats, noises: Floats, divergences: Floats) -> Expectation:
        """Least squares through the origin, each plan's noise growing with its divergence; the rate is never below 0."""
        total = float(divergences.sum())
        return cls(max(float(drops.sum()) / total, 0.0), float(np.linalg.norm(noises)) / total) if total > 0 else UNKNOWN_RATE

    def chance_kept(self, verdict: Verdict, divergence: float, gate_items: int, budget: float) -> float:
        """The probability that the drop on a gate split of `gate_items` will be at most `budget`.

        A normal prior about rate · divergence, as wide as half of it and as the rate's error, meets the drop that was measured; what
        the gate will show scatters about the result as the measured drop did, scaled by the counts. Without this margin a search
        picks what was lucky. Outputs that are equal lose what they lose, and no chance is in it.
        """
        expected, spread = self._foreseen(verdict, divergence, gate_items)
        return NORMAL.cdf((budget - expected) / spread) if spread > 0 else float(expected <= budget)

    def attainable(self, verdict: Verdict, divergence: float, gate_items: int, budget: float) -> float:
        """The same of a plan that answers as differently, and loses nothing."""
        _, spread = self._foreseen(verdict, divergence, gate_items)
        return NORMAL.cdf(budget / spread) if spread > 0 else 1.0

    def _foreseen(self, verdict: Verdict, divergence: float, gate_items: int) -> tuple[float, float]:
        """What the gate will show, and how widely that scatters."""
        if divergence <= 0:
            return verdict.drop, 0.0
        prior, deviation = self.rate * divergence, noise(verdict)
        width = max(hypot(prior * PRIOR_WIDTH, self.error * divergence), 1e-9)
        share = 1 / (1 + (deviation / width) ** 2)
        return prior + share * (verdict.drop - prior), deviation * sqrt(share + verdict.n / gate_items)


def asked_for(sure: float, attainable: float) -> float:
    """How sure a search asks to be of a plan: `sure` where such a plan that loses nothing is as good as certain to be kept, even odds where
    that is as good as tossed for, and in proportion between: no search makes a gate of few items tell more.
    """
    return EVEN + (sure - EVEN) * max(2 * attainable - 1, 0.0)


UNKNOWN_RATE = Expectation(0.0, inf)
