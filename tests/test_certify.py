"""Predictions are fitted to measured plans and tested on others, in a whole job on a small network."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
from test_pipeline import data, hurry, remember
from torch import Tensor, nn
from toys import trained

import quantkit
from quantkit import pipeline
from quantkit.allocation import Plan
from quantkit.allocation.prediction.certificate import Agreement, Certificate, beyond_additive
from quantkit.allocation.search import Measured, SearchResult, Space
from quantkit.core.spec import Allocation
from quantkit.report.format import certificate_line
from quantkit.runs.result import Result
from quantkit.sensitivity import kl
from quantkit.stages import certify


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)
    monkeypatch.setattr(certify, "TRAINED", dict.fromkeys(certify.TRAINED, 6))
    monkeypatch.setattr(certify, "WIDTH", 0.4)  # so small a network has few plans of one cost


def allocate(run: Path, **options: Any) -> Result:
    said = {"max_drop": 20.0, "minimize": "bytes", "certificate": 8, "schemes": "fp32,w8a8,w6a8,w4a8"} | options
    return quantkit.allocate(trained(), data=data(), run=run, **said)


def certificate_of(result: Result) -> Certificate:
    assert result.certificate is not None
    return result.certificate


def test_every_plan_comes_with_what_predictions_are_worth(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run")
    found = certificate_of(result)
    assert found.plans == 8 and found.trained >= 6 and found.measured_drop == result.verdict.drop
    assert found.fitted.spearman is not None and found.items == 120  # all of the search split
    assert json.loads((tmp_path / "run" / "result.json").read_text())["certificate"] == found.to_json()
    assert f"on {found.plans} plans" in certificate_line(found.to_json(), "points")
    assert found.beyond_additive is not None and found.additive == found.fitted  # `kl` predicts by sums, and measures pairs beside


def test_interactions_are_reported_where_the_sensitivity_measures_them(tmp_path: Path) -> None:
    found = certificate_of(allocate(tmp_path / "run", sensitivity="displacement"))
    assert found.beyond_additive is not None and 0 <= found.beyond_additive <= 1
    assert "not additive over layers" in certificate_line(found.to_json(), "points")


def test_a_sensitivity_without_pairs_says_nothing_of_them(tmp_path: Path) -> None:
    found = certificate_of(allocate(tmp_path / "run", sensitivity="weight_error"))
    assert found.beyond_additive is None and "additive over layers" not in certificate_line(found.to_json(), "points")


class Twins(nn.Module):
    """Two branches of equal weights; their results are added, or stand side by side in the output."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.added = nn.Linear(192, 8), nn.Linear(192, 8), added
        self.other.load_state_dict(self.one.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x.flatten(1)), self.other(x.flatten(1))
        return one + other if self.added else torch.cat([one, other * 2], dim=1)


def share_beyond_sums(added: bool) -> float:
    """What no sum over layers explains of the predicted losses of all plans.

    Equal errors that are added weigh four times one of them; those of different outputs have nothing to do with each other.
    """
    box = toys.unpack(Twins(added).eval())
    scores = kl.estimate(toys.context(box, "identity"))
    plans = [dict(zip(("one", "other"), pair, strict=True)) for pair in itertools.product(toys.SCHEMES, repeat=2)]
    plans = [{group.name: plan.get(group.name, "fp32") for group in box.groups} for plan in plans]
    share = beyond_additive(scores.table, scores.gram, plans)
    assert scores.interactions is None and share is not None
    return share


@pytest.mark.parametrize("added", [True, False], ids=["planted", "none"])
def test_interactions_that_a_network_has_are_seen_and_none_where_it_has_none(added: bool) -> None:
    share, agreement = share_beyond_sums(added), Agreement(0.9, 0.8)
    found = Certificate(9, 9, 24, agreement, agreement, agreement, share, 1.5, 0.01, 0.02, 0, 0.3, 0.2)

    assert ("which predictions by sums miss" in certificate_line(found.to_json(), "points")) is added
    assert share > 0.1 if added else share < 1e-9


def test_asked_again_nothing_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = allocate(tmp_path / "run")
    journal = (tmp_path / "run" / "measured.jsonl").read_text()
    again = allocate(tmp_path / "run", undecided="fail")  # another job, so that all is gone through once more
    assert (tmp_path / "run" / "measured.jsonl").read_text() == journal
    assert certificate_of(again) == certificate_of(first)


def test_a_prediction_outside_the_band_is_learned_from_and_the_plan_solved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "band", lambda predicted, measured: 1e9)
    before = certificate_of(allocate(tmp_path / "run"))
    monkeypatch.setattr(certify, "band", lambda predicted, measured: 1.0)
    found = certificate_of(allocate(tmp_path / "again"))
    assert (before.refits, found.refits) == (0, 1)
    assert found.trained > before.trained > 6  # the plans that were tested first, and some of the front before


