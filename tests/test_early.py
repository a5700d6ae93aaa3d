"""A candidate that is broken is not measured to its end; one that is not, is, and in the same batches as ever."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.core.metrics import METRICS
from quantkit.data import Batch, KeptBatches, collect, whole
from quantkit.runtimes.evaluation import Early, evaluate
from quantkit.stages.judge import Judge
from quantkit.stages.looks import EARLY

ITEMS, CLASSES = 300, 4


class Counting:
    """A session that answers with its input and counts items."""

    def __init__(self, path: Path) -> None:
        self.path, self.batch, self.in_call, self.threads, self.input_names = path, None, False, 1, ("x",)
        self.sizes: list[int] = []

    def run(self, feeds: dict[str, NDArray[np.float32]]) -> tuple[NDArray[np.float32], ...]:
        self.sizes.append(len(feeds["x"]))
        return (feeds["x"],)


@pytest.fixture
def session(tmp_path: Path) -> Counting:
    (tmp_path / "model.onnx").write_bytes(b"no operation of that name")
    return Counting(tmp_path / "model.onnx")


def scores(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 4, (ITEMS, CLASSES)).astype(np.float32)


def items(values: NDArray[np.float32]) -> KeptBatches:
    import torch

    return KeptBatches(whole(collect([Batch({"x": torch.from_numpy(values)})])))


@pytest.mark.parametrize("batch", [1, 32, 50, 500])
def test_it_is_asked_once_after_whole_batches(session: Counting, batch: int) -> None:
    asked = []
    found = evaluate(session, items(scores(0)), batch, Early(64, lambda outputs: asked.append(len(outputs[0])) or True))
    assert asked == [min(ITEMS, -(-64 // batch) * batch)] and len(found[0]) == asked[0] == sum(session.sizes)
    assert np.array_equal(found[0], scores(0)[: asked[0]])


def test_else_all_are_run_in_the_same_batches(session: Counting) -> None:
    found = evaluate(session, items(scores(0)), 32, Early(64, lambda _: False))
    assert np.array_equal(found[0], scores(0)) and session.sizes == [32] * 9 + [12]


class Emitting:
    """Candidates whose file answers with `values`."""

    def __init__(self, session: Counting) -> None:
        self.session = session

    def written(self, _: object) -> AbstractContextManager[Path]:
        return nullcontext(self.session.path)

    def open(self, *_: object, **__: object) -> Counting:
        return self.session


class Journal:
    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def records(self) -> tuple[dict[str, object], ...]:
        return tuple(self.rows)

    def append(self, row: dict[str, object]) -> None:
        self.rows.append(row)


def judge(session: Counting, answers: NDArray[np.float32], metric: str = "top1") -> Judge:
    subset = whole(collect([Batch({"x": __import__("torch").from_numpy(answers)})]))
    reference = (scores(0),)
    labels = scores(0).argmax(1) if metric == "top1" else None
    return Judge(
        Emitting(session), Journal(), "key", subset, labels, reference, METRICS[metric], 5.0, ITEMS, 0.85, True, 32, 0, KeptBatches(subset),
    )  # type: ignore[arg-type]  # fmt: skip


def test_a_broken_candidate_is_left_early(session: Counting) -> None:
    look = judge(session, scores(1)).measure({"group": "w2a8"})
    assert sum(session.sizes) == look["items"] == EARLY and look["low"] > 5.0


@pytest.mark.parametrize("kind", ["equal", "a little worse", "far but right", "plain values"])
def test_others_are_measured_whole(session: Counting, kind: str) -> None:
    answers = scores(0)
    if kind == "a little worse":
        answers[::40] = -answers[::40]
    elif kind == "far but right":
        answers *= 0.02
    elif kind == "plain values":
        answers = -answers
    look = judge(session, answers, "mse" if kind == "plain values" else "top1").measure({"group": "w8a8"})
    assert sum(session.sizes) == look["items"] == ITEMS


def test_what_was_left_early_is_measured_whole_under_a_larger_budget(session: Counting) -> None:
    small = judge(session, scores(1))
    assert small.measure({"group": "w2a8"})["items"] == EARLY
    large = replace(small, budget=99.0)
    assert not large.knows({"group": "w2a8"}) and small.knows({"group": "w2a8"})
    assert large.measure({"group": "w2a8"})["items"] == ITEMS and large.knows({"group": "w2a8"})
    assert small.measure({"group": "w2a8"})["items"] == ITEMS  # what is there is taken
