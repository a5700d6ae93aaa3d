"""Plans that passed are timed side by side, and the fastest is taken: a tie goes to the simplest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import allocate, hurry, remember

from quantkit.allocation import Plan
from quantkit.stages import finalists
from quantkit.stages.finalists import ROUNDS, fastest

UNIFORM = [{"a": "w8a8", "b": "w8a8", "c": "w8a8"}]
THREE = {"a": "fp32", "b": "w8a8", "c": "w4a8"}
TWO = {"a": "fp32", "b": "w8a8", "c": "w8a8"}


def plan(allocation: dict[str, str]) -> Plan:
    return Plan(allocation=allocation, predicted_loss=0.0, predicted_cost=0.0)


def times(*medians: float, noise: float = 0.01) -> np.ndarray:
    """Shape [plans, rounds]; the noise is each plan's own."""
    return np.array(medians)[:, None] * np.exp(noise * np.random.default_rng(0).standard_normal((len(medians), ROUNDS)))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_fastest_is_taken_where_the_times_decide(place: int) -> None:
    plans = [plan(TWO), plan(UNIFORM[0]), plan(THREE)]
    medians = [1.0, 1.0, 1.0]
    medians[place] = 0.97
    assert fastest(plans, times(*medians), UNIFORM) is plans[place]


def test_a_tie_goes_to_the_uniform_plan_then_to_fewer_schemes_then_to_the_first() -> None:
    plans = [plan(THREE), plan(TWO), plan(UNIFORM[0]), plan(dict(TWO))]
    tie = times(1.0, 1.0, 1.0, 1.0, noise=0.05)
    assert fastest(plans, tie, UNIFORM) is plans[2]
    assert fastest(plans, tie, []) is plans[2]  # one scheme
    assert fastest([plans[0], plans[3], plans[1]], tie[:3], UNIFORM) is plans[3]


def test_a_tie_is_of_the_interval_not_of_a_fixed_share() -> None:
    plans = [plan(THREE), plan(UNIFORM[0])]
    assert fastest(plans, times(1.0, 1.004, noise=0.0005), UNIFORM) is plans[0]
    assert fastest(plans, times(1.0, 1.004, noise=0.05), UNIFORM) is plans[1]


def test_an_allocation_ships_the_finalist_that_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)
    timed: list[Plan] = []

    def last(plans: Sequence[Plan], times_ms: np.ndarray, uniform: Sequence[Mapping[str, str]]) -> Plan:
        assert times_ms.shape == (len(plans), finalists.ROUNDS) and (times_ms > 0).all()
        timed.extend(plans)
        return plans[-1]

    monkeypatch.setattr(finalists, "fastest", last)
    monkeypatch.setattr(finalists, "NEARLY", 1e9)  # whatever the clock says of them
    result = allocate(tmp_path / "run", max_drop=50.0, minimize="latency", schemes="fp32,w8a8,w6a8")
    assert len(timed) > 1 and {row.group: row.scheme for row in result.allocation} == timed[-1].allocation
