"""Weights learned block by block: where blocks end, the gradients, and what is learned, on small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Bench, bench, captured
from torch import Tensor, nn

from quantkit.core.numerics.affine import fake_quantize
from quantkit.data import Batch
from quantkit.network.blocks import pieces
from quantkit.network.capture import capture
from quantkit.quantization import reconstruction
from quantkit.quantization.reconstruction import learned_layers, reconstruct
from quantkit.quantization.simulation.program import Simulation
from quantkit.quantization.simulation.straight_through import StraightThrough
from quantkit.quantization.weights import WeightBank
from quantkit.targets.placement import Placement

FLOAT = Placement({}, frozenset(), frozenset(), {})


def nothing(_: int) -> None:
    pass


def names(work: Bench, **how: bool) -> list[set[str]]:
    """The layers with weights of each piece."""
    weighted = [layer for layer in work.graph.layers if layer.weight]
    found = pieces(work.captured, weighted, **how)
    assert [node for piece in found for node in piece] == list(work.captured.module.graph.nodes)
    return [{layer.name for layer in weighted if any(node.name == layer.node for node in piece)} for piece in found]


def test_a_residual_unit_is_one_block_and_a_chain_has_one_for_each_layer(tmp_path: Path) -> None:
    for name, wanted in {
        "residual": [{"stem"}, {"one", "two", "shortcut"}, {"head"}],
        "chain": [{"a"}, {"b"}, {"c"}],
        "inception": [{"stem"}, {"grouped", "depthwise", "dilated"}, {"last"}],
        "tokens": [{"up"}, {"down"}, {"head"}],  # the network's own input, which no weight has touched, flows beside
    }.items():
        (tmp_path / name).mkdir()
        assert names(bench(name, tmp_path / name)) == wanted
    assert names(bench("residual", tmp_path / "residual"), of_one_layer=True)[1:3] == [{"one"}, {"two"}]


def test_a_block_ends_behind_the_activation_functions_of_its_last_layer(tmp_path: Path) -> None:
    work = bench("chain", tmp_path)
    ends = [piece[-1].name for piece in pieces(work.captured, work.graph.layers)]
    assert ends[:2] == [work.graph.layer(name).output for name in ("a", "b")]


class Masked(nn.Module):
    """Two layers under a mask that is computed from the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x > 0).to(x.dtype)
        return self.two(F.relu(self.one(x)) * mask) * mask


def test_what_no_weight_has_touched_may_flow_beside(tmp_path: Path) -> None:
    work = Bench(capture(Masked().eval(), {"x": torch.randn(8, 12)}), {"x": torch.randn(8, 12)}, tmp_path)
    assert names(work) == [{"one"}, {"two"}]


def straight(work: Bench, placement: Placement, drop: float = 0.0, seed: int = 0) -> StraightThrough:
    return StraightThrough(work.captured, placement, work.bank, drop, torch.Generator().manual_seed(seed))


def answers(simulation: StraightThrough, work: Bench) -> Tensor:
    values: dict[str, Any] = dict(work.inputs)
    simulation.learn(values, list(work.captured.module.graph.nodes), {})
    return torch.cat([output.flatten(1) for output in values["output"]], dim=1)


def simulated(work: Bench, placement: Placement) -> Tensor:
    outputs = Simulation(work.captured, placement, work.bank).run(work.inputs)["output"]
    return torch.cat([output.flatten(1) for output in outputs], dim=1)


CLOSE = [*((name, "w4a8") for name in NETWORKS), ("chain", "w4a32"), ("tokens", "w4a32"), ("tokens", "w4d8")]


@pytest.mark.parametrize(("name", "scheme"), CLOSE)
def test_a_run_in_real_numbers_is_close_to_the_simulation(name: str, scheme: str, tmp_path: Path) -> None:
    """Sums in another order move single values by a code; the error of the plan itself is much larger."""
    work = bench(name, tmp_path)
    placement = work.place(work.uniform(scheme))
    wanted, got = simulated(work, placement), answers(straight(work, placement), work)
    assert float((got - wanted).square().mean()) < 0.05 * float((wanted - simulated(work, FLOAT)).square().mean())


