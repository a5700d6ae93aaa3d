"""The front drawn in the terminal by plotext, where that is installed (`pip install quantkit[plot]`); the table has the same numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from quantkit.core.spec import Allocation

WIDTH, HEIGHT = 90, 20
UNITS = {"latency": ("ms", 1.0), "bytes": ("kB", 1e-3), "bops": ("Gbops", 1e-9), "average_bits": ("bits", 1.0)}


def draw_front(front: Mapping[str, Any], picked: Allocation | None, minimize: str) -> str | None:
    """Predicted loss against the minimized cost: the front as a line, measured plans as crosses, the picked one as a star.

    None where plotext is not installed, or nothing spans a plot.
    """
    rows = [*front["plans"], *(row for row in front["measured"] if row["distance"] is not None)]
    if find_spec("plotext") is None or len({row["predicted_loss"] for row in rows}) < 2:
        return None
    name = minimize if minimize in UNITS else "bytes"
    unit, scale = UNITS[name]
    plot = importlib.import_module("plotext")
    figure = plot.figure.clear()
    figure.plot_size(WIDTH, HEIGHT)

    def points(chosen: list[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        pairs = sorted((float(row["uses"][name]) * scale, float(row["predicted_loss"])) for row in chosen)
        return [cost for cost, _ in pairs], [loss for _, loss in pairs]

    drawn: list[tuple[str, str, list[Mapping[str, Any]]]] = [
        ("front", "braille", list(front["plans"])),
        ("measured", "x", [row for row in rows if row["measured"]]),
        ("picked", "*", [row for row in rows if row["allocation"] == picked][:1]),
    ]
    for label, marker, chosen in drawn:
        if chosen:
            signal = figure.signal(*points(chosen), marker=marker).label(label)
            figure.draw(signal.lines() if label == "front" else signal)
    figure.label(f"{name.replace('_', ' ')}, {unit}", "x")
    figure.label(f"predicted loss, {front['unit']['loss']}", "y")
    return str(plot.uncolorize(figure.build()))