def test_no_search_forgets_what_an_earlier_one_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are tested, here twice, where the walk along the front ends; the last touches come behind."""
    monkeypatch.setattr(certify, "band", lambda predicted, measured: 1.0)
    searches, choices = pipeline.search, pipeline.choose
    chosen: list[tuple[SearchResult, Plan]] = []
    made: list[tuple[SearchResult, int | None]] = []

    def narrower(*arguments: Any, **options: Any) -> SearchResult:
        made.append((searches(*arguments, **options), options.get("repairs")))
        space: Space = arguments[4]
        return made[-1][0] if "repairs" in options else space.judged(made[-1][0].measured[:1])

    def spy(*arguments: Any) -> Any:
        found, walked = arguments[5], made[-2][0].nearest.plan
        choices(*arguments)
        chosen.append((found, next(trial.plan for trial in found.measured if trial.plan.allocation != walked.allocation)))
        return chosen[-1][1]  # another one than predictions were tested about

    monkeypatch.setattr(pipeline, "search", narrower)
    monkeypatch.setattr(pipeline, "choose", spy)
    result = allocate(tmp_path / "run")
    walks, ((found, plan),) = [walk for walk, repairs in made if repairs == 0], chosen
    assert len(walks) == 2 and len(made) == 3
    measured = [trial.plan.allocation for trial in found.measured]
    assert all(trial.plan.allocation in measured for walk in walks for trial in walk.measured)
    assert len(measured) == len({tuple(row.items()) for row in measured})
    best = [one.best.measured.figures["bytes"] for one in (*walks, found) if one.best is not None]
    assert len(best) == 3 and best[-1] <= min(best)
    shipped, walked = (divergences(tmp_path / "run", one) for one in (plan, walks[-1].nearest.plan))
    assert certificate_of(result).measured in shipped and certificate_of(result).measured not in walked


def divergences(run: Path, plan: Plan) -> list[float]:
    """All that the journal holds of the plan."""
    rows = [json.loads(line) for line in (run / "measured.jsonl").read_text().splitlines()]
    return [row["look"]["divergence"] for row in rows if row["allocation"] == dict(plan.allocation)]


def test_tested_plans_are_none_that_was_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[dict[str, str]], list[dict[str, str]]]] = []
    real = certify._drawn

    def spy(request: Any, predictor: Any, base: Any, count: int, seen: Any) -> list[dict[str, str]]:
        drawn.append((real(request, predictor, base, count, seen), list(seen)))
        return drawn[-1][0]

    measured = certify.measure_anchors
    anchors: list[dict[str, str]] = []

    def watched(*arguments: Any) -> Any:
        judged, plans = measured(*arguments)
        anchors.extend(dict(plan.allocation) for plan in plans)
        return judged, plans

    monkeypatch.setattr(certify, "measure_anchors", watched)
    monkeypatch.setattr(certify, "_drawn", spy)
    allocate(tmp_path / "run")
    (trained_on, _), (tested, seen) = drawn[:2]
    assert seen[: len(trained_on)] == trained_on and len(trained_on) == 6
    assert len(seen) > 6 and seen[6 : 6 + len(anchors)] == anchors  # of the front, measured before
    assert all(plan not in seen for plan in tested)


@pytest.mark.parametrize("cut", range(11))
def test_predictions_are_fitted_about_the_cheapest_plan_of_the_front_that_passes(cut: int) -> None:
    """Every third plan was measured; the promise is kept from place `cut` on, which may be behind the front's end."""
    front = [Plan({"a": str(place)}, 0.0, 0.0) for place in range(10)]
    known, measured = set(range(0, 10, 3)), list[int]()

    def judged(allocation: Allocation) -> Measured:
        measured.append(int(allocation["a"]))
        return Measured(0.0, int(allocation["a"]) >= cut)

    def found(is_late: bool) -> tuple[Plan, list[Plan]]:
        bench, judge = SimpleNamespace(is_late=lambda: is_late), SimpleNamespace(knows=lambda plan: int(plan["a"]) in known)
        arguments: Any = bench, SimpleNamespace(budget=1.0), judge, SimpleNamespace(front=front)
        return certify._near_budget(*arguments, judged, lambda _: None)

    base, walked = found(is_late=False)
    assert base == front[min(cut, 9)]
    assert len(walked) <= 2 and set(measured) == known | {int(plan.allocation["a"]) for plan in walked}
    late, none = found(is_late=True)
    assert late == front[min((place for place in sorted(known) if place >= cut), default=9)] and not none


def test_none_is_wanted_and_none_is_made(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", certificate=0)
    assert result.certificate is None and "certificate" not in result.seconds and "fit" not in result.seconds
