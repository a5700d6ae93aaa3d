"""Candidates are what the plan says, and each is measured once, whoever asks."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from quantkit.core.metrics import METRICS
from quantkit.core.spec import parse_allocation, parse_scheme
from quantkit.core.statistics import Expectation
from quantkit.core.store import Run
from quantkit.core.workers import Here
from quantkit.data import KeptBatches, Subset
from quantkit.runtimes.evaluation import evaluate, open_session
from quantkit.stages import judge as room
from quantkit.stages import looks
from quantkit.stages.candidates import Candidates
from quantkit.stages.judge import Judge
from quantkit.verification.verify import judge as verdict_of


@pytest.fixture(scope="module")
def search() -> Subset:
    return toys.subset(80, seed=7, noise=3.0)  # hard enough that some items flip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path / "run") as opened:
        yield opened


@pytest.fixture
def judge(store: Run, search: Subset) -> Judge:
    candidates = toys.candidates(toys.toybox(), store.folder)
    reference = evaluate(open_session(candidates.float_file, threads=1), search, 16)
    items = KeptBatches(search)
    return Judge(candidates, store, "key", search, search.labels(), reference, METRICS["top1"], 5.0, 80, 0.85, True, 16, 0, items)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were run over data."""
    seen: list[Path] = []

    def spy(session: Any, *arguments: Any) -> Any:
        seen.append(session.path)
        return evaluate(session, *arguments)

    monkeypatch.setattr(looks, "evaluate", spy)
    return seen


def plans(*schemes: str) -> list[Any]:
    return [toys.everything(toys.toybox().groups, scheme) for scheme in schemes]


def test_a_plan_is_measured_once_even_by_another_process(judge: Judge, evaluated: list[Path]) -> None:
    float_plan, narrow = plans("fp32", "w4a8")
    measure = judge.expect([narrow])
    first = [measure(narrow), measure(float_plan), measure(float_plan)]
    again = replace(judge).expect([narrow])

    assert [again(narrow), again(float_plan), again(float_plan)] == first
    assert len(evaluated) == 2 == len(judge.store.records())


def test_under_another_key_it_is_measured_again(judge: Judge, evaluated: list[Path]) -> None:
    for key in ("key", "key", "another"):
        replace(judge, key=key).expect(plans("w8a8"))

    assert len(evaluated) == 2


def test_what_is_measured_is_the_emitted_file_on_the_search_split(judge: Judge, search: Subset) -> None:
    (narrow,) = plans("w4a8")
    measured = judge.expect([narrow])(narrow)
    path = toys.written(judge.candidates, narrow, judge.store.folder / "own.onnx")
    outputs = evaluate(open_session(path, threads=1), search, 16)
    labels = search.labels()
    assert labels is not None
    drop = 100 * (np.mean(judge.reference[0].argmax(1) == labels) - np.mean(outputs[0].argmax(1) == labels))

    assert measured.figures["float"] - measured.figures["quantized"] == pytest.approx(drop)
    assert measured.figures["bytes"] == path.stat().st_size
    assert measured.figures["low"] <= measured.drop <= measured.figures["high"]