def test_activations_miss_their_quantizers_by_chance(tmp_path: Path) -> None:
    work = bench("chain", tmp_path)
    placement = work.place(work.uniform("w8a8"))
    always, never, some = (answers(straight(work, placement, drop), work) for drop in (1.0, 0.0, 0.5))
    values = straight(work, placement, 1.0)._on_grid(torch.tensor([0.123, 9e9]), work.bank.activations["x"])
    assert values.tolist() == [torch.tensor(0.123).item(), torch.tensor(9e9).item()]
    assert not torch.equal(always, never) and not torch.equal(some, never)
    assert torch.equal(some, answers(straight(work, placement, 0.5), work)) and not torch.equal(
        some, answers(straight(work, placement, 0.5, seed=1), work)
    )


def test_rounding_passes_gradients_and_clipping_stops_them(tmp_path: Path) -> None:
    work = bench("chain", tmp_path)
    qparams = work.bank.activations["x"]
    low, high = ((end - qparams.zero_point) * qparams.scale for end in (qparams.spec.code_min, qparams.spec.code_max))
    x = torch.stack([low - 1, low / 2, torch.tensor(0.3), high / 2, high + 1]).requires_grad_()
    got = straight(work, FLOAT)._on_grid(x, qparams)
    got.sum().backward()
    assert torch.equal(got.detach(), fake_quantize(x.detach(), qparams))
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


def learned(work: Bench, scheme: str, batches: int = 4, **options: Any) -> tuple[Placement, WeightBank, dict[str, np.ndarray]]:
    """The uniform plan, and the bank with what is learned on items of the network's own shapes."""
    placement = work.place(work.uniform(scheme))
    items = [Batch(inputs(work, seed)) for seed in range(batches)]
    found = reconstruct(work.captured, placement, work.bank, items, nothing, **{"curvature": "identity", **options})
    return placement, work.bank.changed(dict(found)), found


def inputs(work: Bench, seed: int) -> dict[str, Tensor]:
    """Items whose numbers hang together, as those of real data do: with white ones, to nearest is best."""
    generator, mixing = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    found = {}
    for name, x in work.inputs.items():
        few = torch.randn(*x.shape[:-1], 3, generator=generator)
        found[name] = few @ torch.randn(3, x.shape[-1], generator=mixing) + 0.1 * torch.randn(x.shape, generator=generator)
    return found


def error(work: Bench, placement: Placement, bank: WeightBank, seed: int = 99) -> float:
    """Of the network's outputs, on items that nothing was learned from."""
    plain, got = (Simulation(work.captured, plan, bank).run(inputs(work, seed))["output"] for plan in (FLOAT, placement))
    return sum(float((one - other).square().mean()) for one, other in zip(plain, got, strict=True))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STEPS", 120)


@pytest.mark.parametrize(("name", "scheme"), [("residual", "w3a8"), ("tokens", "w3a32"), ("inception", "c3a8"), ("tokens", "w3d8")])
def test_what_is_learned_serves_items_that_were_not_seen(name: str, scheme: str, tmp_path: Path) -> None:
    work = bench(name, tmp_path)
    placement, bank, found = learned(work, scheme)
    assert found and error(work, placement, bank) < 0.8 * error(work, placement, work.bank)
    for layer in learned_layers(work.captured, placement):
        before, after = (b.under(layer, placement.all_schemes[layer.name]) for b in (work.bank, bank))
        if scheme.startswith("c"):
            assert set(after.codes.unique().tolist()) <= set(before.codes.unique().tolist())
        else:
            assert after.codes.abs().max() <= 4 and torch.equal(after.codes, after.codes.round())
        changed = any(key.startswith(f"{layer.name} ") for key in found)
        assert torch.equal(before.qparams.scale, after.qparams.scale) != changed
        moved = f"{layer.name} bias" in found
        assert moved == (changed and layer.bias is not None and layer.name not in placement.stored)


def test_a_layer_is_a_block_of_one_layer(tmp_path: Path) -> None:
    one, other = (learned(bench("chain", tmp_path), "w3a8", of_one_layer=alone)[2] for alone in (False, True))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


