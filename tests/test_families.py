"""Networks of other kinds than classifiers: allocated by their own metric, and run as planned."""

from __future__ import annotations

from pathlib import Path

import families
import pytest
from test_disk import decide_by_no_clock

import quantkit

FAST = ("detection", "audio")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES])
def test_a_network_of_another_kind_runs_as_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide_by_no_clock(monkeypatch)
    family, model = families.FAMILIES[name], families.network(name)
    result = quantkit.allocate(
        model, data=families.data(name, model), metric=family.metric, max_drop=family.max_drop, minimize="bops", certificate=0,
        run=tmp_path / "run",
    )  # fmt: skip
    assert result.kept and result.executed.as_planned and result.simulation.layers_exact == 1.0
    assert result.executed.int8_macs > 0.5
    assert result.metric == (family.metric if isinstance(family.metric, str) else family.metric.name)
