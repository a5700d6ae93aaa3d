"""The file held against the plan: what ran, how the timings are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import toys

from quantkit.core.ratios import sittings_interval
from quantkit.core.spec import parse_allocation
from quantkit.export.executed_layers import Executed
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.evaluation import Session
from quantkit.verification import verify
from quantkit.verification.sittings import TimedFile
from quantkit.verification.verify import int8_share, time_files, time_sessions


def test_the_runtime_runs_what_was_planned_and_says_otherwise_by_name(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates = toys.candidates(box, tmp_path)
    plan = toys.everything(box.groups, "w8a8", down="fp32")
    path = toys.written(candidates, plan)
    found = ort_cpu.read_executed(path, box.captured.graph, candidates.placement(plan), {}, tmp_path)
    asked_else = candidates.placement(parse_allocation({**plan, "down": "w8a8", "stem": "fp32"}))
    wrong = ort_cpu.read_executed(path, box.captured.graph, asked_else, {}, tmp_path)

    assert found.mismatches == ()
    assert {name for name, kind in found.precisions.items() if kind == "float"} == {"down"}
    assert sorted(text.split(":")[0] for text in wrong.mismatches) == ["down", "stem"]


def test_the_int8_share_counts_multiply_accumulates() -> None:
    graph = toys.toybox().captured.graph
    total = sum(layer.macs for layer in graph.layers)
    kinds = {layer.name: "float" for layer in graph.layers} | {"down": "int8", "classifier": "int8"}

    share = int8_share(graph, Executed(kinds, ()))  # type: ignore[arg-type]
    assert share == pytest.approx((graph.layer("down").macs + graph.layer("classifier").macs) / total)
    assert int8_share(replace(graph, layers=()), Executed({}, ())) == 0


def test_latencies_of_sittings_are_as_sure_as_sittings_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    sittings = [np.array([[2.0, 2.0, 2.0], [1.0, 1.0, 9.0]]), np.array([[2.0, 2.0, 2.0], [1.0, 1.2, 1.2]])]

    def timed(runtime: object, files: object, example: object, **others: object) -> list[np.ndarray]:
        asked.update(others)
        return sittings

    monkeypatch.setattr(verify, "time_in_sittings", timed)
    files = [TimedFile(Path("float.onnx")), TimedFile(Path("plan.onnx"))]
    first, mine = time_files(ort_cpu, files, {"x": np.zeros((4, 1), np.float32)}, 3)

    assert asked == {"threads": 3, "seconds": verify.LATENCY_SECONDS}
    assert (first.ratio, first.low, first.high, first.float_ms) == (1, 1, 1, 2.0)
    assert (mine.ratio, mine.low, mine.high) == sittings_interval(np.array([0.5, 0.6]))
    assert (mine.float_ms, mine.quantized_ms, mine.threads, mine.batch) == (2.0, 1.1, 3, 4)


def test_latencies_are_told_against_the_first_file_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def interleaved(sessions: Sequence[Session], feeds: object, *, rounds: int) -> np.ndarray:
        asked["rounds"], asked["sessions"] = rounds, len(sessions)
        return np.array([[2.0, 4.0, 6.0], [1.0, 2.0, 3.0], [2.0, 8.0, 6.0]])

    monkeypatch.setattr(verify, "rounds_within", lambda session, feeds, seconds: int(10 * seconds))
    monkeypatch.setattr(verify, "interleave", interleaved)
    feeds = {"x": np.zeros((4, 1), np.float32)}
    first, half, other = time_sessions([SimpleNamespace(threads=3)] * 3, feeds)  # type: ignore[list-item]

    assert asked == {"rounds": int(10 * verify.LATENCY_SECONDS / 3), "sessions": 3}
    assert (first.ratio, first.low, first.high, first.quantized_ms) == (1, 1, 1, 4.0)
    assert (half.ratio, half.low, half.high, half.quantized_ms) == (0.5, 0.5, 0.5, 2.0)
    assert (other.ratio, other.low, other.high) == (1, 1, 2)
    assert {row.float_ms for row in (first, half, other)} == {4.0}
    assert (half.threads, half.batch) == (3, 4)
