"""The first line of a result never contradicts the table below it: what was refused is named, with the reason and what would ship it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from first_line import contradictions

from quantkit.allocation import Plan
from quantkit.allocation.search import Measured, SearchResult, Trial
from quantkit.report.format import verdict_line
from quantkit.runs.result import Baseline
from quantkit.stages.refused import find_alternative, refusals

FLOAT = Baseline("float", 0.0, 1.0, 1.0)
UNIFORM = Baseline("uniform w8a8", 0.25, 0.89, 0.28)


def first_line(rows: dict[Baseline, int | None], minimize: str = "latency", chances: dict[str, tuple[float, float]] | None = None) -> str:
    refused = refusals(rows, 1.0, minimize, 0.5, chances or {}, 0.85)
    return verdict_line({
        "kept": True, "gained": None, "budget": {"unit": "points", "metric": "top1", "max_drop": 0.5},
        "verdict": {"decision": "undecided", "drop": 0.0, "low": -1.0, "high": 1.0, "n": 359},
        "refused": [asdict(row) for row in refused], "allocation": [{"scheme": "fp32"}], "files": {"alternative": None},
    })  # fmt: skip


def test_a_faster_row_within_the_budget_is_named_with_why_it_was_refused_and_what_would_ship_it() -> None:
    rows = {FLOAT: None, Baseline("static", 0.1, 0.95, 0.3): None, UNIFORM: 539}
    line = first_line(rows, chances={"uniform w8a8": (0.718, 0.85)})

    assert "nothing is gained: the float network ships, although uniform w8a8 takes 0.89 of float's time and lost 0.25" in line
    assert "71 % sure" in line and "85 % was asked for" in line and "`--confidence 0.71`" in line and "539 gate items" in line
    assert "Within the budget too: static (0.95, 0.10 lost)." in line


def test_what_no_confidence_would_ship_is_not_said_to_ship() -> None:
    line = first_line({FLOAT: None, UNIFORM: None}, chances={"uniform w8a8": (0.3, 0.5)})

    assert "30 % sure" in line and "50 % was asked for" in line and "--confidence" not in line and "more search items" in line


@pytest.mark.parametrize(
    "row",
    [Baseline("loses", 0.6, 0.5, 0.3), Baseline("slower", 0.0, 1.0, 0.3), Baseline("untimed", 0.0, None, 0.3)],
    ids=lambda row: row.name,
)
def test_no_row_is_named_that_gains_nothing_or_loses_too_much(row: Baseline) -> None:
    assert "no plan that keeps the promise takes less" in first_line({FLOAT: None, row: None})


def test_where_bytes_are_minimised_the_smallest_row_is_named_and_its_time_is_no_gain() -> None:
    rows: dict[Baseline, int | None] = dict.fromkeys((FLOAT, Baseline("faster", 0.0, 0.5, 1.0), Baseline("smaller", 0.1, 1.2, 0.28)))

    assert "smaller takes 0.28 of float's bytes" in first_line(rows, "bytes") and "faster" not in first_line(rows, "bytes")
    assert "no plan" in first_line(rows, "drop")


def test_the_alternative_is_the_cheapest_plan_that_more_likely_than_not_keeps_the_promise() -> None:
    class Within:
        """A space without limits."""

        def excess(self, *_: object) -> float:
            return 0.0

    def trial(cost: float, chance: float, scheme: str) -> Trial:
        plan = Plan({"a": scheme, "b": "fp32" if chance == 1 else scheme}, 0.0, cost)
        return Trial(plan, Measured(0.0, chance >= 0.85, {"chance_kept": chance}))

    floats, unsure, sure_and_dear, broken = (
        trial(10, 1.0, "fp32"), trial(5, 0.6, "w8a8"), trial(11, 0.9, "w8a8"), trial(2, 0.1, "w8a8"),
    )  # fmt: skip
    found = SearchResult(floats, floats, (floats, unsure, sure_and_dear, broken))

    assert find_alternative(Within(), found, floats.plan) is unsure  # type: ignore[arg-type]
    assert find_alternative(Within(), found, unsure.plan) is None  # type: ignore[arg-type]


def test_lines_that_contradict_the_table_are_found() -> None:
    """The check behind docs/results/first-hour.json, on results that were made wrong one field at a time."""
    result: dict[str, Any] = {
        "kept": True, "minimize": "latency", "notes": [], "bounds": [], "refused": [],
        "gained": {"resource": "latency", "ratio": 0.7, "measured": True, "proven": True},
        "budget": {"unit": "points", "metric": "top1", "max_drop": 0.5},
        "verdict": {"decision": "kept", "drop": 0.1, "low": -0.2, "high": 0.4, "n": 900},
        "latency": {"ratio": 0.7, "low": 0.68, "high": 0.72, "float_ms": 1.0}, "bytes": {"float": 9, "quantized": 3, "ratio": 0.33},
        "baselines": [{"name": "float", "drop": 0.0, "latency_ratio": 1.0, "bytes_ratio": 1.0}],
        "allocation": [{"scheme": "w8a8"}], "files": {"alternative": None},
    }  # fmt: skip
    faster = {"name": "static", "drop": 0.4, "latency_ratio": 0.6, "bytes_ratio": 0.3}

    def found(**changes: Any) -> list[str]:
        return list(contradictions(result | changes))

    assert found() == []
    assert found(baselines=[*result["baselines"], faster]) == ["static takes 0.60 of float's, loses 0.40, and is not named"]
    assert found(baselines=[*result["baselines"], faster], notes=["Not chosen: static takes 0.60 of float's time."]) == []
    assert found(baselines=[*result["baselines"], faster | {"drop": 0.6}]) == []
    assert found(latency=result["latency"] | {"ratio": 0.8}) == ["the time is 0.8 of float's"]
    assert found(gained=None, allocation=[{"scheme": "fp32"}]) == []
    assert found(gained=None, allocation=[{"scheme": "fp32"}], baselines=[*result["baselines"], faster])[0].startswith("static takes 0.60")
    assert found(allocation=[{"scheme": "fp32"}]) == ["the float network ships: True"]
