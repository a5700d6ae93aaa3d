"""The predictor fitted to measured plans: against made-up truths that it must find, and what it must leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantkit.allocation import MeasuredLoss, Resource, draw, fit_losses
from quantkit.allocation.prediction.certificate import Agreement, Certificate, band, beyond_additive, is_within
from quantkit.core.graph import Group
from quantkit.core.spec import parse_schemes
from quantkit.core.table import Interactions, Table
from quantkit.report.format import certificate_line

SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))
NAMES = tuple(f"g{place}" for place in range(8))
GROUPS = tuple(Group(name, (name,), SCHEMES, "") for name in NAMES)


def prior(seed: int = 0) -> tuple[Table, Interactions]:
    random = np.random.default_rng(seed)
    size = random.lognormal(0, 1, (len(NAMES), 1)) * np.array([0.0, 0.1, 1.0])
    moved = (size[:, :, None] * (1 + random.normal(size=(len(NAMES), 1, 12)))).reshape(-1, 12)
    matrix = moved @ moved.T
    own = 0.5 * np.diag(matrix).reshape(size.shape)
    return Table("loss", "nats", NAMES, SCHEMES, own), Interactions(NAMES, SCHEMES, matrix)


def bytes_() -> Resource:
    sizes = 1.0 + np.arange(len(NAMES))
    return Resource(Table("bytes", "bytes", NAMES, SCHEMES, np.outer(sizes, [32.0, 8.0, 4.0])))


def plans(count: int, seed: int = 0) -> list[dict[str, str]]:
    random = np.random.default_rng(seed)
    return [{name: SCHEMES[random.integers(3)] for name in NAMES} for _ in range(count)]


def test_a_fitted_predictor_finds_the_share_of_the_interactions_and_the_scale() -> None:
    loss, interactions = prior()
    apart = interactions.matrix - np.diag(np.diag(interactions.matrix))
    truth = replace(interactions, matrix=0.3 * apart + 2.0 * np.diag(np.diag(interactions.matrix)))
    fitted = fit_losses(loss, interactions, [(plan, truth.predicted(plan)) for plan in plans(30)])
    assert (fitted.own, fitted.between) == pytest.approx((2.0, 0.3))
    for plan in plans(20, seed=1):
        assert fitted.predicted(plan) == pytest.approx(truth.predicted(plan))


def test_a_group_that_the_prior_misjudged_is_found_and_the_others_keep_their_place() -> None:
    loss, _ = prior()
    values = loss.values.copy()
    values[2] *= 5
    truth = replace(loss, values=values)
    fitted = fit_losses(loss, None, [(plan, truth.total(plan)) for plan in plans(24)])
    unseen = plans(40, seed=2)
    measured = [truth.total(plan) for plan in unseen]
    before = Agreement.of([loss.total(plan) for plan in unseen], measured)
    after = Agreement.of([fitted.predicted(plan) for plan in unseen], measured)
    assert before.spearman is not None and after.spearman is not None and after.spearman > max(before.spearman, 0.98)
    assert math.isfinite(fitted.ridge)


def test_a_group_that_the_prior_missed_altogether_is_found() -> None:
    """A share of next to nothing is next to nothing: only a spread that is the same for all options reaches it."""
    loss, _ = prior()
    values = loss.values.copy()
    values[5] = [0.0, 0.5 * loss.values.max(), 2.0 * loss.values.max()]
    truth = replace(loss, values=values)
    blind = replace(loss, values=np.where(np.arange(len(NAMES))[:, None] == 5, 1e-4 * loss.values, loss.values))
    fitted = fit_losses(blind, None, [(plan, truth.total(plan)) for plan in plans(24)])
    unseen = plans(40, seed=2)
    agreement = Agreement.of([fitted.predicted(plan) for plan in unseen], [truth.total(plan) for plan in unseen])
    assert agreement.spearman is not None and agreement.spearman > 0.95
    assert fitted.loss.at("g5", "w4a8") == pytest.approx(truth.at("g5", "w4a8"), rel=0.2)


def test_no_option_falls_below_a_tenth_of_what_was_predicted_and_the_bound_is_part_of_the_fit() -> None:
    from scipy.optimize import lsq_linear

    from quantkit.allocation.fitting import _held, _moved

    random = np.random.default_rng(1)
    design, left, lowest = random.normal(size=(12, 6)), random.normal(size=12), -random.uniform(0, 0.2, 6)
    rows = np.vstack([design, np.sqrt(_held(design @ design.T, 0.1)) * np.eye(6)])
    slow = lsq_linear(rows, np.append(left, np.zeros(6)), (lowest, np.inf), method="bvls").x
    np.testing.assert_allclose(_moved(design, left, 0.1, lowest), slow, atol=1e-9)
    assert (slow <= lowest + 1e-12).any()
    loss, _ = prior()
    free = replace(loss, values=np.where(np.arange(len(NAMES))[:, None] == 3, 0.0, loss.values))
    fitted = fit_losses(loss, None, [(plan, free.total(plan)) for plan in plans(24)])
    assert fitted.loss.at("g3", "w4a8") == pytest.approx(0.1 * fitted.own * loss.at("g3", "w4a8"))


def test_few_labels_full_of_noise_move_no_single_option() -> None:
    loss, interactions = prior()
    random = np.random.default_rng(5)
    noisy = [(plan, interactions.predicted(plan) * random.lognormal(0, 0.5)) for plan in plans(24)]
    fitted = fit_losses(loss, interactions, noisy)
    unseen = plans(60, seed=3)
    measured = [interactions.predicted(plan) for plan in unseen]
    agreement = Agreement.of([fitted.predicted(plan) for plan in unseen], measured)
    assert agreement.spearman is not None and agreement.spearman > 0.97


def test_noise_alone_hardly_ever_moves_single_options() -> None:
    """Where the prior is right, what is left of the labels is noise: leaving out alone finds deviations in it in twice as many draws."""
    loss, _ = prior()
    moved = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        seen = [(plan, loss.total(plan) * random.lognormal(0, 0.5)) for plan in plans(24, seed=seed)]
        moved += math.isfinite(fit_losses(loss, None, seen).ridge)
    assert moved <= 2


def test_impossible_schemes_stay_impossible_and_float_stays_without_loss() -> None:
    loss, interactions = prior()
    values = loss.values.copy()
    values[0, 2] = np.nan
    gap = replace(loss, values=values)
    matrix = interactions.matrix.copy()
    matrix[2], matrix[:, 2] = 0.0, 0.0
    seen: list[MeasuredLoss] = [(plan | {"g0": "w8a8"}, 1.0 + place) for place, plan in enumerate(plans(12))]
    fitted = fit_losses(gap, replace(interactions, matrix=matrix), seen)
    assert np.isnan(fitted.loss.values[0, 2]) and np.isfinite(np.delete(fitted.loss.values.ravel(), 2)).all()
    assert fitted.predicted(dict.fromkeys(NAMES, "fp32")) == 0
    assert fitted.interactions is not None and np.array_equal(fitted.interactions.matrix, fitted.interactions.matrix.T)


@pytest.mark.parametrize("seen", [[], [({**dict.fromkeys(NAMES, "w8a8")}, 0.0)] * 5])
def test_nothing_seen_changes_nothing(seen: list[MeasuredLoss]) -> None:
    loss, interactions = prior()
    fitted = fit_losses(loss, interactions, seen)
    assert fitted.loss is loss and fitted.interactions is interactions


def test_plans_that_lose_nothing_do_not_outweigh_all_others() -> None:
    loss, _ = prior()
    lossless: list[MeasuredLoss] = [(dict.fromkeys(NAMES, "fp32"), 0.0)] * 8
    fitted = fit_losses(loss, None, [*lossless, *((plan, 3 * loss.total(plan)) for plan in plans(6))])
    assert fitted.own == pytest.approx(3.0)


def test_leaving_one_out_in_closed_form_is_leaving_one_out() -> None:
    from quantkit.allocation.fitting import _held, _left_out

    random = np.random.default_rng(0)
    design, left = random.normal(size=(9, 5)), random.normal(size=9)
    kernel = design @ design.T
    held = _held(kernel, 1.0)
    error = 0.0
    for out in range(9):
        rest = np.delete(np.arange(9), out)
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + held * np.eye(8), left[rest])
        error += float(left[out] - kernel[out, rest] @ weights) ** 2
    assert float((_left_out(design, left, 1.0) ** 2).sum()) == pytest.approx(error)


def test_drawn_plans_cost_what_was_asked_and_differ() -> None:
    base, cost = dict.fromkeys(NAMES, SCHEMES[1]), bytes_()
    drawn = draw(base, GROUPS, cost, count=30, width=0.05, seed=0)
    assert len(drawn) == 30 and len({tuple(plan.values()) for plan in drawn}) == 30 and base not in drawn
    assert all(abs(cost.total(plan) / cost.total(base) - 1) <= 0.05 for plan in drawn)
    assert drawn == draw(base, GROUPS, cost, count=30, width=0.05, seed=0) != draw(base, GROUPS, cost, count=30, width=0.05, seed=1)


def test_a_network_with_too_few_plans_gives_what_there_is() -> None:
    one = (Group("g0", ("g0",), SCHEMES, ""),)
    table = Table("bytes", "bytes", ("g0",), SCHEMES, np.array([[8.0, 8.0, 4.0]]))
    assert draw({"g0": SCHEMES[1]}, one, Resource(table), count=9, width=0.05, seed=0) == ({"g0": "fp32"},)


def test_the_share_beyond_sums_is_what_a_fit_of_sums_leaves_over_all_plans() -> None:
    names = NAMES[:3]
    loss, interactions = prior()
    rows = [interactions.index(name, scheme) for name in names for scheme in SCHEMES]
    small = Interactions(names, SCHEMES, interactions.matrix[np.ix_(rows, rows)])
    table = Table("loss", "nats", names, SCHEMES, loss.values[:3])
    every = [dict(zip(names, (a, b, c), strict=True)) for a in SCHEMES for b in SCHEMES for c in SCHEMES]
    design = np.array([[float(plan[name] == scheme) for name in names for scheme in SCHEMES] for plan in every])
    y = np.array([small.predicted(plan) for plan in every])
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert beyond_additive(table, small, every) == pytest.approx(float(left.var() / y.var()))


def line_of(loss: Table, interactions: Interactions | None) -> str:
    """What the certificate of a prediction with these interactions says."""
    share, agreement = beyond_additive(loss, interactions, plans(60)), Agreement(0.9, 0.8)
    found = Certificate(40, 24, 128, agreement, agreement, agreement, share, 1.5, 0.01, 0.02, 0, 0.3, 0.2)
    assert Certificate.from_json(found.to_json()) == found
    return certificate_line(found.to_json(), "points")


def test_planted_interactions_are_seen_and_none_are_made_up() -> None:
    loss, _ = prior()
    moved = np.outer((-1.0) ** np.arange(len(NAMES)), [0.0, 0.5, 1.0]).ravel()  # neighbours undo each other
    planted = Interactions(NAMES, SCHEMES, np.outer(moved, moved))
    alone = replace(planted, matrix=np.diag(np.diag(planted.matrix)))
    seen, additive = (beyond_additive(loss, interactions, plans(60)) for interactions in (planted, alone))

    assert seen is not None and seen > 0.5
    assert f"; {100 * seen:.0f} % of the predicted variance is not additive over layers" in line_of(loss, planted)
    assert additive == pytest.approx(0) and "; 0 % of the predicted variance is not additive over layers" in line_of(loss, alone)


def test_interactions_that_were_not_measured_are_not_reported() -> None:
    loss, _ = prior()

    assert beyond_additive(loss, None, plans(60)) is None
    assert "sum over layers" not in line_of(loss, None) and "without interactions" not in line_of(loss, None)


def test_agreement_is_of_ranks_and_of_values() -> None:
    assert Agreement.of([1, 2, 3], [2, 4, 6.0]) == Agreement(1.0, -0.75)
    assert Agreement.of([1, 1, 1], [1, 2, 3]) == Agreement(None, None) == Agreement.of([1, 2], [1, 2])


def test_the_band_is_a_factor_either_way() -> None:
    assert band([1.0, 2.0, 4.0], [2.0, 1.0, 4.0]) == pytest.approx(2.0, rel=0.05)
    assert is_within(1.0, 1.9, 2.0) and is_within(1.9, 1.0, 2.0) and not is_within(1.0, 2.1, 2.0)
    assert band([0.0], [0.0]) == 1 == band([], [])


def test_a_certificate_survives_json() -> None:
    agreement = Agreement(0.9, 0.8)
    one = Certificate(40, 24, 128, agreement, agreement, Agreement(None, None), 0.1, 1.5, 0.01, 0.02, 1, 0.3, 0.2)
    assert Certificate.from_json(one.to_json()) == one and one.to_json()["is_within_band"] is False
