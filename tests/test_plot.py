"""The front in the terminal: every kind of point where it belongs, and nothing where there is nothing to draw it with."""

from __future__ import annotations

from typing import Any

import pytest

from quantkit.cli import plot
from quantkit.cli.plot import HEIGHT, draw_front


def row(size: float, loss: float, measured: bool = False, distance: float | None = 0.0) -> dict[str, Any]:
    look = {"drop": 1.0} if measured else None
    uses = {"bytes": size, "latency": size / 1e5}
    return {"uses": uses, "predicted_loss": loss, "measured": look, "allocation": {"a": str(size)}, "distance": distance}


FRONT = {
    "plans": [row(1e5, 0.4), row(2e5, 0.2, measured=True), row(4e5, 0.0)],
    "measured": [row(3e5, 0.3, measured=True)],
    "unit": {"loss": "nats"},
}


def test_the_front_is_a_line_measured_plans_are_crosses_and_the_picked_one_a_star() -> None:
    pytest.importorskip("plotext")
    drawn = draw_front(FRONT, {"a": "400000.0"}, "bytes")
    other = draw_front(FRONT, None, "latency")

    assert drawn is not None and other is not None
    lines = [line.rstrip().removesuffix("│") for line in drawn.splitlines()]
    crosses = [line for line in lines if "x" in line.replace("x measured", "") and "predicted" not in line]
    assert len(drawn.splitlines()) == HEIGHT and "bytes, kB" in drawn and "predicted loss, nats" in drawn and "\x1b" not in drawn
    assert [line[:4] for line in lines if line.endswith("*")] == ["0.00"] and len(crosses) == 2
    assert "latency, ms" in other and "*" not in other and "picked" not in other


def test_nothing_is_drawn_without_the_library_or_where_nothing_spans_a_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw_front({**FRONT, "plans": [row(1e5, 0.4)], "measured": []}, None, "bytes") is None
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert draw_front(FRONT, None, "bytes") is None
