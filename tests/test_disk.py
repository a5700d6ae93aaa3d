"""A disk that is full at any moment of a run, a process that is killed at any: one clear line, nothing lost, the same answer afterwards."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import allocate, hurry, remember

from quantkit.allocation.costs.measured import LatencyModel
from quantkit.core.errors import OutputError
from quantkit.core.table import Table
from quantkit.runs.result import Result
from quantkit.stages import costs, finalists

ROOT = Path(__file__).resolve().parent.parent
# Everything that a job writes for good, by what its name begins with.
WRITTEN = (
    "float.onnx", "captured.pt2", "history.jsonl", "request.json", "graph.json", "items.json", "ranges.json", "weights.npz",
    "plan_weights.npz", "scores.json", "latency.json", "file_bytes.json", "front.json", "float_on_search.npz", "interactions.npz",
    "tables.json", "measured.jsonl", "finalists.json", "plan.json", "model.onnx", "accuracy.json", "file_latency.json", "profile.json",
    "simulation.json", "result.json", "shipped.onnx", "quantkit.lock.json",
)  # fmt: skip
FAST = ("history.jsonl", "weights.npz", "model.onnx")  # one of each way to write


def known(graph: Any, groups: Any, schemes: Any, *_: Any, **__: Any) -> LatencyModel:
    """A latency table that no clock decides: which of plans that nearly tie is taken hangs on it."""
    rows = [[1.0 if name in group.schemes else math.nan for name in schemes] for group in groups]
    table = Table("latency", "ms", tuple(group.name for group in groups), tuple(schemes), np.array(rows))
    return LatencyModel(table, (), 0.5, 1.0, ((1.0, 1.0),))


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Exports once for all, and no clock decides which plan is taken."""
    remember(patch)
    decide_by_no_clock(patch)


def decide_by_no_clock(patch: pytest.MonkeyPatch) -> None:
    hurry(patch)
    patch.setattr(costs, "measure_latency", known)
    patch.setattr(finalists, "interleave", lambda sessions, feeds, rounds: np.ones((len(sessions), rounds)))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch)


def kind(descriptor: int) -> str:
    """`.scores-0123abcd01234567-89abcdef.json` → `scores.json`."""
    name = Path(f"/proc/self/fd/{descriptor}").readlink().name
    stem, suffix = re.fullmatch(r"\.?(.*?)(?:-[0-9a-f]{8,16})*(\.\w+)", name).groups()
    return stem + suffix


def outcome(result: Result, output: Path) -> list[Any]:
    return [result.files.onnx.read_bytes(), output.read_bytes(), {row.group: row.scheme for row in result.allocation}]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a run gives on a disk with room, and, last, the kinds of files that it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        seen: list[str] = []
        synchronise = os.fsync
        patch.setattr(os, "fsync", lambda descriptor: (seen.append(kind(descriptor)), synchronise(descriptor))[1])
        folder = tmp_path_factory.mktemp("room")
        result = allocate(folder / "run", output=folder / "shipped.onnx", sensitivity="augmented")
        return [*outcome(result, folder / "shipped.onnx"), set(seen)]


def test_every_kind_of_file_that_a_job_writes_is_tried_on_a_full_disk(undisturbed: list[Any]) -> None:
    assert undisturbed[-1] == set(WRITTEN)


@pytest.mark.parametrize("where", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in WRITTEN])
def test_a_full_disk_is_one_clear_line_and_the_same_command_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any], where: str
) -> None:
    synchronise, output = os.fsync, tmp_path / "shipped.onnx"

    def full(descriptor: int) -> None:
        if kind(descriptor) == where:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronise(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            allocate(tmp_path / "run", output=output, sensitivity="augmented")
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    result = allocate(tmp_path / "run", output=output, sensitivity="augmented")

    assert not [name for name in left if name.startswith(".")]
    assert outcome(result, output) == undisturbed[:-1]


@pytest.mark.slow
def test_killed_at_any_moment_a_run_that_is_resumed_ships_the_same_bytes(tmp_path: Path) -> None:
    """Three of the fifty moments of `tools/bench_gate.py`."""
    answer = tmp_path / "gate.json"
    command = ["tools/bench_gate.py", "--parts", "kills", "--kills", "3", "--work", str(tmp_path / "work"), "--output", str(answer)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, check=True)
    figures = json.loads(answer.read_text())["figures"]

    assert (figures["kill_points"], figures["kill_points_resumed"], figures["left_nothing_torn"]) == (3, 3, 3)