@dataclass
class Two:
    """Two workers, which are this process."""

    asked: list[int]
    count = 2

    def run(self, task: Any, shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
        shared = pickle.loads(pickle.dumps(replace(shared, standard=replace(shared.standard, metric=None))))
        shared = replace(shared, standard=replace(shared.standard, metric=METRICS["top1"]))
        for part in parts:
            self.asked.append(len(part))
            yield task(shared, part)


def test_workers_see_of_a_candidate_what_this_process_sees(judge: Judge) -> None:
    wanted, workers = plans("w4a8", "w8a8", "w4a8"), Two([])
    judge.measure(wanted[1])
    assert list(judge.measure_apart(wanted, workers, lambda: False)) == wanted[:1]
    apart = judge.measure(wanted[0])

    assert workers.asked == [apart["bytes"]] and judge.knows(wanted[0])
    assert replace(judge, key="here").measure(wanted[0]) == apart
    assert len(list(judge.candidates.folder.glob("candidate-*"))) == 0


@pytest.mark.parametrize("why", ["this process is alone", "the metric is the user's", "the items are too many", "it is late"])
def test_nothing_is_sent_where_it_should_not_be(judge: Judge, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: Any = Here() if why == "this process is alone" else Two([])
    if why == "the metric is the user's":
        judge = replace(judge, metric=replace(METRICS["top1"], source="def top1"))
    if why == "the items are too many":
        monkeypatch.setattr(looks, "KEPT_BYTES", 1000)
    assert list(judge.measure_apart(plans("w4a8"), workers, lambda: why == "it is late")) == []
    assert not judge.knows(plans("w4a8")[0]) and getattr(workers, "asked", []) == []


def test_float_loses_nothing(judge: Judge) -> None:
    (plain,) = plans("fp32")
    measured = judge.expect([])(plain)

    assert (measured.drop, measured.passes) == (0, True)
    assert measured.figures["divergence"] == pytest.approx(0, abs=1e-9)


def test_what_passes_leaves_room_for_chance(judge: Judge) -> None:
    """A plan whose measured drop is the budget, no more, does not pass; with a larger budget it does."""
    (narrow,) = plans("w4a8")
    drop = judge.expect([narrow])(narrow).drop

    assert not replace(judge, key="tight", budget=drop).expect([narrow])(narrow).passes
    assert replace(judge, key="wide", budget=drop + 20).expect([narrow])(narrow).passes


def test_confidence_and_the_size_of_the_gate_set_the_margin(judge: Judge) -> None:
    (narrow,) = plans("w4a8")

    def least_budget(**changes: Any) -> float:
        return next(budget for budget in np.arange(0, 60, 0.25) if replace(judge, budget=budget, **changes).expect([narrow])(narrow).passes)

    drop = judge.expect([narrow])(narrow).drop
    assert drop <= least_budget(confidence=0.5) + 0.25
    assert least_budget(confidence=0.5) < least_budget(confidence=0.85) < least_budget(confidence=0.99)
    assert least_budget(gate_items=8000) < least_budget() < least_budget(gate_items=8)


def test_broken_anchors_say_nothing_about_small_losses(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray, ...]] = []
    fit = Expectation.fit

    def spy(*told: np.ndarray) -> Expectation:
        seen.append(told)
        return fit(*told)

    monkeypatch.setattr(room.Expectation, "fit", spy)
    apart = {"w8a8": 0.01, "w4a8": 1.0}
    for scheme, divergence in apart.items():
        monkeypatch.setattr(looks, "divergence", lambda *_, value=divergence: value)
        judge.measure(plans(scheme)[0])
    measure = judge.expect(plans("w8a8", "w4a8"))
    measure(plans("w4a8")[0])

    assert [list(divergences) for *_, divergences in seen] == [[0.01]]


def test_a_broken_plan_is_judged_by_its_own_drop_whatever_the_anchors_say(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors that lost nothing do not vouch for a plan that is far from float."""
    float_plan, narrow = plans("fp32", "w4a8")
    measured = judge.expect([float_plan])(narrow)

    assert measured.drop > 5 and not replace(judge, budget=5.0).expect([float_plan])(narrow).passes


def test_a_placement_gives_every_layer_of_a_group_its_scheme() -> None:
    box = toys.unpack(toys.TiedToy().eval())
    candidates = Candidates(Path(), box.captured.graph, box.groups, toys.ort_cpu, box.bank, Path(), "key")
    placed = candidates.placement(parse_allocation({"twice": "w4a8", "head": "fp32", "global_pool": "fp32"}))

    assert {name: scheme.name for name, scheme in placed.schemes.items()} == dict.fromkeys(box.groups[0].layers, "w4a8")


def test_uniform_plans_take_the_scheme_where_they_can() -> None:
    box = toys.toybox()
    candidates = Candidates(Path(), box.captured.graph, box.groups, toys.ort_cpu, box.bank, Path(), "key")

    assert candidates.uniform(parse_scheme("w4a8")) == {group.name: "w4a8" if "w4a8" in group.schemes else "w8a8" for group in box.groups}


def test_the_verdict_compares_with_the_float_file_in_the_metrics_own_terms(search: Subset) -> None:
    """Agreement and mean squared error take the float file's answers for the truth, top-1 the labels."""
    reference = (np.eye(4)[[0, 1, 2, 3] * 5],)
    outputs = (np.eye(4)[[0, 1, 2, 0] * 5],)
    labels = np.array([1, 1, 2, 3] * 5)
    top1 = verdict_of(METRICS["top1"], reference, outputs, labels, 1.0, 0)
    agreement = verdict_of(METRICS["agreement"], reference, outputs, None, 1.0, 0)
    mse = verdict_of(METRICS["mse"], reference, outputs, None, 1.0, 0)

    assert (top1.float, top1.quantized, top1.drop) == (75, 50, 25)
    assert (agreement.float, agreement.quantized, agreement.drop) == (100, 75, 25)
    assert (mse.float, mse.drop) == (0, pytest.approx(2 / 4 / 4))
    assert (top1.decision, mse.decision, top1.n) == ("broken", "kept", 20)
