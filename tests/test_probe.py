"""What is measured of this processor: it agrees with what its instruction sets promise, and with what the runtime runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from quantkit.cli import main
from quantkit.core.environment import has_vnni, isa_label
from quantkit.runtimes.evaluation import open_session
from quantkit.verification import probe


@pytest.mark.skipif(isa_label() not in {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"}, reason="nothing is known of this processor")
def test_sums_saturate_exactly_where_there_is_no_vnni() -> None:
    assert probe.saturates() is not has_vnni()


@pytest.mark.parametrize(("size", "groups", "side"), probe.LAYERS.values(), ids=probe.LAYERS)
def test_the_chains_that_are_timed_compute_alike_in_int8_and_in_float(size: int, groups: int, side: int, tmp_path: Path) -> None:
    shape, kinds, answers = (1, probe.CHANNELS, 6, 6), [], []
    for int8 in (True, False):
        path, optimized = probe._chain(size, groups, shape, int8, tmp_path), tmp_path / f"o{int8}.onnx"
        session = open_session(path, threads=1, optimized=optimized)
        kinds.append(Counter(node.op_type for node in onnx.load(optimized).graph.node))
        answers.append(session.run({"x": np.full(shape, 0.5, np.float32)})[0])
    assert kinds[0]["QLinearConv"] == 4 and kinds[1]["QLinearConv"] == 0 and answers[0].shape == answers[1].shape
    assert side > 6


def test_every_kind_of_layer_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 2)
    ratios = probe.gains()
    assert set(ratios) == set(probe.LAYERS) and all(ratio > 0 for ratio in ratios.values())


def test_doctor_measures_if_asked(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 2)
    assert main(["doctor", "--measure", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["int8 sums saturate"] is probe.saturates() and told["target ort-cpu"]
    assert main(["doctor", "--json"]) == 0
    assert "int8 sums saturate" not in json.loads(capfd.readouterr().out)
