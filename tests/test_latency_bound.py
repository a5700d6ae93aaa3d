"""--max-latency is closed by measurement: a file that is slower than asked is searched for again under a tighter bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import allocate, hurry

from quantkit import pipeline
from quantkit.stages import latency_bound
from quantkit.stages.front import find_front
from quantkit.verification.verify import Latency

ASKED = 5.0  # of the float network's time, which every plan of so small a network takes less than


def bounds_of(monkeypatch: pytest.MonkeyPatch, folder: Path, ratios: Sequence[float]) -> list[float]:
    """The bounds on latency under which a front was solved for, where the files measure these ratios in turn; then the job's own result."""
    asked, times = list[float](), iter(ratios)
    hurry(monkeypatch)

    def logged(bench: Any, request: Any, predictor: Any, stage: str = "front") -> Any:
        asked.append(request.options.bounds.latency.value)
        return find_front(bench, request, predictor, stage)

    def timed(*_: object) -> tuple[Latency, ...]:
        ratio = next(times)
        return (Latency(1.0, 1.0, 1.0, 1.0, 1.0, 1, 1), Latency(1.0, ratio, ratio, ratio, ratio, 1, 1))

    monkeypatch.setattr(pipeline, "find_front", logged)
    monkeypatch.setattr(latency_bound, "time_in_turn", timed)
    # The same plan under another bound is not timed again; here each is, so that the turns can be counted.
    monkeypatch.setattr("quantkit.runs.workbench.Workbench.keep", uncached(pipeline.Workbench.keep))
    allocate(folder, minimize="drop", max_latency=f"{ASKED}x", max_drop=90.0)
    return list(dict.fromkeys(asked))


def uncached(keep: Any) -> Any:
    def own(self: Any, stage: str, depends_on: Any, compute: Any, load: Any) -> Any:
        return compute() if stage == "bounded_latency" else keep(self, stage, depends_on, compute, load)

    return own


def test_a_file_that_is_fast_enough_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bounds_of(monkeypatch, tmp_path, [0.9 * ASKED]) == [ASKED]


def test_a_slow_one_is_searched_for_again_under_what_it_exceeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = bounds_of(monkeypatch, tmp_path, [1.2 * ASKED, 0.99 * ASKED])
    assert first == ASKED and second == pytest.approx(ASKED / 1.2 / latency_bound.MARGIN)


def test_the_search_ends_after_a_few_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(bounds_of(monkeypatch, tmp_path, [1.1 * ASKED] * 10)) == 1 + latency_bound.TURNS
