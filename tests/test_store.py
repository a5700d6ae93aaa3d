import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from quantkit.core.errors import ContractError, OutputError
from quantkit.core.spec import parse_scheme
from quantkit.core.store import Run, fingerprint, write_atomically

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Point:
    x: float


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run") as run:
        yield run


@contextmanager
def small_disk():
    """No file can grow beyond 1000 bytes: a real write error in the middle of a file. (No fixture: pytest's own log is a file too.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_fingerprint_is_the_same_in_every_process():
    code = "from quantkit.core.store import fingerprint; print(fingerprint({'b': [1, 2.5, None], 'a': 'é'}, True))"

    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }

    assert seen == {fingerprint({"b": [1, 2.5, None], "a": "é"}, True)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (np.float64(0.1), 0.1),
        (np.int32(3), 3),
        (np.arange(6).reshape(2, 3)[:, ::2], np.array([[0, 2], [3, 5]])),
        (parse_scheme("w8a8"), parse_scheme("w8a8")),
    ],
    ids=["key order", "tuple and list", "numpy float", "numpy int", "strides", "dataclass"],
)
def test_equal_things_have_equal_fingerprints(one, other):
    assert fingerprint(one) == fingerprint(other)


def test_different_things_have_different_fingerprints():
    things = [
        *(1, 1.0, True, "1", None, "None", [], {}, [1], [[1]], {"x": 1.0}, b"1", Point(1.0), Point(2.0), float("nan"), -0.0, 0.0),
        *(np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.ones(2), parse_scheme("w8a8"), parse_scheme("w4a8"), 1e-300),
    ]

    assert len({fingerprint(thing) for thing in things}) == len(things)
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint(["a", "b"])


@pytest.mark.parametrize(
    "thing",
    [Path("a"), {1: 2}, {1, 2}, object(), Point, np.array([None])],
    ids=["path", "number as key", "set", "object", "class", "array of objects"],
)
def test_what_has_no_stable_form_is_refused(thing):
    with pytest.raises(ContractError, match="a fingerprint of"):
        fingerprint({"deep": [thing]})


def test_an_atomic_write_appears_whole_with_ordinary_permissions(tmp_path):
    target = tmp_path / "model.onnx"
    with write_atomically(target) as temporary:
        assert (temporary.parent, temporary.suffix) == (target.parent, ".onnx")
        temporary.write_text("new")
        assert not target.exists()

    plain = tmp_path / "plain"
    plain.write_text("")
    assert target.read_text() == "new"
    assert target.stat().st_mode == plain.stat().st_mode
    assert files(tmp_path) == ["model.onnx", "plain"]


def test_an_atomic_write_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append((os.fstat(number).st_size, files(tmp_path))))

    with write_atomically(tmp_path / "file") as temporary:
        temporary.write_text("new")

    assert seen == [(3, [temporary.name])]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit], ids=lambda kind: kind.__name__)
def test_an_error_or_ctrl_c_leaves_the_old_file_and_nothing_else(tmp_path, raised):
    target = tmp_path / "file"
    target.write_text("old")

    with pytest.raises(raised), write_atomically(target) as temporary:
        temporary.write_text("half")
        raise raised

    assert target.read_text() == "old"
    assert files(tmp_path) == ["file"]


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path):
    with small_disk(), pytest.raises(OutputError) as caught, write_atomically(tmp_path / "file") as temporary:
        temporary.write_bytes(b"x" * 5000)

    assert str(caught.value).startswith(f"cannot write {tmp_path / 'file'}: {os.strerror(errno.EFBIG)}; wanted")
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == []


def test_a_folder_that_is_absent_or_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "absent" / "out", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot write"), write_atomically(target) as temporary:
            temporary.write_text("x")
    with pytest.raises(OutputError, match="cannot write"), Run(tmp_path / "file" / "run"):
        pass


def test_a_target_that_is_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()

    with pytest.raises(OutputError, match="cannot write"), write_atomically(tmp_path / "folder") as temporary:
        temporary.write_text("x")

    assert files(tmp_path) == ["folder"]


def test_a_stage_is_found_again_under_its_whole_key_only(run):
    key = fingerprint("model", 1)
    run.put("cost", key, {"values": [1.5, None]})

    again = Run(run.folder)

    assert again.get("cost", key) == {"values": [1.5, None]}
    assert again.get("score", key) is None
    assert again.get("cost", fingerprint("model", 2)) is None
    assert again.get("cost", key[:16] + "0" * 48) is None


def test_a_damaged_stage_counts_as_absent(run):
    key = fingerprint(1)
    run.put("cost", key, 1)
    run.put_arrays("cost", key, {"a": np.ones(3)})
    for file in (run.folder / "stages").iterdir():
        file.write_bytes(file.read_bytes()[:-20])

    assert (run.get("cost", key), run.get_arrays("cost", key)) == (None, None)


def test_what_is_no_json_is_our_fault_and_leaves_nothing(run):
    for data in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(ContractError, match="the result of stage 'cost' is not JSON"):
            run.put("cost", fingerprint(1), data)
        with pytest.raises(ContractError, match="a record of the journal is not JSON"):
            run.append(data)

    assert files(run.folder / "stages") == []


def test_arrays_survive_under_any_name(run):
    key = fingerprint(1)
    arrays = {"file": np.arange(3, dtype=np.int8), "allow_pickle": np.zeros((0, 2), np.float32), "layer.0/weight": np.array([[1.5]])}
    run.put_arrays("ranges", key, arrays)

    again = run.get_arrays("ranges", key)

    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)
    assert run.get_arrays("ranges", fingerprint(2)) is None
    assert run.get_arrays("ranges", key[:16] + "0" * 48) is None


def test_arrays_of_objects_are_refused(run):
    with pytest.raises(ContractError, match="holds objects"):
        run.put_arrays("ranges", fingerprint(1), {"a": np.array([None])})


def test_a_full_disk_leaves_the_stages_as_they_were(run):
    with small_disk(), pytest.raises(OutputError, match="cannot write"):
        run.put("cost", fingerprint(1), "x" * 5000)
    with small_disk(), pytest.raises(OutputError, match="cannot write"):
        run.put_arrays("cost", fingerprint(1), {"a": np.ones(5000)})

    assert files(run.folder / "stages") == []


def test_the_journal_keeps_its_order_and_forgets_a_torn_line(run):
    run.append({"drop": 0.5})
    run.append({"drop": 0.25})
    with (run.folder / "measured.jsonl").open("a") as file:
        file.write('{"drop": 0.1')

    assert run.records() == ({"drop": 0.5}, {"drop": 0.25})
    run.append({"drop": 0.125})
    assert run.records() == ({"drop": 0.5}, {"drop": 0.25}, {"drop": 0.125})


def test_a_fresh_run_has_an_empty_journal(run):
    assert run.records() == ()


def test_a_full_disk_leaves_the_journal_as_it_was(run):
    run.append({"drop": 0.5})

    with small_disk(), pytest.raises(OutputError, match="cannot write"):
        run.append({"text": "x" * 5000})

    assert run.records() == ({"drop": 0.5},)
    run.append({"drop": 0.25})
    assert (run.folder / "measured.jsonl").read_text().count("\n") == 2


def test_a_journal_line_that_is_no_json_is_named(run):
    (run.folder / "measured.jsonl").write_text('{"drop": 1}\nrubbish\n{"drop": 2}\n')

    with pytest.raises(OutputError, match="line 2 is not JSON"):
        run.records()


def test_every_journal_line_is_on_the_disk_before_append_returns(run, monkeypatch):
    synchronised = []
    monkeypatch.setattr(os, "fsync", lambda number: synchronised.append(os.fstat(number).st_size))

    run.append({"drop": 0.5})

    assert synchronised == [len('{"drop": 0.5}\n')]


def test_writing_needs_the_lock_and_reading_does_not(tmp_path):
    run = Run(tmp_path / "run")

    for write in (lambda: run.put("cost", "k", 1), lambda: run.put_arrays("cost", "k", {}), lambda: run.append({})):
        with pytest.raises(ContractError, match="without its lock"):
            write()
    assert (run.get("cost", "k"), run.get_arrays("cost", "k"), run.records()) == (None, None, ())
    assert not run.folder.exists()


def holder(folder):
    """A process that holds a run until its stdin closes."""
    code = f"""
        import sys
        from pathlib import Path
        from quantkit.core.store import Run
        with Run(Path({str(folder)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_on_one_run_is_refused_in_words(tmp_path):
    process = holder(tmp_path / "run")

    with pytest.raises(OutputError) as caught, Run(tmp_path / "run"):
        pass

    assert str(caught.value).startswith(f"run {tmp_path / 'run'} is in use by process {process.pid}; wanted one process per run")
    process.communicate()
    with Run(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_and_its_torn_files_go(tmp_path):
    process = holder(tmp_path / "run")
    (tmp_path / "run" / "stages" / ".cost-0123.json").write_text("half")
    process.kill()
    process.communicate()

    with Run(tmp_path / "run") as run:
        assert (run.folder / "lock").read_text() == f"{os.getpid()}\n"
        assert files(run.folder / "stages") == []


def test_a_lock_that_the_disk_has_no_room_for_is_one_line_and_is_let_go(tmp_path, monkeypatch):
    def full(number, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No space left"):
        patch.setattr(os, "ftruncate", full)
        with Run(tmp_path / "run"):
            pass

    with Run(tmp_path / "run"):
        pass


def test_a_run_may_be_entered_again_after_it_ended(tmp_path):
    run = Run(tmp_path / "run")
    for number in range(2):
        with run:
            run.put("stage", fingerprint(number), number)

    assert [run.get("stage", fingerprint(number)) for number in range(2)] == [0, 1]
    assert json.loads(next((run.folder / "stages").glob("stage-*")).read_text())["stage"] == "stage"
