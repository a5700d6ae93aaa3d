"""Weights rounded in sequence: against sums written out, on files of every small network, and in whole allocations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Bench, build, captured, formed, images, run
from test_disk import prepare
from test_pipeline import allocate
from torch import Tensor, nn

from quantkit.core.numerics.affine import fake_quantize
from quantkit.core.spec import parse_scheme
from quantkit.data import Batch
from quantkit.network.capture import capture
from quantkit.network.folding import ATEN
from quantkit.quantization import moments, sequential
from quantkit.quantization.moments import PairedMoments, columns
from quantkit.quantization.rounding import ROUNDINGS
from quantkit.quantization.sequential import RIDGE, _channels_last, compensated, items_within, round_in_sequence, same_until
from quantkit.quantization.simulation.program import Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import export_plan, read_plan
from quantkit.runtimes.evaluation import open_session
from quantkit.settings.options import Options
from quantkit.targets.placement import Placement


def nothing(_: int) -> None:
    pass


def sequence(work: Bench, scheme: str = "w4a8", rounding: str = "gptq") -> tuple[Bench, dict[str, np.ndarray]]:
    """The bench with its weights rounded in sequence under a uniform plan, and what was found."""
    bank = WeightBank(work.graph, work.bank._parameters, work.bank.activations, work.bank._product_rows, rounding=ROUNDINGS[rounding])
    found = round_in_sequence(work.captured, work.place(work.uniform(scheme)), bank, [Batch(dict(work.inputs))], nothing)
    other = Bench(work.captured, work.inputs, work.folder, work.observer)
    other.bank = bank.changed(dict(found))
    return other, found


def error(work: Bench, scheme: str) -> float:
    """The mean squared error of the simulated outputs."""
    plans = (Placement({}, frozenset(), frozenset(), {}), work.place(work.uniform(scheme)))
    plain, got = (Simulation(work.captured, placement, work.bank).run(work.inputs)["output"][0] for placement in plans)
    return float((got - plain).square().mean())


@pytest.mark.parametrize("groups", [1, 3])
def test_compensated_weights_are_those_of_least_squares(groups: int) -> None:
    """Over all samples and a ridge towards the weights themselves, solved by numpy from the samples and not from moments."""
    generator = np.random.default_rng(0)
    channels, products, samples = 4, 5, 60
    f = generator.normal(size=(groups, products, samples))
    q = f + 0.3 * generator.normal(size=f.shape) + 0.1
    weight = generator.normal(size=(groups * channels, products))
    cross, own = (torch.from_numpy(np.einsum("gis,gjs->gij", one, q) / samples) for one in (f, q))
    found = compensated(torch.from_numpy(weight), cross, own).reshape(groups, channels, products).numpy()
    for group in range(groups):
        rows = weight.reshape(groups, channels, products)[group]
        ridge = np.sqrt(RIDGE * np.mean(np.diag(own[group].numpy())) * samples)
        samples_and_ridge = np.concatenate([q[group].T, ridge * np.eye(products)])
        for channel in range(channels):
            wanted = np.concatenate([rows[channel] @ f[group], ridge * rows[channel]])
            best = np.linalg.lstsq(samples_and_ridge, wanted, rcond=None)[0]
            np.testing.assert_allclose(found[group, channel], best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
def test_moments_of_pairs_are_those_of_all_outputs(centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "POSITIONS", 1000)
    layer = next(layer for layer in captured("residual").graph.layers if layer.kind == "conv")
    node = next(node for node in captured("residual").module.graph.nodes if node.name == layer.node)
    plain, other = images(3)["x"], images(3)["x"] + 0.1 * torch.randn(3, 3, 10, 10, generator=torch.Generator().manual_seed(5))
    paired = PairedMoments(node, layer, torch.device("cpu"))
    for place in range(3):
        paired.add(plain[place : place + 1], other[place : place + 1], None)
    f, q = (columns(node, layer, x)[:, 0].movedim(1, 0).flatten(1).double() for x in (plain, other))
    if centred:
        mean_f, mean_q = f.mean(1, keepdim=True), q.mean(1, keepdim=True)
        f, q = f - mean_f, q - mean_q
    ridge = len(f) / f.shape[1] * q.square().mean() * torch.eye(len(f), dtype=torch.float64)
    wanted = ((f @ q.T) / f.shape[1] + ridge, (q @ q.T) / f.shape[1] + ridge)
    for found, right in zip(paired.moments(centred=centred), wanted, strict=True):
        torch.testing.assert_close(found[0], right, rtol=1e-5, atol=1e-6)


def test_of_large_maps_the_same_positions_of_both_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = captured("residual").graph
    layer = next(layer for layer in graph.layers if layer.kind == "conv")
    node = next(node for node in captured("residual").module.graph.nodes if node.name == layer.node)
    x = images(2)["x"]
    whole = columns(node, layer, x)
    some = columns(node, layer, x, 7)
    assert some.shape[-1] == 7 and columns(node, layer, x, 10**6).shape == whole.shape
    places = [next(p for p in range(whole.shape[-1]) if torch.equal(whole[..., p], some[..., n])) for n in range(7)]
    assert len(set(places)) == 7
    assert torch.equal(columns(node, layer, 2 * x, 7), 2 * some)


class Chain(nn.Module):
    """Two convolutions and a linear layer, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3), nn.Linear(5 * 36, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))).flatten(1))


