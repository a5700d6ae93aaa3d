"""The file held against the plan: what ran, what the simulation says, how the timings are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from test_evaluation import FixedBatch

from quantkit import verify
from quantkit.affine import QParams
from quantkit.evaluation import Session
from quantkit.export.executed import Executed
from quantkit.quantization import WeightBank
from quantkit.runtimes import ort_cpu as runtime
from quantkit.targets import ort_cpu
from quantkit.verify import Parity, Simulated, compare_outputs, compare_simulation, int8_share, time_sessions

ITEMS = 22


def parity(box: toys.Toybox, allocation: Mapping[str, str], folder: Path, bank: WeightBank | None = None) -> tuple[Parity, list[int]]:
    """The file of `box`'s own bank against a simulation with `bank`."""
    candidates = toys.candidates(box, folder)
    path = folder / "plan.onnx"
    emitted = candidates.emitted(allocation, path)
    steps: list[int] = []
    items = toys.subset(ITEMS, seed=8)
    simulated = Simulated(box.captured, candidates.placement(allocation), bank or box.bank)
    found = compare_simulation(simulated, path, emitted, items, 8, folder, steps.append)
    return found, steps


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_integers_are_simulated_bit_by_bit(tmp_path: Path, scheme: str) -> None:
    found, steps = parity(toys.toybox(), toys.everything(toys.toybox().groups, scheme, add="w8a8"), tmp_path)

    assert found == Parity(agreement=1.0, exact=1.0, layers_exact=1.0)
    assert sum(steps) == ITEMS


def test_beside_float_layers_every_quantized_layer_is_still_exact(tmp_path: Path) -> None:
    found, _ = parity(toys.toybox(), toys.everything(toys.toybox().groups, "w8a8", depthwise="fp32"), tmp_path)

    assert found.layers_exact == 1.0
    assert found.agreement >= 0.95


def test_a_plan_of_floats_has_no_layer_that_could_differ(tmp_path: Path) -> None:
    found, _ = parity(toys.toybox(), toys.everything(toys.toybox().groups, "fp32"), tmp_path)

    assert (found.agreement, found.layers_exact) == (1.0, 1.0)


def test_a_simulation_on_another_grid_is_found_out(tmp_path: Path) -> None:
    """Its input to `down` is read with another scale: that layer and the one that writes it differ, the others do not."""
    box = toys.toybox()
    graph = box.captured.graph
    name = graph.source(graph.layer("down").inputs[0])
    seen = box.bank.activations[name]
    wrong = {**box.bank.activations, name: QParams(seen.spec, seen.scale * 1.3, seen.zero_point)}
    state = {key: value.detach() for key, value in box.captured.module.named_parameters(remove_duplicate=False)}
    bank = WeightBank(graph, state, wrong, ort_cpu.product_rows)
    found, _ = parity(box, toys.everything(box.groups, "w8a8"), tmp_path, bank)
    layers = len(graph.layers)

    assert found.exact < 1.0
    assert found.layers_exact == pytest.approx((layers - 2) / layers)


def test_a_file_without_codes_is_compared_by_its_answers(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates, plan = toys.candidates(box, tmp_path), toys.everything(box.groups, "w8a8")
    session, steps = candidates.open(candidates.emit(plan), threads=1), list[int]()
    equal = compare_outputs(
        Simulated(box.captured, candidates.placement(plan), box.bank), session, toys.subset(ITEMS, seed=8), 8, steps.append
    )
    floats = candidates.placement(toys.everything(box.groups, "fp32"))
    other = compare_outputs(Simulated(box.captured, floats, box.bank), session, toys.subset(ITEMS, seed=8), 8, steps.append)

    assert equal == Parity(agreement=1.0, exact=1.0, layers_exact=None)
    assert other.exact == 0.0
    assert sum(steps) == 2 * ITEMS


def test_the_items_that_fill_a_fixed_batch_are_not_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    box = toys.unpack(torch.export.export(FixedBatch().eval(), (torch.zeros(4, 3, 8, 8),)))
    found, _ = parity(box, {group.name: "w8a8" for group in box.groups}, tmp_path)

    assert found.layers_exact == 1.0
    assert found.exact * ITEMS == pytest.approx(round(found.exact * ITEMS))


def test_the_runtime_runs_what_was_planned_and_says_otherwise_by_name(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates = toys.candidates(box, tmp_path)
    plan = toys.everything(box.groups, "w8a8", down="fp32")
    path = candidates.emit(plan)
    found = runtime.read_executed(path, box.captured.graph, candidates.placement(plan), {}, tmp_path)
    asked_else = candidates.placement({**plan, "down": "w8a8", "stem": "fp32"})
    wrong = runtime.read_executed(path, box.captured.graph, asked_else, {}, tmp_path)

    assert found.mismatches == ()
    assert {name for name, kind in found.precisions.items() if kind == "float"} == {"down"}
    assert sorted(text.split(":")[0] for text in wrong.mismatches) == ["down", "stem"]


def test_the_int8_share_counts_multiply_accumulates() -> None:
    graph = toys.toybox().captured.graph
    total = sum(layer.macs for layer in graph.layers)
    kinds = {layer.name: "float" for layer in graph.layers} | {"down": "int8", "classifier": "int8"}

    share = int8_share(graph, Executed(kinds, ()))  # type: ignore[arg-type]
    assert share == pytest.approx((graph.layer("down").macs + graph.layer("classifier").macs) / total)
    assert int8_share(replace(graph, layers=()), Executed({}, ())) == 0


def test_latencies_are_told_against_the_first_file_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def interleaved(sessions: Sequence[Session], feeds: object, *, rounds: int) -> np.ndarray:
        asked["rounds"], asked["sessions"] = rounds, len(sessions)
        return np.array([[2.0, 4.0, 6.0], [1.0, 2.0, 3.0], [2.0, 8.0, 6.0]])

    monkeypatch.setattr(verify, "rounds_within", lambda session, feeds, seconds: int(10 * seconds))
    monkeypatch.setattr(verify, "interleave", interleaved)
    feeds = {"x": np.zeros((4, 1), np.float32)}
    first, half, other = time_sessions([SimpleNamespace(threads=3)] * 3, feeds)  # type: ignore[list-item]

    assert asked == {"rounds": int(10 * verify.LATENCY_SECONDS / 3), "sessions": 3}
    assert (first.ratio, first.low, first.high, first.quantized_ms) == (1, 1, 1, 4.0)
    assert (half.ratio, half.low, half.high, half.quantized_ms) == (0.5, 0.5, 0.5, 2.0)
    assert (other.ratio, other.low, other.high) == (1, 1, 2)
    assert {row.float_ms for row in (first, half, other)} == {4.0}
    assert (half.threads, half.batch) == (3, 4)


def test_the_top_class_of_tokens_is_compared_at_every_position() -> None:
    scores = np.zeros((2, 3, 4))
    moved = scores.copy()
    moved[1, 2, 3] = 1

    assert verify._equal(verify._best(scores), verify._best(moved)).tolist() == [True, False]
    assert verify._best(np.arange(3.0)).tolist() == [0, 0, 0]
