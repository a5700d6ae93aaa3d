"""Metrics against loops, budgets as written, and every way of naming a metric."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from quantkit.core import metric
from quantkit.core.errors import MetricError
from quantkit.core.metric import Budget, Metric, check_budget, parse_budget
from quantkit.core.metrics import METRICS, resolve_metric

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(size=(60, 10)).astype(np.float32)
LABELS = GENERATOR.integers(0, 10, 60)
OTHERS = (SCORES + GENERATOR.normal(size=SCORES.shape)).astype(np.float32)
INDEX = GENERATOR.integers(0, 60, 45)


def top_by_loop(count: int) -> float:
    right = 0
    for i in INDEX:
        best = sorted(range(10), key=lambda c: (-SCORES[i, c], c))[:count]
        right += int(LABELS[i]) in best
    return 100 * right / len(INDEX)


def test_top1_and_top5_count_items_whose_label_is_among_the_best() -> None:
    assert METRICS["top1"].score((SCORES,), LABELS, INDEX) == pytest.approx(top_by_loop(1))
    assert METRICS["top5"].score((SCORES,), LABELS, INDEX) == pytest.approx(top_by_loop(5))


def test_agreement_counts_items_with_the_float_models_answer() -> None:
    same = sum(int(np.argmax(SCORES[i]) == np.argmax(OTHERS[i])) for i in INDEX)

    assert METRICS["agreement"].score((SCORES,), (OTHERS,), INDEX) == pytest.approx(100 * same / len(INDEX))
    assert METRICS["agreement"].reference == METRICS["mse"].reference == METRICS["psnr"].reference == "float"


def test_mse_and_psnr_are_their_formulas_over_all_outputs() -> None:
    more = np.zeros((60, 3, 2))
    error = np.mean([np.r_[(SCORES[i] - OTHERS[i]) ** 2, np.full(6, 0.25)].mean() for i in INDEX])
    outputs, reference = (SCORES, more + 0.5), (OTHERS, more)
    peak = max(OTHERS.max(), 0) - min(OTHERS.min(), 0)

    assert METRICS["mse"].score(outputs, reference, INDEX) == pytest.approx(error, rel=1e-5)
    assert METRICS["psnr"].score(outputs, reference, INDEX) == pytest.approx(10 * math.log10(peak**2 / error), rel=1e-5)
    assert not METRICS["mse"].higher_is_better


def test_spearman_is_the_correlation_of_ranks_with_ties_shared() -> None:
    scores = np.array([0.3, -1.0, 2.0, 2.0, 0.0, 0.9])[:, None].astype(np.float32)
    labels, index = np.array([1.5, 0.0, 4.0, 5.0, 1.5, 1.0]), np.array([0, 1, 2, 3, 5])
    ranks, wanted = np.array([2, 1, 4.5, 4.5, 3.0]), np.array([3, 1, 4, 5, 2.0])
    covariance = ((ranks - 3) * (wanted - 3)).sum() / np.sqrt(((ranks - 3) ** 2).sum() * ((wanted - 3) ** 2).sum())

    assert METRICS["spearman"].score((scores,), labels, index) == pytest.approx(100 * covariance)
    assert METRICS["spearman"].score((scores[:, 0],), labels, index) == pytest.approx(100 * covariance)
    assert METRICS["spearman"].score((np.ones((6, 1)),), labels) == 0.0
    with pytest.raises(MetricError, match="one number for each item"):
        METRICS["spearman"].score((np.ones((6, 2)),), labels)


def test_perplexity_is_over_the_positions_that_have_a_label() -> None:
    random = np.random.default_rng(3)
    scores, labels = random.normal(size=(5, 4, 7)).astype(np.float32), random.integers(0, 7, (5, 4))
    labels[1, 2:], labels[3] = -100, -100
    index = np.array([0, 1, 3, 4, 4])
    losses = []
    for item in index:
        for place in range(4):
            if labels[item, place] >= 0:
                powers = np.exp(scores[item, place].astype(np.float64))
                losses.append(-math.log(powers[labels[item, place]] / powers.sum()))

    assert METRICS["perplexity"].score((scores,), labels, index) == pytest.approx(math.exp(np.mean(losses)))
    assert not METRICS["perplexity"].higher_is_better
    for wrong, says in ((labels[:, :3], "next token of each position"), (np.full((5, 4), -100), "no position with a label")):
        with pytest.raises(MetricError, match=says):
            METRICS["perplexity"].score((scores,), wrong)


def test_equal_outputs_have_a_finite_psnr() -> None:
    assert METRICS["psnr"].score((SCORES,), (SCORES,)) == 100.0


@pytest.mark.parametrize("name", ["top1", "top5", "agreement", "mse"])
def test_per_item_values_have_the_score_as_their_mean(name: str) -> None:
    metric, labels = METRICS[name], LABELS if METRICS[name].reference == "labels" else (OTHERS,)
    assert metric.per_item is not None

    assert metric.per_item((SCORES,), labels)[INDEX].mean() == pytest.approx(metric.score((SCORES,), labels, INDEX))


def test_token_labels_count_by_item() -> None:
    scores = GENERATOR.normal(size=(4, 7, 5))
    labels = scores.argmax(-1)
    labels[0, :] = (labels[0, :] + 1) % 5

    assert METRICS["top1"].score((scores,), labels) == pytest.approx(75)


@pytest.mark.parametrize("curvature", ["softmax", "identity"])
def test_divergence_is_the_formula_however_many_items_are_compared_at_once(
    curvature: Literal["softmax", "identity"], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    one, other = (generator.standard_normal((7, 3, 5)).astype(np.float32) for _ in range(2))
    p, q = (np.exp(scores.astype(np.float64)) for scores in (one, other))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    wanted = {"softmax": (p * np.log(p / q)).sum(axis=-1).mean(), "identity": 0.5 * ((one - other) ** 2).sum(axis=(1, 2)).mean()}
    found = []
    for numbers in (1, 40, 1 << 22):
        monkeypatch.setattr(metric, "NUMBERS_AT_ONCE", numbers)
        found.append(metric.divergence((one,), (other,), curvature))
    assert found[0] == found[1] == found[2] == pytest.approx(wanted[curvature], rel=1e-6)


def test_values_that_are_nan_are_no_small_error() -> None:
    broken = np.full((4, 6), np.nan, np.float32)
    with pytest.raises(MetricError, match="nan"):
        METRICS["mse"].score((broken,), (np.zeros((4, 6), np.float32),))


def test_a_network_that_gives_nan_is_never_right() -> None:
    broken = np.full((4, 6), np.nan)

    assert METRICS["top1"].score((broken,), np.zeros(4, dtype=int)) == 0
    assert METRICS["top5"].score((broken,), np.zeros(4, dtype=int)) == 0
    assert METRICS["agreement"].score((broken,), (np.zeros((4, 6)),)) == 0


def test_equal_scores_are_ranked_by_class() -> None:
    assert METRICS["top5"].score((np.zeros((2, 8)),), np.array([4, 5])) == 50


@pytest.mark.parametrize(
    "max_drop, keep, wanted",
    [
        (0.5, None, Budget(0.5, "absolute")),
        ("0.5", None, Budget(0.5, "absolute")),
        (0, None, Budget(0.0, "absolute")),
        ("0.5%", None, Budget(0.5, "relative")),
        (None, "99.9%", Budget(0.1, "relative")),
        (None, "100%", Budget(0.0, "relative")),
    ],
    ids=str,
)
def test_a_budget_is_read_as_written(max_drop: float | str | None, keep: str | None, wanted: Budget) -> None:
    assert parse_budget(max_drop, keep) == wanted


@pytest.mark.parametrize("bad", [-0.5, "-1", "-1%", float("nan"), "nan", "inf", "half", "", "%", True, "1e999999999"], ids=repr)
def test_a_budget_that_is_no_amount_is_refused(bad: float | str) -> None:
    with pytest.raises(MetricError, match="--max-drop"):
        parse_budget(bad)


@pytest.mark.parametrize("bad", ["99.9", "0%", "-3%", "101%", "most%", "nan%"], ids=repr)
def test_a_share_to_keep_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(MetricError, match="--keep"):
        parse_budget(keep=bad)


def test_neither_or_both_budgets_are_refused() -> None:
    with pytest.raises(MetricError, match="no budget"):
        parse_budget()
    with pytest.raises(MetricError, match="both"):
        parse_budget(0.5, "99%")


def test_a_relative_budget_follows_the_float_score_in_either_direction() -> None:
    assert parse_budget(keep="99%").points(80.0) == pytest.approx(0.8)
    assert parse_budget("1%").points(-80.0) == pytest.approx(0.8)
    assert parse_budget("1").points(80.0) == 1.0


def test_a_split_in_which_one_item_exceeds_the_budget_is_refused_with_the_count_it_needs() -> None:
    with pytest.raises(MetricError, match="at least 200 items"):
        check_budget(0.5, 199)
    check_budget(0.5, 200)
    check_budget(0.0, 10)
    check_budget(0.5, 10, unit="dB")


def test_a_misspelt_metric_names_the_nearest() -> None:
    with pytest.raises(MetricError, match="did you mean 'top1'"):
        resolve_metric("top-1")


@pytest.fixture
def user_module(tmp_path, monkeypatch) -> str:
    source = [
        "def half(outputs, labels, index):",
        "    return float(outputs[0][index].sum()) / 2",
        "half.higher_is_better, half.unit, half.reference, half.curvature = False, 'nats', 'float', 'identity'",
        "def silent(outputs, labels, index): return 0.0",
        "def fails(outputs, labels, index): return outputs[0] / {}",
        "fails.higher_is_better = True",
        "number = 3",
    ]
    (tmp_path / "their_metrics.py").write_text("\n".join(source))
    (tmp_path / "their_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    return "their_metrics"


def test_a_function_of_the_users_own_folder_is_found_with_what_it_declares(user_module: str) -> None:
    metric = resolve_metric(f"{user_module}:half")

    assert (metric.unit, metric.higher_is_better, metric.reference, metric.curvature) == ("nats", False, "float", "identity")
    assert metric.score((np.ones((4, 1)),), np.zeros(4), np.array([0, 1])) == 1.0


@pytest.mark.parametrize(
    "path, says",
    [
        ("their_metrics:silent", "does not say whether higher is better"),
        ("their_metrics:absent", "AttributeError"),
        ("their_metrics:number", "is int"),
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("their_broken:f", "ZeroDivisionError"),
    ],
    ids=lambda text: text.split(":")[-1].replace(" ", "-"),
)
def test_a_function_that_cannot_be_used_is_refused_in_one_line(user_module: str, path: str, says: str) -> None:
    with pytest.raises(MetricError, match=says) as caught:
        resolve_metric(path)
    assert "\n" not in str(caught.value)


def test_what_a_users_metric_raises_is_named_with_the_metric(user_module: str) -> None:
    with pytest.raises(MetricError, match="their_metrics:fails raised TypeError"):
        resolve_metric("their_metrics:fails").score((np.ones((4, 1)),), np.zeros(4))


def test_metrics_pass_through_and_functions_keep_their_name() -> None:
    def mine(outputs, labels, index) -> float:
        return 1.0

    mine.higher_is_better = True  # type: ignore[attr-defined]

    assert resolve_metric(METRICS["mse"]) is METRICS["mse"]
    assert resolve_metric(mine).name == "mine"
    with pytest.raises(MetricError, match="metric 3"):
        resolve_metric(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.ones(2), "good", None], ids=repr)
def test_a_value_that_is_no_finite_number_is_refused(value: object) -> None:
    metric = Metric("odd", "", True, lambda *_: value)  # type: ignore[arg-type, return-value]
    with pytest.raises(MetricError, match="metric odd gave"):
        metric.score((SCORES,), LABELS)


@pytest.mark.parametrize(
    "outputs, labels, says",
    [(SCORES, None, "no labels for metric top1"), (SCORES, LABELS[:, None], "labels of shape"), (SCORES[:, 0], LABELS, "outputs of shape")],
    ids=["no-labels", "wrong-labels", "no-classes"],
)
def test_outputs_and_labels_that_do_not_fit_top1_are_refused(outputs: np.ndarray, labels: np.ndarray | None, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        METRICS["top1"].score((outputs,), labels)


def test_miou_is_the_mean_over_classes_of_what_a_loop_over_pixels_counts() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(5, 4, 6, 3)).astype(np.float32)
    labels = random.integers(0, 3, (5, 6, 3))  # class 3 is answered and never right
    labels[0, :2], labels[1, 0, 0] = 255, -1
    index, shares = np.array([0, 1, 1, 4]), []
    for wanted in range(4):
        both = either = 0
        for item in index:
            for pixel in np.ndindex(6, 3):
                label, answer = labels[item][pixel], int(scores[item].transpose(1, 2, 0)[pixel].argmax())
                if label in (255, -1):
                    continue
                both += label == answer == wanted
                either += wanted in (label, answer)
        shares.append(both / either)

    metric = METRICS["miou"]
    assert metric.score((scores,), labels, index) == pytest.approx(100 * np.mean(shares))
    assert metric.scorer((scores,), labels)(index) == metric.score((scores,), labels, index)
    some = np.full((5, 6, 3), 2)
    assert metric.score((np.eye(4)[some].transpose(0, 3, 1, 2),), some) == 100  # classes that are nowhere have no share


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros((2, 4, 5), int), "a class for each pixel, \\[2, 4, 4\\]"),
        (np.zeros((2, 4, 4)), "type float64"),
        (np.full((2, 4, 4), 3), "label 3 for a network of 3 classes"),
        (np.full((2, 4, 4), 255), "no pixel with a label"),
    ],
    ids=["shape", "type", "class", "none"],
)
def test_labels_that_are_no_classes_of_pixels_are_refused(labels: np.ndarray, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        METRICS["miou"].score((np.zeros((2, 3, 4, 4)),), labels)


def test_mae_is_the_mean_distance_from_the_labels() -> None:
    wanted = GENERATOR.normal(size=(60, 10))
    by_loop = np.mean([abs(float(SCORES[i, j]) - wanted[i, j]) for i in INDEX for j in range(10)])

    assert METRICS["mae"].score((SCORES,), wanted, INDEX) == pytest.approx(by_loop)
    assert METRICS["mae"].score((SCORES[:, :1],), wanted[:, 0], INDEX) > 0 and not METRICS["mae"].higher_is_better
    with pytest.raises(MetricError, match=r"numbers \[60, 10\] for mae"):
        METRICS["mae"].score((SCORES,), wanted[:, :3])


def test_cosine_is_that_of_the_angle() -> None:
    by_loop = [100 * float(SCORES[i] @ OTHERS[i]) / (np.linalg.norm(SCORES[i]) * np.linalg.norm(OTHERS[i])) for i in INDEX]

    assert METRICS["cosine"].score((SCORES,), (OTHERS,), INDEX) == pytest.approx(np.mean(by_loop), rel=1e-5)
    assert METRICS["cosine"].score((0 * SCORES,), (OTHERS,)) == 0


def test_ssim_is_the_formula_window_by_window() -> None:
    random = np.random.default_rng(2)
    theirs = random.uniform(size=(3, 2, 9, 10))
    mine = theirs + 0.1 * random.normal(size=theirs.shape)
    span, found = theirs.max() - theirs.min(), []
    for item in (0, 2):
        for channel, top, left in np.ndindex(2, 3, 4):
            x, y = (values[item, channel, top : top + 7, left : left + 7].ravel() for values in (mine, theirs))
            c1, c2, covariance = (0.01 * span) ** 2, (0.03 * span) ** 2, np.cov(x, y)
            value = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
            found.append(value / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)))

    metric = METRICS["ssim"]
    assert metric.score((mine,), (theirs,), np.array([0, 2])) == pytest.approx(100 * np.mean(found))
    assert metric.score((theirs,), (theirs,)) == pytest.approx(100)
    with pytest.raises(MetricError, match="of at least 7 × 7"):
        metric.score((mine[..., :5],), (theirs[..., :5],))