def small(folder: Path) -> Bench:
    inputs = {"x": torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)).abs()}
    return Bench(capture(build(Chain), inputs), inputs, folder)


def test_layer_after_layer_is_rounded_for_what_it_reads(tmp_path: Path) -> None:
    """The whole of it once more, written out layer by layer with unfold, on maps of no more than POSITIONS positions."""
    work = small(tmp_path)
    _, found = sequence(work, rounding="nearest")
    bank = WeightBank(work.graph, work.bank._parameters, work.bank.activations, work.bank._product_rows)
    plain = quantized = work.inputs["x"]
    for layer, padding in zip([layer for layer in work.graph.layers if layer.weight], (1, 0, None), strict=True):
        weight, bias = bank.parameter(str(layer.weight)).detach(), bank.parameter(str(layer.bias)).detach()
        quantized = fake_quantize(quantized, bank.input_qparams(layer, 0))
        if padding is None:
            f, q = plain.flatten(1).T.double(), fake_quantize(quantized.flatten(1), bank.input_qparams(layer, 0)).T.double()
        else:
            f, q = (F.unfold(x, 3, padding=padding).movedim(1, 0).flatten(1).double() for x in (plain, quantized))
        mean_f, mean_q = f.mean(1, keepdim=True), q.mean(1, keepdim=True)
        cross, own = ((one @ (q - mean_q).T) / q.shape[1] for one in (f - mean_f, q - mean_q))
        ridge = (RIDGE + (1 + RIDGE) * len(q) / q.shape[1]) * own.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)
        better = (weight.flatten(1).double() @ (cross + ridge) @ torch.linalg.inv(own + ridge)).float().reshape(weight.shape)
        scheme = work.place(work.uniform("w4a8")).schemes[layer.name].weights
        assert scheme is not None
        codes, scale = torch.from_numpy(found[f"{layer.name} 4"]).float(), torch.from_numpy(found[f"{layer.name} 4 scale"])
        met = (own + len(q) / q.shape[1] * own.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)).float()
        again = bank.round(layer, scheme, better, met[None], in_float=False)
        same = (scale / again.qparams.scale - 1).abs() < 1e-3  # where two scales serve nearly alike, other sums may choose the other
        apart = (codes - again.codes.reshape(codes.shape))[same].abs()
        assert same.float().mean() >= 0.75 and apart.max() <= 1 and apart.mean() < 0.05
        real = codes.reshape(weight.shape) * scale.reshape(-1, *[1] * (weight.dim() - 1))
        moved = bias.double() + (weight.flatten(1).double() @ mean_f - real.flatten(1).double() @ mean_q).flatten()
        # Four codes that fall the other way, each in nine taps.
        ties = 4 * 9 * float(bank.input_qparams(layer, 0).scale) * float(real.abs().max()) / q.shape[1]
        torch.testing.assert_close(torch.from_numpy(found[f"{layer.name} bias"]), moved.float(), rtol=1e-5, atol=ties)
        moved = torch.from_numpy(found[f"{layer.name} bias"])
        if padding is None:
            break
        plain = F.relu(F.conv2d(plain, weight, bias, padding=padding))
        quantized = fake_quantize(F.relu(F.conv2d(quantized, real, moved, padding=padding)), bank.output_qparams(layer))


@pytest.mark.parametrize("target", [ATEN.view.default, ATEN.as_strided.default])
def test_images_lie_channels_last_unless_the_network_says_how_a_tensor_lies(target: Any) -> None:
    network: Any = SimpleNamespace(module=SimpleNamespace(graph=SimpleNamespace(nodes=[SimpleNamespace(target=target)])))
    given = {"x": torch.randn(2, 3, 4, 5), "tokens": torch.arange(6).reshape(2, 3)}
    found = _channels_last(network, given)
    assert all(torch.equal(found[name], value) for name, value in given.items())
    assert found["x"].is_contiguous(memory_format=torch.channels_last) is (target is ATEN.view.default)


