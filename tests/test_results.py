"""Figures and the pages that show them: numbers are the JSON's, and a file says which code it describes and how old that is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools import fingerprints, known, page_figures, results, stale_figures

ROOT = Path(__file__).resolve().parent.parent
TOOL = "import quantkit.one\nquantkit.one.f()\n"
SOURCES = {
    "tools/bench.py": TOOL,
    "quantkit/pipeline.py": "from quantkit.one import f\n\n\ndef job() -> int:\n    return f()\n",
    "quantkit/one.py": "def f() -> int:\n    return 1\n",
    "quantkit/unused.py": "def g() -> int:\n    return 2\n",
}
FIGURES = fingerprints.Figures("tools/bench.py", ("quantkit/pipeline.py",))


def code(changes: dict[str, str] | None = None) -> fingerprints.Code:
    return fingerprints.code_of({**SOURCES, **(changes or {})}, FIGURES, "abc")


@pytest.mark.parametrize(
    "text",
    [
        "def f() -> int:\n    return 1  # a comment\n",
        'def f() -> int:\n    """A docstring."""\n    return (1)\n',
        "import os\nfrom quantkit.unused import g\n\n\ndef f() -> int:\n    import sys\n    return 1\n",
    ],
    ids=["comment", "docstring", "imports"],
)
def test_words_formatting_and_imports_change_no_hash(text: str) -> None:
    assert fingerprints.hash_of(text) == fingerprints.hash_of(SOURCES["quantkit/one.py"])


def test_other_code_has_another_hash() -> None:
    assert fingerprints.hash_of("def f() -> int:\n    return 2\n") != fingerprints.hash_of(SOURCES["quantkit/one.py"])
    assert fingerprints.hash_of('x = "a"\n') != fingerprints.hash_of('x = "b"\n')
    assert fingerprints.hash_of("x = None\n") != fingerprints.hash_of("x = 0\n")


def test_a_module_that_moves_changes_no_fingerprint() -> None:
    moved = {path: text.replace("quantkit.one", "quantkit.room.first") for path, text in SOURCES.items() if path != "quantkit/one.py"}
    moved["quantkit/room/first.py"] = SOURCES["quantkit/one.py"]
    moved["tools/bench.py"] = "from quantkit.room.first import f as of\nquantkit.one.f()\n"

    assert fingerprints.code_of(moved, FIGURES, "").fingerprint == code().fingerprint


def test_only_what_the_tool_reaches_counts() -> None:
    assert code({"quantkit/unused.py": "x = 3\n"}).fingerprint == code().fingerprint
    changed = code({"quantkit/one.py": "def f() -> int:\n    return 2\n"})
    assert changed.fingerprint != code().fingerprint and code().changed_percent(changed) == 34  # one of three


def test_what_a_figure_runs_must_be_there() -> None:
    with pytest.raises(KeyError, match="gone"):
        fingerprints.code_of(SOURCES, replace(FIGURES, runs=("quantkit/gone.py",)), "")


def test_a_fingerprint_survives_json() -> None:
    assert fingerprints.Code.from_json(json.loads(json.dumps(code().to_json()))) == code()


def age(admitted: dict[str, Any], text: str = "def f() -> int:\n    return 2\n") -> stale_figures.Age:
    return stale_figures.ages({"spine.json": code()}, {"spine.json": code({"quantkit/one.py": text})}, admitted)[0]


def test_older_than_is_admitted_is_stale() -> None:
    entry = {"fingerprint": code().fingerprint, "changed_percent": 34}
    assert age({}).is_stale
    assert not age({"spine.json": entry}).is_stale
    assert age({"spine.json": entry | {"changed_percent": 33}}).is_stale
    assert age({"spine.json": entry | {"fingerprint": "of other figures"}}).is_stale
    assert not age({}, SOURCES["quantkit/one.py"]).is_stale
    assert stale_figures.ages({"spine.json": None}, {"spine.json": code()}, {})[0].is_stale


def test_the_counts_keep_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "first-hour.json"
    path.write_text(json.dumps({"figures": {"matrix.failures": 0}, "note": "theirs"}))
    stale_figures.write_counts([age({}), age({}, SOURCES["quantkit/one.py"])], path)
    assert json.loads(path.read_text()) == {
        "figures": {"matrix.failures": 0, "stale_figures": 1, "admitted_figures": 0}, "note": "theirs",
    }  # fmt: skip


def test_every_file_of_figures_names_its_code() -> None:
    assert [file for file, found in stale_figures.stored().items() if found is None] == []
    uncounted = {"admitted.json", "structure.json", "first-hour.json", "claims.json"}
    there = {path.name for path in fingerprints.RESULTS.glob("*.json")} - uncounted
    assert there <= set(fingerprints.FIGURES)


def test_every_admission_is_of_the_file_that_is_there_and_gives_a_reason() -> None:
    codes = stale_figures.stored()
    for file, entry in stale_figures.admissions().items():
        found = codes[file]
        assert found is not None and entry["fingerprint"] == found.fingerprint and entry["reason"] and entry["date"]


def test_pages_are_what_their_figures_say() -> None:
    assert page_figures.differing(page_figures.Results(page_figures.RESULTS)) == {}, "run python tools/page_figures.py"


def test_every_block_stands_on_a_page() -> None:
    marked = {name for page in page_figures.pages() for name in page_figures.MARK.findall(page.read_text())}
    assert marked == set(page_figures.BLOCKS)


@pytest.mark.parametrize("figure", ["mobilenet_v2.drop_mean", "squeezenet1_1.kept_sure", "resnet44.dominated_by_uniform"])
def test_a_figure_that_changes_makes_readme_differ(tmp_path: Path, figure: str) -> None:
    for path in page_figures.RESULTS.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    stored = json.loads((tmp_path / "spine.json").read_text())
    stored["figures"][figure] += 1
    (tmp_path / "spine.json").write_text(json.dumps(stored))

    assert ROOT / "README.md" in page_figures.differing(page_figures.Results(tmp_path))


def test_readme_numbers_typed_by_hand_are_found() -> None:
    text = (ROOT / "README.md").read_text()
    typed = re.sub(r"\d+ of (\d+) \|", r"9 of \1 |", text, count=1)
    assert typed != text
    assert page_figures.filled(typed, page_figures.Results(page_figures.RESULTS)) == text


def test_a_part_measured_alone_keeps_the_older_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, new = tmp_path / "spine.json", code({"quantkit/one.py": "x = 1\n"})
    monkeypatch.setattr(known, "code_here", lambda file: code())
    known.write_figures(path, "spine.json", {"a": 1}, whole=False)
    monkeypatch.setattr(known, "code_here", lambda file: new)
    known.write_figures(path, "spine.json", {"a": 1, "b": 2}, whole=False)
    assert json.loads(path.read_text())["code"] == code().to_json()
    known.write_figures(path, "spine.json", {"a": 2, "b": 2})
    assert json.loads(path.read_text())["code"] == new.to_json()


def test_what_is_up_to_date_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "code_here", lambda file: code())
    path = tmp_path / "spine.json"
    assert results.step_of("spine.json", tmp_path).command
    path.write_text(json.dumps({"figures": {}, "code": code().to_json()}))
    assert results.step_of("spine.json", tmp_path).why == "up to date"
    path.write_text(json.dumps({"figures": {}, "code": code({"quantkit/one.py": "x = 1\n"}).to_json()}))
    assert results.step_of("spine.json", tmp_path).command
    assert "without VNNI" in results.step_of("targets.json", tmp_path, vnni=True).why
    assert "with VNNI" in results.step_of("targets-vnni.json", tmp_path, vnni=False).why


@pytest.mark.parametrize("ends", [0, 1])
def test_a_file_is_replaced_only_when_its_tool_ended_well(tmp_path: Path, ends: int) -> None:
    step = results.Step("spine.json", ("tool",), tmp_path / "runs" / "spine.json")
    (tmp_path / "spine.json").write_text("old")

    def run(_: Sequence[str]) -> int:
        step.output.write_text("new")
        return ends

    assert results.measured(step, run, tmp_path) == (ends == 0)
    assert (tmp_path / "spine.json").read_text() == ("old" if ends else "new")
