"""What a run directory says of itself, and what may be removed from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toys
from test_pipeline import allocate, data, hurry, remember

from quantkit import pipeline
from quantkit.cli import main
from quantkit.core.errors import OutputError
from quantkit.core.progress import Silent
from quantkit.core.store import Run
from quantkit.runs.history import changes, shortened
from quantkit.runs.maintenance import ALWAYS, STAGES, Kept, clean, read_status
from quantkit.runs.progress_file import Doing, ProgressFile, read_progress
from quantkit.runs.stored_plan import read_plan
from quantkit.runs.workbench import Workbench
from quantkit.settings.arguments import Arguments
from quantkit.settings.request import resolve


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was asked twice: the second time for other ranges and a tighter promise."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        remember(patch)
        folder = tmp_path_factory.mktemp("kept") / "run"
        allocate(folder)
        allocate(folder, observer="minmax", max_drop=9.0)
        yield folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def names(rows: tuple[Kept, ...]) -> list[str]:
    return [row.stage for row in rows]


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_the_status_tells_where_a_job_is_while_it_works(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of 8 steps in 10 seconds; nothing of it stays, and what the process uses is nobody's leftover."""
    clock = iter([100.0, *[110.0] * 20])
    monkeypatch.setattr("quantkit.runs.progress_file.time.monotonic", lambda: next(clock))
    (run / ".scratch-mine").mkdir()
    with Run(run), ProgressFile(Silent(), run) as progress, progress.stage("isolated divergences", 8, "batches") as advance:
        advance(3)
        monkeypatch.setattr("quantkit.runs.progress_file.EVERY_S", 0.0)
        advance(1)
        found = read_status(run)
        assert main(["status", str(run)]) == 0
        assert found.process == os.getpid() and found.left_over == ()
        assert found.doing == Doing("isolated divergences", 4, 8, "batches", 10.0, 10.0)
    shown = capsys.readouterr().out
    assert "now: isolated divergences, 4 of 8 batches, after 10 s, about 10 s left of it" in shown
    after = read_status(run)
    assert after.doing is None and after.process is None and not (run / "progress.json").exists()
    assert [row.path for row in after.left_over] == [".scratch-mine"]


def test_a_progress_file_is_written_at_most_every_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    times = iter([0.0, *(step / 2 for step in range(60))])
    monkeypatch.setattr("quantkit.runs.progress_file.time.monotonic", lambda: next(times))
    with ProgressFile(Silent(), tmp_path) as progress, progress.stage("s", 20) as advance:
        for _ in range(10):
            advance(1)
            found = read_progress(tmp_path)
            written.append(found.done if found else 0)
    assert len(set(written)) < 10
    (tmp_path / "progress.json").write_text("{}")
    assert read_progress(tmp_path) is None


def test_the_status_tells_what_is_kept_how_long_it_took_and_that_nothing_is_to_do(run: Path) -> None:
    status = read_status(run)

    assert set(STAGES) == set(names(status.kept)) - {"interactions", "plan_weights"}
    assert [row.stage for row in status.kept if row.stage in STAGES] == list(STAGES)
    assert all(row.bytes > 0 and (row.seconds or 0) >= 0 for row in status.kept)
    assert (status.requests, status.command, status.finished, status.process) == (2, "allocate", True, None)
    assert status.to_do == ALWAYS and "search" in status.steps and "capture" in status.steps
    assert status.candidates > 0 and status.candidates_of_others > 0  # other weights are other candidates
    assert status.bytes == sum(len(content) for content in files(run).values())


def test_what_is_stale_is_told_with_the_input_that_it_hung_on(run: Path) -> None:
    status = read_status(run)
    why = {row.stage: row.why for row in status.stale}

    assert status.changed == ("max drop (10 → 9)", "observer (mse → minmax)")
    assert {"weights", "scores", "latency", "file_bytes", "front", "accuracy", "result"} <= set(why)
    assert not {"ranges", "float_on_search"} & set(why)
    for stage in ("weights", "scores", "latency", "file_bytes", "front"):
        assert why[stage] == ("observer (mse → minmax)",), stage  # and not the promise
    assert set(why["result"]) == set(status.changed)


def test_what_is_still_to_do_is_what_a_next_request_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("quantkit.pipeline.search", interrupted)
        allocate(tmp_path / "run")
    status = read_status(tmp_path / "run")
    made: list[str] = []
    met = Workbench._met

    def spied(bench: Workbench, stage: str, *rest: Any, **told: Any) -> None:
        met(bench, stage, *rest, **told)
        made.extend([stage] if told["made"] else [])

    monkeypatch.setattr(Workbench, "_met", spied)
    allocate(tmp_path / "run")

    assert not status.finished
    searched = "search (0 candidates are measured)"
    assert status.to_do == ("capture", searched, "finalists", "accuracy", "file_latency", "simulation", "result")
    assert made == [stage for stage in status.to_do if stage in STAGES]


