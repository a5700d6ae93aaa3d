"""Files timed in sittings. No test looks at how long anything took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import bench as network_bench

from quantkit.core.errors import ModelError
from quantkit.core.ratios import ratio_interval, sittings_interval
from quantkit.runtimes import nbit, ort_cpu
from quantkit.verification import sittings
from quantkit.verification.sittings import TimedFile, interval_to_first, median_ms, time_in_sittings

FEEDS = {"x": np.zeros((1, 3, 10, 10), np.float32)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network_bench("residual", tmp_path_factory.mktemp("sittings")).float_file


def test_each_sitting_is_a_process_of_its_own_that_needs_the_runtime_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, real = [], subprocess.Popen

    class Spied(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *given: Any, **others: Any) -> None:
            super().__init__(*given, **others)
            processes.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Spied)
    found = time_in_sittings(ort_cpu, [TimedFile(file)] * 2, FEEDS, threads=1, seconds=1.0, rounds=2 * sittings.SITTINGS)
    monkeypatch.setattr(subprocess, "Popen", real)

    assert len(set(processes)) == sittings.SITTINGS and os.getpid() not in processes
    assert [sitting.shape for sitting in found] == [(2, 2)] * sittings.SITTINGS and all((sitting > 0).all() for sitting in found)
    code = f"import runpy, sys; runpy.run_path({str(ort_cpu.SITTING)!r}); print('torch' in sys.modules, 'quantkit' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.split() == ["False", "False"]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, sittings.LEAST), (1e6, sittings.MOST)])
def test_rounds_that_nobody_asked_for_are_bounded(
    file: Path, seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sittings, "SITTINGS", 1)
    assert time_in_sittings(ort_cpu, [TimedFile(file)], FEEDS, threads=2, seconds=seconds)[0].shape == (1, rounds)
    assert time_in_sittings(nbit, [TimedFile(file)], FEEDS, threads=1, seconds=seconds)[0].shape == (1, rounds)


def test_options_and_names_reach_the_session(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ran(command: list[str], **_: Any) -> Any:
        asked.append(json.loads(Path(command[-1]).read_text()))
        np.save(asked[-1]["output"], np.ones((2, 1)))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sittings.subprocess, "run", ran)
    files = [TimedFile(file), TimedFile(file, {"session.disable_prepacking": "1"}, ("picture",))]
    time_in_sittings(ort_cpu, files, FEEDS, threads=1, seconds=12.0, rounds=1)

    assert [row["options"] for row in asked[0]["files"]] == [{}, {"session.disable_prepacking": "1"}]
    assert [row["names"] for row in asked[0]["files"]] == [["x"], ["picture"]]
    assert len(asked) == 1 and asked[0]["rounds"] == 1


def test_a_file_that_cannot_be_timed_is_one_line(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"none")
    with pytest.raises(ModelError, match=r"does not load .*broken\.onnx"):
        time_in_sittings(ort_cpu, [TimedFile(file), TimedFile(broken)], FEEDS, threads=1, seconds=1.0, rounds=1)
    with pytest.raises(ModelError, match=f"{file.name} cannot be timed: .*picture"):
        time_in_sittings(ort_cpu, [TimedFile(file, names=("picture",))], FEEDS, threads=1, seconds=1.0, rounds=1)


def test_an_interval_is_over_sittings_or_over_the_rounds_of_the_only_one() -> None:
    one, two = np.array([[2.0, 4.0, 2.0], [1.0, 2.0, 9.0]]), np.array([[1.0, 1.0, 1.0], [0.6, 0.6, 0.6]])
    assert interval_to_first([one, two], 1) == sittings_interval(np.array([0.5, 0.6]))
    assert interval_to_first([one], 1) == ratio_interval(one[1], one[0])
    assert interval_to_first([one, two], 0) == (1, 1, 1)
    assert median_ms([one, two], 1) == 0.8
