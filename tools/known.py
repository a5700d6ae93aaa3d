"""Figures that a bench adds to: those of another processor are no neighbours of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.environment import describe


def known_figures(path: Path) -> dict[str, Any]:
    """The figures in `path`, none if there is no such file. Ends the program where they were measured under another ISA."""
    if not path.exists():
        return {}
    stored, here = json.loads(path.read_text()), describe()["isa"]
    if (there := stored["environment"]["isa"]) != here:
        raise SystemExit(f"{path} holds figures of {there}, and here is {here}: give another --output, or measure all anew")
    figures: dict[str, Any] = stored["figures"]
    return figures
