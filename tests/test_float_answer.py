"""What is said where the float network ships never contradicts the table beside it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from quantkit.runs.result import Baseline
from quantkit.stages.verdict import _why_float


def why(rows: tuple[Baseline, ...], minimize: str = "latency") -> str:
    request = SimpleNamespace(options=SimpleNamespace(minimize=minimize, confidence=0.85))
    verified = SimpleNamespace(baselines=rows, budget=0.5, verdict=SimpleNamespace(n=359))
    return _why_float(request, verified)  # type: ignore[arg-type]


FLOAT = Baseline("float", 0.0, 1.0, 1.0)


def test_a_faster_row_within_the_budget_is_named_with_what_it_lost_and_what_would_help() -> None:
    line = why((FLOAT, Baseline("slower", 0.1, 0.95, 0.3), Baseline("uniform w8a8", 0.25, 0.89, 0.28)))

    assert "uniform w8a8 takes 0.89 of its time and lost 0.25 on these 359 items" in line
    assert "85 % sure" in line and "--confidence" in line and "No plan" not in line


@pytest.mark.parametrize(
    "row",
    [Baseline("loses", 0.6, 0.5, 0.3), Baseline("slower", 0.0, 1.0, 0.3), Baseline("untimed", 0.0, None, 0.3)],
    ids=lambda row: row.name,
)
def test_no_row_is_named_that_gains_nothing_or_loses_too_much(row: Baseline) -> None:
    assert why((FLOAT, row)).startswith("No plan passed")


def test_where_bytes_are_minimised_the_smallest_row_is_named_and_its_time_is_no_gain() -> None:
    rows = (FLOAT, Baseline("faster", 0.0, 0.5, 1.0), Baseline("smaller", 0.1, 1.2, 0.28))

    assert "smaller takes 0.28 of its bytes" in why(rows, "bytes")
    assert why(rows, "drop").startswith("No plan passed")