def test_a_run_of_measure_has_less_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pipeline.measure(resolve(toys.trained(), Arguments(data=data(), minimize="bytes", run=folder), promised=False), Silent())
    status = read_status(folder)

    assert status.command == "measure" and status.finished and status.candidates > 0
    assert names(status.stale) == [] and "result" not in names(status.kept)
    assert not {"accuracy", "result"} & set(status.to_do)


def test_clean_removes_what_is_stale_and_torn_and_nothing_that_the_result_needs(run: Path) -> None:
    (run / ".scratch-left").mkdir()
    (run / ".scratch-left" / "candidate.onnx").write_bytes(b"x" * 100)
    for name in (".model-0123abcd.onnx", ".quantkit.lock-0123abcd.json", "stages/.scores-0123abcd.json"):
        (run / name).write_bytes(b"torn")
    (run / "float-01234567.onnx").write_bytes(b"another network's")
    (run / "notes.txt").write_text("the user's own")
    before, stale = files(run), {row.path for row in read_status(run).stale}
    promised = {row.path for row in clean(run, dry_run=True)}
    assert files(run) == before

    removed = {row.path for row in clean(run, dry_run=False)}
    left = files(run)

    assert removed == promised and stale < removed
    torn = {".scratch-left", ".model-0123abcd.onnx", ".quantkit.lock-0123abcd.json", "stages/.scores-0123abcd.json"}
    assert removed - stale == torn | {"float-01234567.onnx"}
    assert {path for path in before if path.split("/")[0] not in removed and path not in removed} == set(left)
    assert all(before[path] == content for path, content in left.items() if path != "lock")
    assert read_plan(run).schemes and main(["pick", str(run), "--max-drop", "20", "--json"]) == 0
    assert clean(run, dry_run=False) == ()


def test_after_clean_the_same_request_repeats_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(run, dry_run=False)
    monkeypatch.setattr("quantkit.pipeline._allocate", None)  # it would be called for whatever is not kept

    assert allocate(run, observer="minmax", max_drop=9.0).kept


def test_the_last_result_outlives_a_request_that_was_cut_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("quantkit.pipeline.cost_groups", interrupted)
        allocate(run, observer="percentile")
    clean(run, dry_run=False)
    monkeypatch.setattr("quantkit.pipeline._allocate", None)

    assert allocate(run, observer="minmax", max_drop=9.0).kept


def test_a_run_in_use_is_not_cleaned_and_is_said_to_be(run: Path) -> None:
    with Run(run):
        assert read_status(run).process == os.getpid()
        with pytest.raises(OutputError, match="in use"):
            clean(run, dry_run=False)


def test_a_run_without_a_history_loses_no_stage(run: Path) -> None:
    (run / "history.jsonl").unlink()
    before = files(run)

    assert clean(run, dry_run=False) == () and {**files(run), "lock": b""} == {**before, "lock": b""}
    assert read_status(run).command is None and len(read_status(run).kept) > len(STAGES)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for command in ("status", "clean"):
        assert main([command, str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_commands_print_what_there_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "request 2, allocate of" in shown and "finished" in shown
    assert "changed since the previous request: max drop (10 → 9), observer (mse → minmax)" in shown
    assert "the last request would still compute: capture" in shown

    assert main(["status", str(run), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert main(["clean", str(run), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {row["path"] for row in status["stale"]} == set(planned["removed"]) and planned["dry_run"]
    assert main(["clean", str(run)]) == 0
    assert f"removed {len(planned['removed'])} files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [("mse", "mse"), (3, "3"), (None, "None"), (("w8a8", "fp32"), "('w8a8', 'fp32')"), (0.5, "0.5")],
    ids=["text", "number", "none", "schemes", "share"],
)
def test_short_values_are_told_as_they_are(value: Any, text: str) -> None:
    assert shortened(value) == text


@pytest.mark.parametrize("value", ["a" * 40, "#1", {"a": 1}, b"1", ""], ids=["long", "like a hash", "mapping", "bytes", "empty"])
def test_other_values_are_told_apart_by_a_hash(value: Any) -> None:
    assert shortened(value).startswith("#") and shortened(value) == shortened(value) != shortened("b" * 40)


def test_changes_name_both_values_unless_they_are_hashes() -> None:
    assert changes({"a": "1", "b": "#1", "c": "x"}, {"a": "2", "b": "#2", "c": "x", "d": "y"}) == ["a (1 → 2)", "b", "d (not given → y)"]