class Unit(nn.Module):
    """A residual unit of two layers, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(12, 12), nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.down(F.relu(self.up(x)))


def test_the_layers_of_a_block_are_learned_together(tmp_path: Path) -> None:
    given = {"x": torch.randn(8, 12, generator=torch.Generator().manual_seed(1))}
    torch.manual_seed(0)
    work = Bench(capture(Unit().eval(), given), given, tmp_path)
    block, layers = (learned(work, "w3a32", of_one_layer=alone) for alone in (False, True))
    assert names(work) == [{"stem"}, {"up", "down"}]
    differ = {key.split()[0] for key in block[2] if not np.array_equal(block[2][key], layers[2].get(key))}
    assert differ == {"up", "down"}  # the stem is a block of its own either way
    assert max(error(work, placement, bank) for placement, bank, _ in (block, layers)) < 0.3 * error(work, block[0], work.bank)


def test_the_seed_and_the_kind_of_outputs_change_what_is_learned(tmp_path: Path) -> None:
    work = bench("residual", tmp_path)
    first, again, other, scores = (learned(work, "w3a8", **how)[2] for how in ({}, {}, {"seed": 7}, {"curvature": "softmax"}))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other.get(key)) for key in first)
    ends = [key for key in first if key.startswith("head ")]
    assert ends and any(not np.array_equal(first[key], scores.get(key)) for key in ends)


def test_what_a_block_reads_is_mixed_number_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = bench("chain", tmp_path)
    some = learned(work, "w3a32")[2]  # no activation has a quantizer: the coins are those of what blocks read
    monkeypatch.setattr(reconstruction, "DROP", 0.0)
    none = learned(work, "w3a32")[2]
    assert any(not np.array_equal(some[key], none.get(key)) for key in some)
    monkeypatch.undo()
    piece = tuple(work.captured.module.graph.nodes)
    block = reconstruction._Block(work.captured, FLOAT, work.bank, piece, [Batch(dict(work.inputs))], "identity", 0)
    mixed = block._mixed(torch.zeros(4, 1000), torch.ones(4, 1000))
    assert set(mixed.unique().tolist()) == {0.0, 1.0} and 0.45 < float(mixed.mean()) < 0.55
    assert torch.equal(block._mixed(torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)), torch.zeros(3, dtype=torch.long))


def test_a_block_that_gains_nothing_on_the_items_kept_apart_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STEPS", 1)
    monkeypatch.setattr(reconstruction, "RATE", 1e6)  # every code to one side
    work = bench("tokens", tmp_path)
    placement, items = work.place(work.uniform("w4a32")), [Batch(inputs(work, 0))]
    assert not reconstruct(work.captured, placement, work.bank, items, nothing, curvature="identity")


def test_padding_is_not_learned_from(tmp_path: Path) -> None:
    """Rows that count nowhere may hold anything."""
    work = bench("tokens", tmp_path)
    placement = work.place(work.uniform("w3a32"))
    counted = torch.ones(8, 7, dtype=torch.bool)
    counted[:, 5:] = False
    plain = [Batch(inputs(work, seed), mask=counted) for seed in range(4)]
    noisy = [Batch({"x": batch.inputs["x"] + 50 * ~counted[..., None]}, mask=counted) for batch in plain]
    blind = [Batch(dict(batch.inputs)) for batch in noisy]
    found = [reconstruct(work.captured, placement, work.bank, items, nothing, curvature="identity") for items in (plain, noisy, blind)]
    one, two, three = found
    head = [key for key in one if key.startswith("head ")]
    assert head and all(np.allclose(one[key], two[key], atol=1e-5) for key in head)
    assert any(not np.allclose(one[key], three.get(key, 0), atol=1e-5) for key in head)


def test_layers_that_cannot_be_learned_are_none(tmp_path: Path) -> None:
    work = Bench(captured("mlp"), NETWORKS["mlp"][1](), tmp_path)
    uniform = work.uniform("w4a8")
    assert {layer.name for layer in learned_layers(work.captured, work.place(uniform))} == {"one", "last"}  # the middle one is used twice
    assert not learned_layers(work.captured, work.place(work.uniform("w8a8")))
    assert not learned_layers(work.captured, FLOAT)
