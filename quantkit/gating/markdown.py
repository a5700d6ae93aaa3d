"""A gate as Markdown, for a job's summary or a comment on a change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKS = {"kept": "✅", "broken": "❌", "undecided": "❔"}


def to_markdown(gated: Mapping[str, Any]) -> str:
    """A heading that says whether it stands, a row a condition, what changed since the lock, and the notes."""
    standing = sum(row["stands"] for row in gated["findings"])
    against = f" against `{_cell(gated['reference'])}`" if gated["reference"] else ""
    lines = [
        f"### {'✅ Kept' if gated['kept'] else '❌ Not kept'}: `{_cell(gated['file'])}`",
        "",
        f"{standing} of {len(gated['findings'])} conditions stand{against}.",
        "",
        "| | condition | decision | measured |",
        "|---|---|---|---|",
        *(_row(row) for row in gated["findings"]),
    ]
    for title, rows in (("Changed since the lock", gated["changes"]), ("Notes", gated["notes"])):
        if rows:
            lines += ["", f"**{title}**", "", *(f"- {_cell(row)}" for row in rows)]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    cells = (MARKS[row["decision"]], row["condition"], row["verdict"], row["told"])
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that breaks out of no cell."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
