"""The drop from margins: against a version written out, against drops that are known, and what it must not believe."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.core import near_ties
from quantkit.core.metrics import METRICS
from quantkit.core.near_ties import neighbours, smoothed_drop
from quantkit.core.statistics import ALLOWANCE, decide


def drawn(n: int, seed: int, *, shift: float = 0.0, spread: float = 0.3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Margins before and after: right and wrong equally likely at 0 and e^2m : 1 at m; they move by a normal amount, `shift` on average."""
    generator = np.random.default_rng(seed)
    distance = generator.exponential(1.5, n)
    right = generator.random(n) < 1 / (1 + np.exp(-2 * distance))
    before = np.where(right, distance, -distance)
    return before, before + generator.normal(shift, spread, n)


def true_drop(shift: float, spread: float = 0.3) -> float:
    """The expected drop of `drawn`, by sums over a fine grid of distances."""
    distance = np.linspace(0, 40, 400_001)[1:]
    weight = np.exp(-distance / 1.5) / 1.5 * (distance[1] - distance[0])
    right = 1 / (1 + np.exp(-2 * distance))
    below = lambda x: 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))  # noqa: E731
    near = distance < 6
    loss, gain = below((-distance[near] - shift) / spread), below((shift - distance[near]) / spread)
    return float(np.sum(weight[near] * (right[near] * loss - (1 - right[near]) * gain)))


