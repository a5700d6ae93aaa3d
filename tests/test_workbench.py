"""Stages are kept under all that they depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.progress import Silent
from quantkit.core.store import Run
from quantkit.runs.workbench import Workbench


@dataclass(frozen=True)
class Number:
    value: int

    def to_json(self) -> Any:
        return {"value": self.value}

    @classmethod
    def from_json(cls, data: Any) -> Number:
        return cls(data["value"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path / "run") as opened:
        yield opened


def keep(store: Run, stage: str, value: int, *depends_on: Any) -> tuple[Number, list[str]]:
    """What a fresh process gets, whose own computation would give `value`, and what it computed."""
    bench = Workbench(store, Silent())
    named = {f"input {place}": value for place, value in enumerate(depends_on)}
    return bench.keep(stage, named, lambda: Number(value), Number.from_json), bench.computed


def test_a_kept_stage_is_not_computed_again(store: Run) -> None:
    assert keep(store, "scores", 1, "network", [1, 2]) == (Number(1), ["scores"])
    assert keep(store, "scores", 2, "network", [1, 2]) == (Number(1), [])


@pytest.mark.parametrize(
    ("stage", "depends_on"),
    [("scores", ("network", [1, 3])), ("scores", ("network",)), ("scores", ("other", [1, 2])), ("ranges", ("network", [1, 2]))],
    ids=["another value", "one less", "another network", "another stage"],
)
def test_whatever_it_depends_on_makes_it_another(store: Run, stage: str, depends_on: tuple[Any, ...]) -> None:
    keep(store, "scores", 1, "network", [1, 2])

    assert keep(store, stage, 2, *depends_on) == (Number(2), [stage])
    assert keep(store, "scores", 3, "network", [1, 2]) == (Number(1), [])


def test_a_damaged_file_is_computed_again(store: Run) -> None:
    keep(store, "scores", 1)
    for path in (store.folder / "stages").iterdir():
        path.write_text("{")

    assert keep(store, "scores", 2) == (Number(2), ["scores"])


def test_what_failed_is_not_kept(store: Run) -> None:
    bench = Workbench(store, Silent())

    def fail() -> Number:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.keep("scores", {}, fail, Number.from_json)
    assert bench.computed == [] and keep(store, "scores", 2) == (Number(2), ["scores"])


def test_seconds_add_up_by_stage(store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("quantkit.runs.workbench.time.perf_counter", lambda: next(clock))
    bench = Workbench(store, Silent())
    for _ in range(2):
        with bench.timed("search", "shown"):
            pass
    bench.keep("scores", {}, lambda: Number(1), Number.from_json)

    assert bench.seconds == {"search": 3.0, "scores": 4.0}
