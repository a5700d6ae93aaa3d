"""The one decision: wrong no oftener than it says, whichever way the metric points, on flips and on anything else."""

from __future__ import annotations

from collections import Counter
from math import comb, erf, sqrt

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from quantkit.core import statistics
from quantkit.core.errors import MetricError
from quantkit.core.ratios import DRIFT, decide_ratio, ratio_interval, sittings_interval
from quantkit.core.statistics import (
    UNKNOWN_RATE,
    Expectation,
    Verdict,
    asked_for,
    can_be_kept,
    decide,
    stands,
)

N = 400


def flips(losses: int, gains: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Values of 0 or 100: `losses` items right only in float, `gains` right only when quantized."""
    one, other = np.full(n, 100.0), np.full(n, 100.0)
    other[:losses] = 0
    one[losses : losses + gains] = 0
    return one, other


def judge(
    one: np.ndarray, other: np.ndarray, budget: float, *, direct: bool = False, higher_is_better: bool = True, **options: int
) -> Verdict:
    """The verdict on per-item values; `direct` hides from it that the scores are means of items."""
    return decide(
        float_score=lambda index: float(one[index].mean()),
        quantized_score=lambda index: float(other[index].mean()),
        n=len(one),
        budget=budget,
        higher_is_better=higher_is_better,
        per_item=None if direct else (one, other),
        **options,
    )


def outcomes(loss: float, gain: float, budget: float, gates: int = 2000) -> Counter[str]:
    """How `gates` simulated gates decide, where an item is lost (gained) with chance `loss` (`gain`)."""
    drawn = np.random.default_rng(7).multinomial(N, [loss, gain, 1 - loss - gain], size=gates)
    # Which items flip does not matter, so gates with equal counts are judged once.
    times = Counter((int(b), int(c)) for b, c, _ in drawn)
    seen = Counter[str]()
    for (losses, gains), count in times.items():
        seen[judge(*flips(losses, gains), budget, resamples=50).decision] += count
    return seen


@pytest.mark.parametrize("budget", [0.5, 0.68, 0.75, 1.0, 3.0], ids=lambda b: f"budget-{b}")
@pytest.mark.parametrize("gain", [0.0, 0.004, 0.02], ids=lambda g: f"gain-{g}")
def test_a_drop_of_just_the_budget_is_called_kept_or_broken_at_most_as_often_as_promised(budget: float, gain: float) -> None:
    seen = outcomes(budget / 100 + gain, gain, budget)

    assert seen["kept"] <= 0.06 * 2000
    assert seen["broken"] <= 0.06 * 2000


def test_a_gate_of_this_size_does_decide_what_is_clear() -> None:
    assert outcomes(0.002, 0.002, 3.0, 300)["kept"] > 290
    assert outcomes(0.06, 0.005, 1.0, 300)["broken"] > 290


def test_what_no_item_contradicts_is_still_undecided_while_items_are_too_few() -> None:
    few, many = judge(*flips(0, 0, n=100), 1.0), judge(*flips(0, 0, n=400), 1.0)

    assert (few.decision, many.decision) == ("undecided", "kept")
    assert few.drop == 0 and few.low < -1 and few.high > 1


def test_the_tail_is_the_trinomial_summed_term_by_term() -> None:
    n, losses, gains, delta = 30, 2, 1, 0.1

    def likeliest_gain() -> float:
        grid = np.linspace(0, (1 - delta) / 2, 400001)[1:-1]
        return float(
            grid[np.argmax(losses * np.log(grid + delta) + gains * np.log(grid) + (n - losses - gains) * np.log(1 - 2 * grid - delta))]
        )

    def score(b: int, c: int) -> float:
        q = float(statistics._likeliest_gain(np.float64(b), np.float64(c), n, delta))
        return (b - c - n * delta) / sqrt(n * (2 * q + delta * (1 - delta)))

    q = likeliest_gain()
    slow = sum(
        comb(n, b) * comb(n - b, c) * (q + delta) ** b * q**c * (1 - 2 * q - delta) ** (n - b - c)
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if score(b, c) <= score(losses, gains) + 1e-9
    )

    assert statistics._likeliest_gain(np.float64(losses), np.float64(gains), n, delta) == pytest.approx(q, abs=1e-5)
    assert statistics._tails(losses, gains, n, delta)[0] == pytest.approx(slow, abs=1e-6)


def test_with_many_flips_the_tail_is_the_normal_one() -> None:
    losses, gains, n, delta = 400, 300, 5000, 0.03
    z = (losses - gains - n * delta) / sqrt(losses + gains)

    assert statistics._tails(losses, gains, n, delta)[0] == pytest.approx(0.5 * (1 + erf(z / sqrt(2))), abs=0.01)


def test_exchanging_the_models_mirrors_the_verdict() -> None:
    one, other = flips(12, 5)
    there, back = judge(one, other, 1.0), judge(other, one, 1.0)

    assert there.drop == -back.drop == pytest.approx(1.75)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.3)


def test_a_lower_is_better_metric_loses_by_rising() -> None:
    one, other = np.full(N, 2.0), np.full(N, 2.0) + np.random.default_rng(0).random(N)

    assert judge(one, other, 0.2, higher_is_better=False).decision == "broken"
    assert judge(one, other, 0.2, higher_is_better=False).drop == pytest.approx(0.5, abs=0.05)
    assert judge(one, other, 0.2).decision == "kept"


def test_flips_are_recognised_behind_any_function_that_is_a_mean_of_items() -> None:
    assert judge(*flips(9, 3), 1.0) == judge(*flips(9, 3), 1.0, direct=True)


@pytest.mark.parametrize("direct", [False, True], ids=["per-item", "by-function"])
def test_the_bootstrap_holds_its_error_for_values_that_are_no_flips(direct: bool) -> None:
    generator = np.random.default_rng(3)
    gates, n, seen = (60, 60, Counter[str]()) if direct else (400, N, Counter[str]())
    for _ in range(gates):
        lost = generator.gamma(4.0, 0.25, n)  # mean 1
        seen[judge(lost + 5, np.full(n, 5.0), 1.0, direct=direct, resamples=200).decision] += 1

    allowed = 0.06 + 2 * sqrt(0.06 * 0.94 / gates)  # two standard errors of a simulation this short
    assert seen["kept"] <= allowed * gates and seen["broken"] <= allowed * gates
    assert seen["undecided"] >= 0.8 * gates


def test_a_metric_that_is_no_mean_is_resampled_in_pairs() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=300)
    good, worse = truth + 0.3 * generator.normal(size=300), truth + 0.6 * generator.normal(size=300)

    def correlation(values: np.ndarray):
        return lambda index: float(np.corrcoef(truth[index], values[index])[0, 1])

    call = {"float_score": correlation(good), "n": 300, "higher_is_better": True, "resamples": 300}
    verdict = decide(quantized_score=correlation(worse), budget=0.01, **call)
    twin = decide(quantized_score=correlation(good), budget=0.01, **call)

    assert verdict.decision == "broken" and verdict.low < verdict.drop < verdict.high
    assert twin.decision == "kept" and (twin.low, twin.high) == (0, 0)


def test_the_bootstrap_interval_is_the_percentiles_of_resampled_items() -> None:
    one, other = flips(60, 20)
    verdict = judge(one, other, 1.0)
    generator = np.random.default_rng(1)
    slow = [(one[index] - other[index]).mean() for index in (generator.integers(0, N, N) for _ in range(4000))]

    assert (verdict.low, verdict.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.5)


def test_more_blocks_than_items_are_never_asked_and_fewer_still_give_a_bound() -> None:
    one = np.random.default_rng(0).normal(5, 1, N)

    assert judge(one + 0.5, one + np.random.default_rng(1).normal(0, 0.1, N), 0.6, direct=True, resamples=100).decision == "kept"


@pytest.mark.parametrize("losses, gains", [(4, 2), (0, 0)], ids=["flips", "no-flip"])
def test_an_undecided_verdict_says_how_many_items_would_decide(losses: int, gains: int) -> None:
    n, budget = (N, 1.2) if losses else (100, 1.0)
    verdict = judge(*flips(losses, gains, n), budget)
    needed = verdict.items_to_decide
    assert verdict.decision == "undecided" and needed is not None and needed > n
    factor = -(-needed // n) + 1

    assert judge(*flips(losses * factor, gains * factor, n * factor), budget).decision == "kept"
    assert judge(*flips(4, 0), 1.0).items_to_decide is None


def test_a_budget_of_everything_is_kept_and_a_drop_of_everything_is_broken() -> None:
    assert judge(*flips(N, 0), 100.0).decision == "kept"
    assert judge(*flips(N, 0), 98.0).decision == "broken"
    assert judge(*flips(N, 0), 98.0).high == pytest.approx(100, abs=1e-6)


def test_a_budget_of_nothing_needs_gains_to_be_kept() -> None:
    assert judge(*flips(0, 0), 0.0).decision == "undecided"
    assert judge(*flips(0, 20), 0.0).decision == "kept"
    assert judge(*flips(20, 0), 0.0).decision == "broken"


def test_the_same_seed_gives_the_same_verdict_and_json_holds_all_of_it() -> None:
    one, other = flips(7, 3)

    assert judge(one, other, 1.0, seed=1) == judge(one, other, 1.0, seed=1)
    assert judge(one, other, 1.0).to_json() == {
        "decision": "undecided",
        "n": N,
        "float": 99.25,
        "quantized": 98.25,
        "drop": 1.0,
        "low": pytest.approx(-0.6, abs=0.3),
        "high": pytest.approx(2.7, abs=0.3),
        "items_to_decide": None,
        "counted_drop": None,
    }


def test_a_score_that_is_not_finite_and_a_single_item_are_refused() -> None:
    with pytest.raises(MetricError, match="gave nan"):
        judge(np.array([1.0, 2.0]), np.array([1.0, np.nan]), 1.0)
    with pytest.raises(MetricError, match="at least two"):
        judge(np.array([1.0]), np.array([1.0]), 1.0)


def test_a_ratio_of_timings_is_the_median_over_paired_rounds() -> None:
    generator = np.random.default_rng(0)
    slow_machine = generator.uniform(1, 10, 101)  # it swings tenfold, for both at once
    numerator = 0.5 * slow_machine * generator.normal(1, 0.02, 101)
    ratio, low, high = ratio_interval(numerator, slow_machine, seed=0)

    assert ratio == np.median(numerator / slow_machine)
    assert 0.48 < low < ratio < high < 0.52
    assert len({ratio_interval(numerator[:12], slow_machine[:12], seed, resamples=50) for seed in range(5)}) > 1


def test_a_ratio_over_sittings_is_as_unsure_as_they_differ_and_as_minutes_drift() -> None:
    """Each sitting has a shift of its own and all of one comparison share another, which no number of rounds takes away."""
    generator = np.random.default_rng(3)
    missed = 0
    for _ in range(400):
        ratios = sittings_of(0.5, 6, generator, drift=DRIFT)
        ratio, low, high = sittings_interval(ratios)
        middle = np.log(ratios).mean()
        theirs = middle - ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)[0]
        reach = np.sqrt(theirs**2 + (norm.ppf(0.975) * DRIFT) ** 2)
        assert ratio == pytest.approx(np.exp(middle))
        assert (low, high) == (pytest.approx(np.exp(middle - reach)), pytest.approx(np.exp(middle + reach)))
        missed += not low <= 0.5 <= high
    assert 4 <= missed <= 40  # 20 of 400 are expected


def seen(drop: float, low: float, high: float, n: int = 100) -> Verdict:
    return Verdict("undecided", n, 90.0, 90.0 - drop, drop, low, high, None)


def test_the_drop_is_expected_in_proportion_to_the_divergence_of_plans_already_seen() -> None:
    told = Expectation.fit(np.array([1.0, 3.0]), np.array([0.3, 0.4]), np.array([0.1, 0.1]))

    assert (told.rate, told.error) == (pytest.approx(20), pytest.approx(2.5))
    assert Expectation.fit(np.array([-1.0, 0.5]), np.array([1.0, 1.0]), np.array([0.1, 0.1])).rate == 0
    assert Expectation.fit(np.array([]), np.array([]), np.array([])) == UNKNOWN_RATE


@pytest.mark.parametrize("rate", [0.0, 30.0], ids=["others lost nothing", "others lost"])
def test_a_lucky_drop_is_not_believed_and_a_bad_one_is_not_forgotten(rate: float) -> None:
    """0.01 nats at 30 points a nat are 0.3 points; one that gained half a point is still expected to lose."""
    told = Expectation(rate, 10.0)

    assert Expectation(300.0, 10.0).chance_kept(seen(-0.5, -2.5, 1.5), 0.01, 10_000, 0.5) < 0.5
    assert told.chance_kept(seen(10.0, 9.0, 11.0), 0.5, 10_000, 1.0) < 0.5
    assert UNKNOWN_RATE.chance_kept(seen(1.1, -1.0, 3.0), 0.5, 10_000, 1.0) < 0.5
    assert UNKNOWN_RATE.chance_kept(seen(0.9, -1.0, 3.0), 0.5, 10_000, 1.0) > 0.5


def test_what_is_asked_for_follows_what_the_gate_can_tell() -> None:
    """436 gate items scatter by 0.7 points here: a plan that loses nothing is kept with 76 %; of 43,600 it is as good as certain."""
    told, budget = Expectation(1e-3, 1e-3), 0.5
    look = seen(0.0, -0.7 * 1.96, 0.7 * 1.96, n=436), 0.007

    assert told.attainable(*look, 436, budget) == pytest.approx(0.762, abs=0.002)
    assert told.attainable(*look, 436, budget) == pytest.approx(told.chance_kept(*look, 436, budget), abs=0.001)
    assert told.attainable(*look, 43_600, budget) > 0.999
    assert told.attainable(seen(9.0, 8.0, 10.0), 0.0, 20, budget) == 1
    assert asked_for(0.85, told.attainable(*look, 436, budget)) == pytest.approx(0.5 + 0.35 * (2 * 0.762 - 1), abs=0.002)
    assert (asked_for(0.85, 1.0), asked_for(0.85, 0.5), asked_for(0.85, 0.3), asked_for(0.5, 0.9)) == (0.85, 0.5, 0.5, 0.5)


def test_a_drop_at_the_budget_is_decided_by_no_number_of_items() -> None:
    """Else some would be told to gather a milliard."""
    random = np.random.default_rng(0)
    one, other = (random.standard_normal(200) for _ in range(2))
    drop = float(one.mean() - other.mean())
    scores = (lambda index: float(one[index].mean())), (lambda index: float(other[index].mean()))
    near, far = (
        decide(float_score=scores[0], quantized_score=scores[1], n=200, budget=drop + more, higher_is_better=True, per_item=(one, other))
        for more in (1e-5, 0.05)
    )
    assert (near.decision, near.items_to_decide) == ("undecided", None)
    assert far.decision == "undecided" and 200 < (far.items_to_decide or 0) < 1e6


def test_equal_outputs_keep_any_promise_however_few_the_items() -> None:
    assert Expectation(30.0, 10.0).chance_kept(seen(0.0, -4.0, 4.0, n=20), 0.0, 20, 0.1) == 1
    assert Expectation(30.0, 10.0).chance_kept(seen(0.2, -4.0, 4.0, n=20), 0.0, 20, 0.1) == 0


@pytest.mark.parametrize(("share", "budget"), [(0.9, 0.5), (0.3, 0.5), (0.9, 2.0), (0.9, 0.0)])
def test_whether_a_gate_can_prove_a_budget_is_what_the_verdict_says_of_equal_answers(share: float, budget: float) -> None:
    """On the fewest items that can, equal answers are decided as kept; on one fewer they are undecided."""

    def equal_answers(n: int) -> str:
        values = 100.0 * (np.arange(n) < share * n)
        score = lambda index: float(values[index].mean())  # noqa: E731
        verdict = decide(
            float_score=score, quantized_score=score, n=n, budget=budget, higher_is_better=True, per_item=(values, values), resamples=50
        )
        assert can_be_kept(values, n, budget) == (verdict.decision == "kept")
        return verdict.decision

    least = next((n for n in range(2, 1200) if can_be_kept(np.full(n, 100.0), n, budget)), None)
    assert least == {0.5: 598, 2.0: 149, 0.0: None}[budget]
    if least is None:
        assert equal_answers(900) == "undecided"
    else:
        assert (equal_answers(least - 1), equal_answers(least)) == ("undecided", "kept")


def test_values_that_are_not_right_or_wrong_can_always_be_proven() -> None:
    assert can_be_kept(np.linspace(0, 1, 9), 9, 0.001)


def test_with_margins_fewer_items_can_prove_a_budget() -> None:
    """As the verdict on equal answers with equal margins says."""
    least = next(n for n in range(2, 1200) if can_be_kept(np.full(n, 100.0), n, 0.5, with_margins=True))
    values = {n: np.full(n, 100.0) for n in (least - 1, least)}
    score = lambda index: 100.0  # noqa: E731
    decisions = [
        decide(
            float_score=score, quantized_score=score, n=n, budget=0.5, higher_is_better=True, per_item=(equal, equal),
            margins=(equal, equal), resamples=50,
        ).decision
        for n, equal in values.items()
    ]  # fmt: skip

    assert least == 142
    assert decisions == ["undecided", "kept"]


@pytest.mark.parametrize("confidence", [0.6, 0.85])
def test_plans_that_are_said_to_be_kept_are_kept_as_often_as_said(confidence: float) -> None:
    """Plans whose true drops follow the prior, seen on a search split, and what a gate split of another size then shows."""
    generator = np.random.default_rng(0)
    told, kept = Expectation(20.0, 5.0), []
    for _ in range(20_000):
        divergence = generator.uniform(0.01, 0.1)
        true = generator.normal(20 * divergence, np.hypot(10 * divergence, 5 * divergence))
        measured = generator.normal(true, 0.8)
        if told.chance_kept(seen(measured, measured - 1.96 * 0.8, measured + 1.96 * 0.8, n=100), divergence, 400, 1.5) >= confidence:
            kept.append(generator.normal(true, 0.8 * 0.5) <= 1.5)

    assert confidence <= np.mean(kept) < 1


def sittings_of(ratio: float, count: int, generator: np.random.Generator, spread: float = 0.02, drift: float = 0.0) -> np.ndarray:
    """Ratios of sittings about that one; all of them are as far off as the minute drifts."""
    return ratio * np.exp(drift * generator.standard_normal() + spread * generator.standard_normal(count))


def test_a_ratio_of_just_the_limit_is_called_kept_or_broken_as_rarely_as_promised() -> None:
    generator = np.random.default_rng(5)
    decisions = Counter(decide_ratio(sittings_of(0.6, 6, generator, drift=DRIFT), 0.6).decision for _ in range(2000))

    for word in ("kept", "broken"):  # 5 %, and three standard errors of 2,000 draws
        assert 0.035 * 2000 <= decisions[word] <= 0.065 * 2000


@pytest.mark.parametrize(("ratio", "decision"), [(0.5, "kept"), (0.7, "broken"), (0.601, "undecided")])
def test_a_ratio_is_decided_by_its_one_sided_bounds(ratio: float, decision: str) -> None:
    ratios = sittings_of(ratio, 6, np.random.default_rng(1))
    found = decide_ratio(ratios, 0.6)

    assert found.decision == decision and found.n == 6 and found.low < found.ratio < found.high
    assert (found.ratio, found.low, found.high) == sittings_interval(ratios)


def test_so_many_sittings_as_are_said_to_decide_do() -> None:
    ratios = sittings_of(0.57, 6, np.random.default_rng(2), spread=0.06)
    found = decide_ratio(ratios, 0.6)
    assert found.decision == "undecided" and found.sittings_to_decide is not None
    assert decide_ratio(np.tile(ratios, -(-found.sittings_to_decide // 6)), 0.6).decision != "undecided"


def test_what_minutes_drift_no_number_of_sittings_decides() -> None:
    near = 0.6 * np.exp(-0.5 * DRIFT)
    for ratios in (np.ones(9) * near, sittings_of(near, 600, np.random.default_rng(2), spread=0.001)):
        found = decide_ratio(ratios, 0.6)
        assert found.decision == "undecided" and found.sittings_to_decide is None


@pytest.mark.parametrize(
    ("decision", "holds", "answers"),
    [
        ("kept", True, (True, True, True)),
        ("kept", False, (True, True, True)),
        ("broken", True, (False, False, False)),
        ("undecided", True, (True, False, True)),
        ("undecided", False, (False, False, True)),
    ],
)
def test_only_an_undecided_answer_is_left_to_whoever_asks(decision: str, holds: bool, answers: tuple[bool, ...]) -> None:
    assert tuple(stands(decision, holds, undecided) for undecided in ("point", "fail", "pass")) == answers  # type: ignore[arg-type]