@pytest.mark.parametrize("scheme", ["w4a8", "w8a8", "c4a8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_files_with_moved_biases_equal_the_simulation_bit_for_bit(benches: Callable[[str], Bench], name: str, scheme: str) -> None:
    work, _ = sequence(benches(name), scheme)
    placement = work.place(work.uniform(scheme))
    path, _ = work.emit(placement, f"sequence-{scheme}.onnx")
    simulated = Simulation(work.captured, placement, work.bank).run(work.inputs)["output"]
    for ours, file in zip(simulated, run(open_session(path, threads=1), work.inputs), strict=True):
        assert torch.equal(ours, file)


@pytest.mark.parametrize("rounding", list(ROUNDINGS))
@pytest.mark.parametrize("name", ["residual", "inception", "mlp"])
def test_outputs_lose_less_than_with_layers_rounded_apart(benches: Callable[[str], Bench], name: str, rounding: str) -> None:
    work = benches(name)
    other, _ = sequence(work, "w3a8", rounding)
    assert error(other, "w3a8") < error(work, "w3a8")


def test_the_mean_output_is_the_float_network_s(tmp_path: Path) -> None:
    """Of a last layer that leaves float, but for its bias's code: half a step of scale · scale."""
    work = small(tmp_path)
    other, _ = sequence(work, "w3a8")
    head = next(layer for layer in work.graph.layers if layer.kind == "linear")
    placement = other.place(other.uniform("w3a8"))
    (got,) = Simulation(other.captured, placement, other.bank).run(other.inputs)["output"]
    wanted = work.captured.module(work.inputs["x"])
    spec = placement.schemes[head.name].weights
    assert spec is not None
    step = other.bank.input_qparams(head, 0).scale * other.bank.weight(head, spec).qparams.scale
    rounding = 1e-5 * wanted.abs().max()
    assert ((got.mean(0) - wanted.mean(0)).abs() <= step / 2 + rounding).all()


def test_weights_and_biases_that_others_share_stay_as_they_are(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x)))))))

    inputs = images()
    work = Bench(capture(build(Shared), inputs), inputs, tmp_path)
    _, found = sequence(work)
    shared = [layer for layer in work.graph.layers if layer.weight and "twice" in layer.weight]
    assert len(shared) == 2
    for layer in shared:
        spec = work.place(work.uniform("w4a8")).schemes[layer.name].weights
        assert spec is not None
        assert f"{layer.name} bias" not in found
        bank = WeightBank(work.graph, work.bank._parameters, work.bank.activations, work.bank._product_rows, rounding=ROUNDINGS["gptq"])
        assert np.array_equal(found[f"{layer.name} 4"], bank.weight(layer, spec).codes.numpy().astype(np.int8))
    assert sum(name.endswith(" bias") for name in found) == 2


def test_other_biases_and_codes_change_the_file(benches: Callable[[str], Bench]) -> None:
    """A bias that the emitter, or the simulation, forgot would leave outputs as they were."""
    work, found = sequence(benches("residual"))
    name = next(key for key in found if key.endswith(" bias"))
    moved = Bench(work.captured, work.inputs, work.folder, work.observer)
    moved.bank = work.bank.changed({name: found[name] + np.float32(0.5)})
    placement = work.place(work.uniform("w4a8"))
    files = [one.emit(placement, f"{place}.onnx")[0] for place, one in enumerate((work, moved))]
    before, after = (run(open_session(file, threads=1), work.inputs)[0] for file in files)
    simulated = [Simulation(one.captured, placement, one.bank).run(one.inputs)["output"][0] for one in (work, moved)]
    assert not torch.equal(before, after) and torch.equal(simulated[0], before) and torch.equal(simulated[1], after)


def test_the_items_held_at_once_follow_from_the_memory() -> None:
    graph = captured("residual")
    assert items_within(graph, 1e-9) == 1
    few, many = items_within(graph, 1), items_within(graph, 10)
    assert 1 < few < many and abs(many - 10 * few) <= 10
    wide = formed(lambda _, x: torch.cat([x, x, x, x], 1).relu())
    assert items_within(wide, 1) < items_within(formed(lambda _, x: x.relu()), 1)


