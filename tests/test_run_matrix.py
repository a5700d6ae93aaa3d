"""The tool that runs the tests under many settings: its settings, its reading of reports, what it keeps. No suite is run here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_matrix
from run_matrix import SETTINGS, Setting, ordered, read_junit

REPORT = """<testsuites><testsuite tests="4" errors="1" failures="1" skipped="1" time="2.5">
<testcase classname="tests.test_a" name="test_one"/>
<testcase classname="tests.test_a" name="test_two[x]"><failure message="no"/></testcase>
<testcase classname="tests.test_b" name="test_three"><error message="broke"/></testcase>
<testcase classname="tests.test_b" name="test_four"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_settings_are_eight_or_more_and_change_what_orders_sums() -> None:
    here = [setting for setting in SETTINGS if setting.torch is None]

    assert len(here) >= 8 and len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    for field in ("threads", "isa", "hash_seed", "order"):
        assert len({getattr(setting, field) for setting in here}) >= 2, field
    assert any(setting.torch for setting in SETTINGS)


def test_a_setting_is_what_its_environment_says() -> None:
    environment = Setting(2, "avx2", 7).environment()

    assert (environment["OMP_NUM_THREADS"], environment["PYTHONHASHSEED"]) == ("2", "7")
    assert (environment["ATEN_CPU_CAPABILITY"], environment["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")


def test_an_order_is_another_one_of_the_same_files() -> None:
    files = [run_matrix.ROOT / "tests" / f"test_{letter}.py" for letter in "dacb"]

    assert ordered(files, None) == [f"tests/test_{letter}.py" for letter in "abcd"]
    assert sorted(ordered(files, 1)) == ordered(files, None) != ordered(files, 1) == ordered(files, 1)


def test_a_report_is_read_as_pytest_writes_it(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(REPORT)

    assert read_junit(tmp_path / "junit.xml") == (1, 1, ("tests.test_a::test_two[x]", "tests.test_b::test_three"), 2.5)


def test_a_result_is_kept_for_the_same_code_and_made_again_for_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        report = next(part for part in command if part.startswith("--junitxml"))
        ran.append(command)
        Path(report.partition("=")[2]).write_text(REPORT)

    monkeypatch.setattr(run_matrix.subprocess, "run", run)
    monkeypatch.setattr(run_matrix, "describe", lambda: {"isa": "avx2"})
    for code, times, of_any_code in (("one", 1, False), ("one", 1, False), ("two", 1, True), ("two", 2, False)):
        monkeypatch.setattr(run_matrix, "code_here", lambda code=code: code)
        found = run_matrix.outcome(SETTINGS[0], [], tmp_path, of_any_code=of_any_code)
        assert found is not None and len(found.failed) == 2 and len(ran) == times


def test_only_the_files_with_failures_run_once_more_and_both_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(python: str, names: list[str], environment: dict[str, str], stem: Path) -> tuple[int, int, tuple[str, ...], float]:
        ran.append(names)
        return 9, 0, ("tests.test_b::test_y",), 2.0

    monkeypatch.setattr(run_matrix, "run_tests", run)
    failed = ("tests.test_a::test_x", "tests.test_b.TestIt::test_z", "tests.test_b::test_y")
    found = run_matrix.once_more(SETTINGS[0], run_matrix.Outcome("one", 20, 1, failed, 5.0, "avx2", "code"), tmp_path)
    assert ran == [["tests/test_a.py", "tests/test_b.py"]]
    assert (found.passed, found.failed, found.again, found.seconds) == (22, failed[2:], failed[:2], 7.0)
    assert json.loads((tmp_path / f"{SETTINGS[0].name}.json").read_text())["again"] == list(failed[:2])
    assert found.code == "code" and found.again_code == run_matrix.code_here()
    clean = run_matrix.Outcome("two", 20, 1, (), 5.0, "avx2", "code")
    assert run_matrix.once_more(SETTINGS[1], clean, tmp_path) is clean and len(ran) == 1


def test_counts_stand_beside_what_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "first-hour.json"
    rows = [{"name": "a", "failed": ["u"], "code": "old"}, {"name": "c", "failed": [], "code": "old"}]
    path.write_text(json.dumps({"figures": {"stale_figures": 0}, "matrix": rows}))
    monkeypatch.setattr(run_matrix.stale_figures, "COUNTS", path)
    monkeypatch.setattr(run_matrix.stale_figures.write_figures, "__defaults__", (path,))
    outcomes = [run_matrix.Outcome(name, 3, 0, failed, 1.0, "avx2", run_matrix.code_here()) for name, failed in (("a", ("t",)), ("b", ()))]
    run_matrix.write({row.name: row for row in outcomes})
    written = json.loads(path.read_text())

    counts = {"matrix.settings": 3, "matrix.failures": 1, "matrix.rows_of_older_code": 1}
    assert written["figures"] == {"stale_figures": 0, **counts}
    assert {row["name"]: row["failed"] for row in written["matrix"]} == {"a": ["t"], "c": [], "b": []}
