"""The numbers of README and docs are borne by files of figures, or decided and the same in the code; one that is neither is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import claims  # noqa: E402
import page_figures  # noqa: E402


def test_every_number_has_a_source() -> None:
    assert list(claims.unborne()) == []


LINES = (
    "It is 0.43 of float's time.", "The file takes 12 % less.", "That is 1,234 bytes.", "It takes 3 minutes.", "Kept on 4 of 5 seeds.",
    "| ResNet44 | 0.37 |",
)  # fmt: skip
OTHERS = "`0.43` in code, [a page](0.43.md), arXiv 2306.04879 and Python 3.11 are none."


@pytest.mark.parametrize("line", LINES)
def test_a_number_that_is_typed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "docs").mkdir()
    for page, text in (("README.md", line), ("docs/other.md", OTHERS)):
        (tmp_path / page).write_text(f"# Title\n\n{text}\n")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "TYPED", {})
    (found,) = claims.unborne()

    assert found.startswith("README.md: ") and "has no source" in found


def test_what_was_decided_must_be_what_the_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "DECIDED", {**claims.DECIDED, "0.85": "0.9"})
    assert any("'0.85' is '0.9' in the code" in line for line in claims.unborne())


def test_a_row_that_no_page_needs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TYPED", {**claims.TYPED, "README.md": {**claims.TYPED["README.md"], "7 of 9": "nothing"}})
    assert any("nothing says '7 of 9' any more" in line for line in claims.unborne())


@pytest.mark.parametrize("file", ["spine.json", "accuracy.json"])
def test_a_figure_that_changes_makes_a_page_wrong(tmp_path: Path, file: str) -> None:
    """The other side of the same sentence: a page is compared with its files."""
    for path in page_figures.RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        if path.name == file:
            content["figures"] = {key: value + 1 if isinstance(value, float) else value for key, value in content["figures"].items()}
        (tmp_path / path.name).write_text(json.dumps(content))

    assert page_figures.differing(page_figures.Results(page_figures.RESULTS)) == {}
    assert page_figures.differing(page_figures.Results(tmp_path))


def test_the_counts_are_those_of_these_pages() -> None:
    figures = json.loads(claims.CLAIMS.read_text())["figures"]
    counted = sum(map(claims.borne, claims.pages())) + sum(map(len, claims.TYPED.values())) + len(claims.DECIDED)

    assert figures["readme.claims_checked"] == counted > 300 and figures["readme.claims_without_source"] == 0
    assert figures["planted_interactions.seen"] == 1 and figures["planted_interactions.false_alarms"] == 0
    assert figures["skipped_silently"] == 0 and figures["coverage.branch_percent"] >= 90