def written_out(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Item by item, each with its own search of its neighbours, and the slope by trying many."""
    n, moves = len(before), after - before
    order = sorted(range(n), key=lambda item: before[item])
    count = neighbours(n)

    def near(margin: float) -> list[float]:
        first = sum(before[item] < margin for item in order) - count // 2
        first = max(0, min(first, n - count))
        return [moves[item] for item in order[first : first + count]]

    chances = []
    for margin in before:
        distance = abs(margin)
        loss = sum(move <= -distance for move in near(distance)) / count
        gain = sum(move > distance for move in near(-distance)) / count
        chances.append((distance, margin > 0, loss, gain))

    def likelihood(slope: float) -> float:
        total = 0.0
        for distance, right, loss, gain in chances:
            sure = slope * distance if right else -slope * distance
            total -= (loss + gain) * math.log1p(math.exp(-sure))
        return total

    slope = max(np.linspace(0, 10, 2001), key=likelihood)
    total = 0.0
    for distance, _, loss, gain in chances:
        right = 1 / (1 + math.exp(-slope * distance))
        total += right * loss - (1 - right) * gain
    return total / n


@pytest.mark.parametrize("seed", range(4))
def test_the_estimate_is_that_of_a_version_written_out(seed: int) -> None:
    before, after = drawn(90, seed)
    found = smoothed_drop(before, after)

    assert found is not None
    assert found.drop == pytest.approx(written_out(before, after), abs=2e-4)  # the tried slopes are 0.005 apart


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 0.3), (-0.1, 0.3), (0.1, 0.2), (-0.03, 0.2)])
def test_it_is_right_on_average_and_less_noisy_than_counting(shift: float, spread: float) -> None:
    """Bounds: of the mean over 200 draws, four of its standard errors and a tenth of the counted deviation of one draw."""
    truth, estimates, counts, variances = true_drop(shift, spread), [], [], []
    for seed in range(200):
        before, after = drawn(400, seed, shift=shift, spread=spread)
        counts.append(float((before > 0).mean() - (after > 0).mean()))
        found = smoothed_drop(before, after)
        if found is not None:  # else it is in doubt, as a few draws must be
            estimates.append(found.drop), variances.append(found.variance)

    assert len(estimates) >= 190
    noise = float(np.std(counts))
    assert np.mean(counts) == pytest.approx(truth, abs=4 * noise / math.sqrt(200))
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * float(np.std(estimates)) / math.sqrt(200) + 0.1 * noise)
    assert np.var(estimates) < 0.6 * np.var(counts)
    assert np.mean(variances) == pytest.approx(np.var(estimates), rel=0.35)


@pytest.mark.parametrize("shift", [-0.2, -0.05, 0.0])
def test_a_drop_that_is_the_budget_is_called_kept_or_broken_in_at_most_six_of_a_hundred(shift: float) -> None:
    """300 draws: where the rate is 0.05, more than 0.085 are seen with a chance below 0.5 %."""
    budget = 100 * true_drop(shift)
    seen = [verdict_of(*drawn(400, 1000 + seed, shift=shift), budget).decision for seed in range(300)]

    assert seen.count("kept") <= 0.085 * 300
    assert seen.count("broken") <= 0.085 * 300


def verdict_of(before: NDArray[np.float64], after: NDArray[np.float64], budget: float, *, with_margins: bool = True):
    """As `judge` asks for it: right answers are worth 100 points."""
    one, other = 100.0 * (before > 0), 100.0 * (after > 0)
    return decide(
        float_score=lambda index: float(one[index].mean()), quantized_score=lambda index: float(other[index].mean()), n=len(one),
        budget=budget, higher_is_better=True, per_item=(one, other), margins=(before, after) if with_margins else None, resamples=50,
    )  # fmt: skip


def test_the_verdict_tells_the_estimate_and_the_count() -> None:
    before, after = drawn(400, 3)
    found, counted = (verdict_of(before, after, 1.0, with_margins=way) for way in (True, False))
    smoothed = smoothed_drop(before, after)

    assert smoothed is not None and found.drop == pytest.approx(100 * smoothed.drop)
    assert found.counted_drop == pytest.approx(found.float - found.quantized) == pytest.approx(counted.drop)
    assert counted.counted_drop is None
    assert (found.drop - found.low) == pytest.approx(found.high - found.drop)
    assert found.high - found.low < counted.high - counted.low


def test_fewer_items_decide() -> None:
    """Of 100 draws of 400 items whose drop is far below a budget of a point, many more are decided."""
    draws = [drawn(400, seed, shift=0.05, spread=0.2) for seed in range(100)]
    kept = [sum(verdict_of(*draw, 1.0, with_margins=way).decision == "kept" for draw in draws) for way in (False, True)]

    assert kept[1] > 1.5 * kept[0] and kept[1] >= 75


def test_seeing_no_change_is_no_certainty() -> None:
    """The counted variance has one change more than there was: equal answers prove 1.73 · √ALLOWANCE / n at the least."""
    before = drawn(100, 0)[0]
    least = 100 * 1.7291 * math.sqrt(ALLOWANCE) / 100  # Student's 95 % of 19 degrees

    assert verdict_of(before, before, 1.01 * least).decision == "kept"
    assert verdict_of(before, before, 0.99 * least).decision == "undecided"


def test_more_neighbours_than_a_quarter_of_the_items_are_never_asked() -> None:
    counts = [neighbours(n) for n in (4, 40, 100, 400, 1000, 5000, 10**6)]

    assert counts == sorted(counts) and all(count <= max(1, n // 4) for count, n in zip(counts, (4, 40, 100, 400), strict=False))
    assert counts[-1] == 300


def test_what_pushes_answers_away_from_what_is_right_is_seen() -> None:
    """Every right answer near a tie is lost and no wrong one is won: half the changes of a fair coin would call that no drop."""
    before, _ = drawn(1000, 5)
    found = smoothed_drop(before, before - 0.3)

    assert found is not None
    assert found.drop == pytest.approx(float(((before > 0) & (before <= 0.3)).mean()), abs=3 * math.sqrt(found.variance))


def test_few_items_and_numbers_that_are_none_are_left_to_counting() -> None:
    before, after = drawn(200, 0)
    broken = after.copy()
    broken[7] = np.nan

    assert smoothed_drop(before[:39], after[:39]) is None
    assert smoothed_drop(before, broken) is None


def test_a_count_that_margins_do_not_explain_is_believed() -> None:
    """All near ties are wrong, which no scores of classes are: the chance of a half at 0 is then not believed."""
    before, after = drawn(1000, 1)
    wrong = -np.abs(before)

    assert smoothed_drop(before, after) is not None
    assert smoothed_drop(wrong, wrong + (after - before)) is None


def test_ties_lie_on_the_side_of_their_answers() -> None:
    """Quantized scores tie often; which class then answers is decided by its place, and so by luck."""
    before, after = drawn(1000, 2)
    coarse = np.round(after / 0.4) * 0.4
    tied = coarse == 0
    is_right = np.where(tied, np.random.default_rng(0).random(1000) < 0.5, coarse > 0)
    found = smoothed_drop(before, coarse, before > 0, is_right)

    assert tied.sum() > 50
    assert found is not None
    counted = float((before > 0).mean() - is_right.mean())
    assert abs(found.drop - counted) < near_ties.DOUBT * math.sqrt(found.variance + 0.05 / 1000)
    assert smoothed_drop(before, coarse) is None or smoothed_drop(before, coarse) != found


def test_the_verdict_decides_ties_by_the_answers() -> None:
    before, after = drawn(1000, 2)
    coarse = np.round(after / 0.4) * 0.4
    is_right = np.where(coarse == 0, np.arange(1000) % 2 > 0, coarse > 0)
    one, other = 100.0 * (before > 0), 100.0 * is_right
    verdict = decide(
        float_score=lambda index: float(one[index].mean()), quantized_score=lambda index: float(other[index].mean()), n=1000,
        budget=1.0, higher_is_better=True, per_item=(one, other), margins=(before, coarse), resamples=50,
    )  # fmt: skip
    smoothed = smoothed_drop(before, coarse, before > 0, is_right)

    assert smoothed is not None and verdict.drop == pytest.approx(100 * smoothed.drop)


@pytest.mark.parametrize(("name", "place"), [("top1", 1), ("top5", 5)])
def test_margins_are_above_zero_where_the_answer_is_right(name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(place)
    scores, labels = generator.normal(size=(200, 9)), generator.integers(0, 9, 200)
    metric = METRICS[name]
    monkeypatch.setattr("quantkit.core.metrics.ROWS", 64)
    assert metric.margins is not None and metric.per_item is not None
    margins = metric.margins((scores,), labels)

    assert margins is not None
    assert np.array_equal(margins > 0, metric.per_item((scores,), labels) > 0)
    for item in range(5):
        others = sorted((score for label, score in enumerate(scores[item]) if label != labels[item]), reverse=True)
        assert margins[item] == pytest.approx(scores[item, labels[item]] - others[place - 1])


def test_what_is_no_row_of_scores_with_one_label_has_no_margins() -> None:
    margins = METRICS["top1"].margins
    assert margins is not None
    scores = np.zeros((6, 4, 3))

    assert margins((scores,), np.zeros((6, 4), int)) is None
    assert margins((scores[:, 0],), np.zeros(6)) is None
    assert margins((scores[:, 0],), np.full(6, 3)) is None
    assert margins((scores[:, 0],), np.full(6, -1)) is None
    assert margins((scores[:, 0, :1],), np.zeros(6, int)) is None
    assert METRICS["agreement"].margins is None
