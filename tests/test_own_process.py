"""The process that files are timed in: another than the command's, and gone with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from quantkit.allocation.costs.measured import layer_ms, pair_ms
from quantkit.core.environment import describe
from quantkit.core.errors import ClusterError, ModelError
from quantkit.runs.own_process import OwnProcess, own_process
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.timing import Timing

FEEDS = {"x": np.zeros((1, 3, toys.SIDE, toys.SIDE), np.float32)}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnProcess]:
    with own_process(tmp_path_factory.mktemp("timed")) as found:
        yield found


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.candidates(toys.toybox(), tmp_path_factory.mktemp("toy")).float_file


def test_it_is_this_machine_in_another_process_and_stays_the_same(process: OwnProcess) -> None:
    first, again = (process.run(pid, [], None) for _ in range(2))
    assert first == again != os.getpid()
    assert process.is_here and process.host == describe()


def test_a_task_has_its_files_where_they_are_and_a_folder_that_goes(process: OwnProcess, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("read")
    monkeypatch.chdir(tmp_path)
    text, folder = process.run(reads, [Path("file")], "left")
    assert text == "read" and folder.parent == process._folder and not folder.exists()


def test_files_are_timed_there_by_the_runtime_that_is_asked_for(process: OwnProcess, float_file: Path) -> None:
    timing = Timing(ort_cpu, {}, 1, FEEDS)
    times = process.run(pair_ms, [float_file, float_file], timing)
    assert times.shape == (2, 30) and (times > 0).all()
    assert set(process.run(layer_ms, [float_file], (timing, toys.toybox().captured.graph))) >= {"stem", "down", "classifier"}


def test_an_error_there_is_raised_here_and_the_next_task_is_answered(process: OwnProcess, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"none")
    with pytest.raises(ModelError, match=r"does not load .*broken\.onnx"):
        process.run(pair_ms, [broken, broken], Timing(ort_cpu, {}, 1, FEEDS))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        process.run(reads, [Path("/nowhere/file")], "")
    assert process.run(pid, [], None) != os.getpid()


def test_what_is_printed_there_is_no_answer(process: OwnProcess) -> None:
    assert process.run(prints, [], "not a pickle") == "answer"


def test_a_process_that_is_killed_is_one_line_and_another_one_begins(process: OwnProcess) -> None:
    with pytest.raises(ClusterError, match="the process that times files ended with -9; wanted one that stays; next: run the same command"):
        process.run(dies, [], None)
    assert process.run(pid, [], None) != os.getpid()


def test_it_ends_with_the_command(tmp_path: Path) -> None:
    with own_process(tmp_path) as found:
        number = found.run(pid, [], None)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def pid(_: Sequence[Path], __: Path, job: object) -> int:
    return os.getpid()


def reads(paths: Sequence[Path], folder: Path, job: str) -> tuple[str, Path]:
    (folder / "left").write_text(job)
    return paths[0].read_text(), folder


def prints(_: Sequence[Path], __: Path, job: str) -> str:
    print(job, flush=True)
    return "answer"


def dies(_: Sequence[Path], __: Path, job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
