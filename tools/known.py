"""Files of figures: read so that those of another processor are no neighbours, written with the machine and the code that they describe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fingerprints import ROOT, Code, code_here

from quantkit.core.environment import describe
from quantkit.core.store import write_atomically


def known_figures(path: Path, *, any_isa: bool = False) -> dict[str, Any]:
    """The figures in `path`, none if there is no such file.

    Ends the program where they were measured under another ISA, unless they are of no processor (`any_isa`).
    """
    if not path.exists():
        return {}
    stored, here = json.loads(path.read_text()), describe()["isa"]
    if (there := stored["environment"]["isa"]) != here and not any_isa:
        raise SystemExit(f"{path} holds figures of {there}, and here is {here}: give another --output, or measure all anew")
    figures: dict[str, Any] = stored["figures"]
    return figures


def run_folder(name: str, file: str) -> Path:
    """Where the runs behind docs/results/`file` lie: a folder for each state of the code, so that none is taken for another's."""
    return ROOT / "runs" / f"{name}-{code_here(file).fingerprint}"


def write_figures(path: Path, file: str, figures: Mapping[str, Any], *, whole: bool = True, **beside: Any) -> None:
    """Write figures of the kind of docs/results/`file`, with this machine and this code.

    Where they are not the whole, and `path` has some of other code, the file keeps that code's fingerprint: it is as old as its oldest
    part.
    """
    code = code_here(file)
    if not whole and path.exists():
        stored = json.loads(path.read_text()).get("code")
        code = Code.from_json(stored) if stored else Code("", frozenset())
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"figures": dict(figures), "environment": describe(), "code": code.to_json(), **beside}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