@pytest.mark.parametrize("name", ["residual", "inception", "tokens"])
def test_what_an_earlier_plan_begins_with_is_taken_from_it_and_is_the_same(
    name: str, benches: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group in turn has another scheme than in the earlier plan: codes and biases are those of a plan that was rounded alone."""
    work = benches(name)
    bank = WeightBank(work.graph, work.bank._parameters, work.bank.activations, work.bank._product_rows, rounding=ROUNDINGS["gptq"])
    first = work.uniform("w4a8")
    rounded: list[str] = []

    def counted(layer: Any, *given: Any, **named: Any) -> Any:
        rounded.append(layer.name)
        return settled(layer, *given, **named)

    settled = sequential._settled
    monkeypatch.setattr(sequential, "_settled", counted)

    def found(placement: Placement, known: Any) -> dict[str, np.ndarray]:
        return round_in_sequence(work.captured, placement, bank, [Batch(dict(work.inputs))], nothing, known)

    earlier = found(work.place(first), {})
    saved = 0
    for layer in [layer for layer in work.graph.layers if layer.weight and layer.name in work.place(first).schemes]:
        placement = work.place({**first, layer.name: parse_scheme("w8a8")})
        same = same_until(work.captured, placement, work.place(first))
        assert layer.name not in same
        known = {one: {key: array for key, array in earlier.items() if key.startswith(f"{one} ")} for one in same}
        rounded.clear()
        alone = found(placement, {})
        every = len(rounded)
        rounded.clear()
        short = found(placement, known)
        saved += every - len(rounded)
        assert not set(rounded) & set(same) and alone.keys() == short.keys()
        assert all(np.array_equal(alone[key], short[key]) for key in alone)
    assert saved > 0


def test_a_plan_differs_from_the_first_layer_whose_output_it_leaves_otherwise(benches: Callable[[str], Bench]) -> None:
    work = benches("residual")
    whole = work.place(work.uniform("w8a8"))
    last = [layer.name for layer in work.graph.layers][-1]
    assert last in same_until(work.captured, whole, whole)
    for layer in [layer.name for layer in work.graph.layers if layer.name in whole.outputs]:
        other = dataclasses.replace(whole, outputs=whole.outputs - {layer})
        assert layer not in same_until(work.captured, whole, other)
    slot = next(iter(sorted(whole.inputs)))
    assert slot[0] not in same_until(work.captured, whole, dataclasses.replace(whole, inputs=whole.inputs - {slot}))


def test_narrow_weights_are_rounded_for_each_plan_unless_said_otherwise() -> None:
    assert Options().chosen_effort == "fast" and Options(minimize="bytes").chosen_effort == "balanced"
    assert Options(minimize="bytes", effort="fast").chosen_effort == "fast"
    assert Options(effort="balanced").chosen_effort == "balanced" and Options(schemes=("w8a8", "c4a8")).chosen_effort == "balanced"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        return {
            effort: allocate(tmp_path_factory.mktemp(effort) / "run", effort=effort, certificate=4 * (effort == "best"))
            for effort in ("fast", "balanced", "best")
        }


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_what_ships_is_what_the_run_directory_holds(results: dict[str, Result], effort: str, tmp_path: Path) -> None:
    result = results[effort]
    assert result.kept and result.executed.as_planned and result.simulation.layers_exact == 1.0
    exported = export_plan(read_plan(result.run), "ort-cpu", tmp_path / "again.onnx")
    assert exported.file.read_bytes() == result.files.onnx.read_bytes()


def test_the_note_tells_which_weights_ship(results: dict[str, Result]) -> None:
    result = results["fast"]
    note = next(note for note in result.notes if note.startswith("The plan's weights rounded in sequence"))
    before, after = (float(word) for word in note.rstrip(").").replace(" so", "").replace(" before", "").split("split ")[1].split(", "))
    plan = json.loads((result.run / "plan.json").read_text())
    apart = json.loads((result.run / "tables.json").read_text())["plan"]["weights"]
    assert ("ships" in note) == (after < before) == (plan["weights"] != apart)


def test_the_best_effort_tries_adaround_and_blocks_at_last_and_ships_the_better(results: dict[str, Result]) -> None:
    notes = [note for note in results["best"].notes if "by adaround" in note]
    assert len(notes) == 1 and ("ships" in notes[0]) != ("was no better" in notes[0])
    assert results["best"].certificate is not None  # the other two were not asked for one
    (blocks,) = (note for note in results["best"].notes if "block by block" in note)
    assert ("ships" in blocks) != ("was no better" in blocks)
    assert not any("adaround" in note or "block by block" in note for name in ("fast", "balanced") for note in results[name].notes)


def test_the_same_bytes_after_a_kill(results: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that is stopped while it rounds for its third plan, and goes on."""
    prepare(monkeypatch)
    from quantkit.stages import sequence

    calls = []

    def stopped(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return round_in_sequence(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(sequence, "round_in_sequence", stopped)
    with pytest.raises(KeyboardInterrupt):
        allocate(tmp_path / "run", effort="balanced")
    again = allocate(tmp_path / "run", effort="balanced")
    assert again.files.onnx.read_bytes() == results["balanced"].files.onnx.read_bytes()
