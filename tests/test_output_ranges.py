"""Ranges that are chosen by what the outputs do, how soon ranges settle, and both against ONNX Runtime's own calibrators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, bench, captured, images
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from test_pipeline import Spy, allocate, hurry, remember
from torch import Tensor, fx

from quantkit.calibration.observers import ACTIVATION, OBSERVERS
from quantkit.calibration.ranges import BY_OUTPUT, Ranges, calibrate
from quantkit.core.numerics.affine import choose_qparams, fake_quantize
from quantkit.data import Batch
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity.passes.outputs import divergence
from quantkit.sensitivity.passes.ranges import STRETCHES, candidates, choose_by_output
from quantkit.targets import ort_cpu

NARROW = replace(ACTIVATION, bits=4)


def chosen(name: str, batches: list[Batch], bits: int = 4) -> tuple[Ranges, dict[str, tuple[float, float]]]:
    network = captured(name)
    ranges = calibrate(network, batches)
    bank = WeightBank(network.graph, {}, {}, ort_cpu.product_rows)
    spec = replace(ACTIVATION, bits=bits)
    return ranges, choose_by_output(network, bank, ranges, spec, batches, divergence("softmax"), lambda _: None)


def whole_pass(name: str, tensor: str, low: float, high: float, inputs: dict[str, Tensor]) -> float:
    """The divergence with that tensor alone on its grid, by a pass over the whole network."""
    network = captured(name)

    class Replaced(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            grid = choose_qparams(torch.tensor(low), torch.tensor(high), NARROW)
            return fake_quantize(value, grid) if n.name == tensor else value

    with torch.no_grad():
        exact, moved = (runner(*inputs.values()) for runner in (network.module, Replaced(network.module).run))
        exact, moved = ([one] if isinstance(one, Tensor) else list(one) for one in (exact, moved))
        total = 0.0
        for one, other in zip(exact, moved, strict=True):
            p, q = (rows.double().log_softmax(dim=-1) for rows in (one, other))
            total += float((p.exp() * (p - q)).sum(dim=-1).reshape(len(one), -1).mean(dim=1).sum())
    return total


@pytest.mark.parametrize("name", ["residual", "several", "tokens"])
def test_each_tensor_gets_the_candidate_under_which_the_outputs_move_least(name: str) -> None:
    inputs = NETWORKS[name][1]()
    ranges, found = chosen(name, [Batch(inputs)])
    tried = candidates(ranges, captured(name).graph, NARROW)

    assert set(found) == set(ranges.seen)
    assert any(len(some) > 3 for some in tried.values())
    for tensor, bounds in found.items():
        losses = {pair: whole_pass(name, tensor, *pair, inputs) for pair in tried[tensor]}
        assert losses[bounds] <= min(losses.values()) * (1 + 1e-6) + 1e-12, tensor


def test_batches_change_nothing_and_bits_do() -> None:
    inputs = images()["x"]
    halves = [Batch({"x": inputs[:3]}), Batch({"x": inputs[3:]})]
    assert chosen("residual", [Batch({"x": inputs})])[1] == chosen("residual", halves)[1]
    assert chosen("residual", halves, bits=4)[1] != chosen("residual", halves, bits=8)[1]


def test_candidates_stay_within_what_was_seen_and_hold_every_observer_s() -> None:
    network = captured("residual")
    ranges = calibrate(network, [Batch(images())])
    for tensor, some in candidates(ranges, network.graph, NARROW).items():
        seen = ranges.seen[tensor]
        assert all(seen.low <= low and high <= seen.high for low, high in some)
        assert {ranges.bounds(observer, network.graph, NARROW)[tensor] for observer in OBSERVERS} <= set(some)
        assert len(some) <= len(OBSERVERS) + len(STRETCHES)


def test_what_was_chosen_is_read_back_by_bits() -> None:
    ranges, found = chosen("residual", [Batch(images())])
    kept = Ranges.from_json(Ranges(ranges.seen, {4: found}, 8, 4).to_json())
    assert kept.bounds(BY_OUTPUT, captured("residual").graph, NARROW) == found
    assert (kept.items, kept.settled) == (8, 4)


def parts(x: Tensor, size: int) -> Iterator[Batch]:
    for part in x.split(size):
        yield Batch({"x": part})


def test_ranges_that_settle_say_after_how_many_items() -> None:
    x = torch.randn(256, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    calm = calibrate(captured("chain"), parts(x, 8))
    growing = calibrate(captured("chain"), parts(x * torch.linspace(0.1, 10, 256).reshape(-1, 1, 1, 1), 8))

    assert calm.items == growing.items == 256
    assert calm.settled is not None and calm.settled <= 128
    assert growing.settled is None


def test_a_run_says_how_many_items_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)
    allocate(tmp_path / "run", observer="output", progress=(spy := Spy()))
    assert any("% of the ranges were within" in note for note in spy.notes)
    assert (tmp_path / "run" / "stages").exists() and any("output_ranges" in path.name for path in (tmp_path / "run" / "stages").iterdir())


class Reader:
    """What ONNX Runtime's calibrators are fed with."""

    def __init__(self, x: Tensor) -> None:
        self.rows = iter([{"x": x[place : place + 1].numpy()} for place in range(len(x))])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rows, None)


METHODS = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99}),
}


@pytest.mark.parametrize("method", METHODS)
def test_held_against_the_calibrators_of_onnxruntime(method: str, tmp_path: Path) -> None:
    """Equal for the whole range; of the others ours errs no more on any tensor, in squares."""
    x = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 64).reshape(-1, 1, 1, 1)
    work = bench("residual", tmp_path)
    kind, options = METHODS[method]
    calibrator = create_calibrator(
        work.float_file, augmented_model_path=str(tmp_path / "augmented.onnx"), calibrate_method=kind, extra_options=options
    )
    calibrator.collect_data(Reader(x))
    read = {name: data.range_value for name, data in calibrator.compute_data().data.items()}
    theirs = {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in read.items()}  # a value each, or one a batch
    ranges = calibrate(work.captured, parts(x, 8))
    with torch.no_grad():
        values: dict[str, Tensor] = {}

        class Watch(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                values[n.name] = super().run_node(n)
                return values[n.name]

        Watch(work.captured.module).run(x)
    shared = sorted(set(theirs) & set(ranges.seen) - {name for name in ranges.seen if work.graph.ends(name)})
    ours = ranges.bounds("minmax" if method == "minmax" else "mse", work.graph)

    def error(name: str, bounds: tuple[float, float]) -> float:
        grid = choose_qparams(*(torch.tensor(side, dtype=torch.float32) for side in bounds), ACTIVATION)
        return float((fake_quantize(values[name], grid) - values[name]).double().square().sum())

    assert len(shared) >= 4
    for name in shared:
        if method == "minmax":
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
        else:
            assert error(name, ours[name]) <= error(name, theirs[name]) * 1.02, name
