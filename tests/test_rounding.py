"""Roundings against loops that are obviously right, and what their codes are good for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, bench, captured, images
from numpy.typing import NDArray
from test_pipeline import allocate, hurry, remember
from torch import Tensor, nn

from quantkit.calibration.ranges import calibrate
from quantkit.core.numerics.affine import PAIR_LIMIT, QParams, choose_weight_qparams, dequantize, nearest, quantize, separate_pairs
from quantkit.core.spec import FloatFormat, Format, PerBlock, PerChannel, PerTensor, QuantSpec, parse_scheme
from quantkit.data import Batch
from quantkit.network.capture import capture
from quantkit.quantization.moments import MOST_PRODUCTS, second_moments, without_moments
from quantkit.quantization.rounding import BLIND, ROUNDINGS, Grid, LayerMoments, adaround, fit_codebook, fit_two_level, scales
from quantkit.quantization.rounding.gptq import DAMPING
from quantkit.quantization.rounding.grid import MOST
from quantkit.quantization.rounding.scales import RATIOS, fit_scales
from quantkit.quantization.rounding.two_level import multiplier_limit
from quantkit.quantization.weights import WeightBank
from quantkit.settings.options import CHOICES
from quantkit.targets import ort_cpu


def spec(bits: int, granularity: PerChannel | PerTensor | None = None) -> QuantSpec:
    return QuantSpec(bits, signed=True, symmetric=True, granularity=granularity or PerChannel(0))


def problem(channels: int, products: int, seed: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Weights, and moments of inputs that are positive and depend on one another, as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(channels, products, generator=generator)
    mixed = torch.randn(groups, products, products, generator=generator)
    x = (mixed @ torch.randn(groups, products, 4 * products, generator=generator) + 1).relu()
    return rows, x @ x.mT / (4 * products)


def rounded(name: str, rows: Tensor, grid: Grid, moments: Tensor | None, paired: bool) -> Tensor:
    return ROUNDINGS[name](rows, grid, None if moments is None else LayerMoments(moments), paired)


def damage(codes: Tensor, rows: Tensor, qparams: QParams, moments: Tensor) -> float:
    error = (codes * qparams.scale[:, None] - rows).double().reshape(len(moments), -1, rows.shape[1])
    return float(((error @ moments.double()) * error).sum())


def one_after_the_other(row: NDArray[np.float64], scale: float, largest: int, moments: NDArray[np.float64], limit: int | None) -> list[int]:
    """Optimal brain quantization in a fixed order: after each weight the whole inverse of what is left is computed anew."""
    damped = moments + np.eye(len(row)) * DAMPING * moments.diagonal().mean()
    left, row, codes = list(np.argsort(-moments.diagonal(), kind="stable")), row.copy(), dict[int, int]()
    while left:
        here = left[0]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        low, high = -largest, largest
        if limit is not None and here ^ 1 in codes:
            low, high = max(low, -limit - codes[here ^ 1]), min(high, limit - codes[here ^ 1])
        codes[here] = int(np.clip(np.round(row[here] / scale), low, high))
        row[left] -= (row[here] - codes[here] * scale) / inverse[0, 0] * inverse[0]
        left = left[1:]
    return [codes[place] for place in range(len(row))]


@pytest.mark.parametrize(("bits", "paired"), [(2, False), (4, False), (8, False), (8, True)])
@pytest.mark.parametrize("products", [1, 7, 12])
def test_gptq_is_optimal_brain_quantization_in_order_of_energy(bits: int, paired: bool, products: int) -> None:
    for seed in range(5):
        rows, moments = problem(3, products, seed)
        qparams = choose_weight_qparams(rows, spec(bits), paired)
        codes = rounded("gptq", rows, Grid(qparams), moments, paired)
        limit = PAIR_LIMIT if paired else None
        for channel in range(3):
            arguments = rows[channel].double().numpy(), float(qparams.scale[channel]), qparams.spec.code_max, moments[0].double().numpy()
            assert codes[channel].tolist() == one_after_the_other(*arguments, limit)


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, moments = problem(6, 40, 0)
    qparams = choose_weight_qparams(rows, spec(4), paired=False)
    whole = rounded("gptq", rows, Grid(qparams), moments, False)
    monkeypatch.setattr("quantkit.quantization.rounding.gptq.BLOCK", 7)
    assert torch.equal(rounded("gptq", rows, Grid(qparams), moments, False), whole)


def test_inputs_that_do_not_depend_on_one_another_leave_rounding_to_nearest() -> None:
    rows, _ = problem(4, 9, 1)
    qparams = choose_weight_qparams(rows, spec(3), paired=False)
    assert torch.equal(rounded("gptq", rows, Grid(qparams), torch.diag(torch.rand(9) + 0.1)[None], False), quantize(rows, qparams))
    assert torch.equal(rounded("gptq", rows, Grid(qparams), None, False), quantize(rows, qparams))


def test_outputs_lose_less_than_by_nearest_and_no_code_could_lose_less_than_the_best() -> None:
    """Every code of a tiny row is tried."""
    ours, nearest, best = 0.0, 0.0, 0.0
    for seed in range(30):
        rows, moments = problem(1, 5, seed)
        qparams = choose_weight_qparams(rows, spec(2), paired=False)
        found = damage(rounded("gptq", rows, Grid(qparams), moments, False), rows, qparams, moments)
        least = min(
            damage(torch.tensor([codes], dtype=torch.float32), rows, qparams, moments)
            for codes in itertools.product(range(qparams.spec.code_min, qparams.spec.code_max + 1), repeat=5)
        )
        assert found >= least * (1 - 1e-9)
        ours, nearest, best = ours + found, nearest + damage(quantize(rows, qparams), rows, qparams, moments), best + least
    assert ours < 0.7 * nearest and best <= ours < 2.0 * best


def test_adaround_s_two_codes_are_those_around_the_weight() -> None:
    rows, moments = problem(3, 16, 2)
    plain = Grid(choose_weight_qparams(rows, spec(3), paired=False))
    table = fit_codebook(rows, 3)
    levels = fit_two_level(rows, torch.arange(16) // 4, 3)
    floats = Grid(choose_weight_qparams(rows, FloatFormat("e4m3", 8, PerChannel(0)), paired=False))
    for grid in (plain, table, levels, floats):
        steps = rows / grid.qparams.scale[:, None]
        lower, upper = adaround.neighbours(steps, grid)
        inside = (lower <= steps) & (steps <= upper)
        nearest_code = grid.nearest(steps, grid.multipliers)
        assert inside.float().mean() > 0.7  # the rest is clipped
        assert bool(((nearest_code == lower) | (nearest_code == upper))[inside].all())
        assert bool((upper >= lower).all())
        codes = rounded("adaround", rows, grid, moments, False)
        others = torch.stack([grid.nearest(code, grid.multipliers) for code in (codes,)])[0]
        assert torch.equal(others, codes), "a code that the grid does not have"


def test_adaround_loses_no_more_than_gptq_in_any_row_and_less_in_many() -> None:
    ours, theirs, plain = 0.0, 0.0, 0.0
    for seed in range(3):
        rows, moments = problem(6, 12, seed)
        grid = Grid(choose_weight_qparams(rows, spec(3), paired=False))
        found, gptq, nearest_codes = (rounded(name, rows, grid, moments, False) for name in ("adaround", "gptq", "nearest"))
        for row in range(6):
            part = QParams(grid.qparams.spec, grid.qparams.scale[row : row + 1], grid.qparams.zero_point[row : row + 1])
            one, two, three = (
                damage(codes[row : row + 1], rows[row : row + 1], part, moments) for codes in (found, gptq, nearest_codes)
            )
            assert one <= two * (1 + 1e-5)
            ours, theirs, plain = ours + one, theirs + two, plain + three
    assert ours < 0.97 * theirs and ours < 0.7 * plain


def test_adaround_finds_the_best_codes_of_a_tiny_row() -> None:
    """Of all that can be had by going up or down, tried one by one."""
    found, best = 0.0, 0.0
    for seed in range(12):
        rows, moments = problem(1, 6, seed)
        grid = Grid(choose_weight_qparams(rows, spec(3), paired=False))
        lower, upper = adaround.neighbours(rows / grid.qparams.scale[:, None], grid)
        every = (
            torch.where(torch.tensor([ups]), upper, lower) for ups in itertools.product((False, True), repeat=6)
        )
        best += min(damage(codes, rows, grid.qparams, moments) for codes in every)
        found += damage(rounded("adaround", rows, grid, moments, False), rows, grid.qparams, moments)
    assert found <= 1.1 * best


@pytest.mark.parametrize("changed", [{"PENALTY": 0.05}, {"STEPS": 20}, {"RATE": 0.001}], ids=str)
def test_every_setting_of_adaround_is_used(changed: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, moments = problem(6, 12, 1)
    grid = Grid(choose_weight_qparams(rows, spec(3), paired=False))
    scale = grid.qparams.scale[:, None]
    arguments = rows, scale, *adaround.neighbours(rows / scale, grid), torch.full_like(rows, 0.4)
    before = adaround.learn(*arguments, moments)
    for name, value in changed.items():
        monkeypatch.setattr(adaround, name, value)
    assert not torch.equal(adaround.learn(*arguments, moments), before)


def test_groups_of_channels_are_rounded_by_their_own_inputs() -> None:
    rows, moments = problem(6, 8, 3, groups=3)
    qparams = choose_weight_qparams(rows, spec(4), paired=False)
    codes = rounded("gptq", rows, Grid(qparams), moments, False)
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        own = QParams(qparams.spec, qparams.scale[part], qparams.zero_point[part])
        assert torch.equal(codes[part], rounded("gptq", rows[part], Grid(own), moments[group : group + 1], False))


@pytest.mark.parametrize("spec", [FloatFormat("e4m3", 8, PerChannel(0)), QuantSpec(4, True, True, PerBlock(1, 16))], ids=["e4m3", "blocks"])
def test_other_grids_are_rounded_on_them_and_better_than_to_nearest(spec: Format) -> None:
    rows, moments = problem(6, 48, seed=3)
    qparams = choose_weight_qparams(rows, spec, paired=False)
    found, plain = (rounded(name, rows, Grid(qparams), moments, False) for name in ("gptq", "nearest"))
    assert torch.equal(nearest(found, spec), found)

    def lost(codes: Tensor) -> float:
        error = (dequantize(codes, qparams) - rows).double()
        return float(((error @ moments[0].double()) * error).sum())

    assert lost(found) < 0.9 * lost(plain)
    independent = torch.eye(48)[None]
    assert torch.equal(rounded("gptq", rows, Grid(qparams), independent, False), plain)


def test_one_scale_for_all() -> None:
    rows, moments = problem(4, 8, 4)
    qparams = choose_weight_qparams(rows, spec(4, PerTensor()), paired=False)
    each = QParams(spec(4), qparams.scale.expand(4), qparams.zero_point.expand(4))
    assert torch.equal(rounded("gptq", rows, Grid(qparams), moments, False), rounded("gptq", rows, Grid(each), moments, False))


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("products", [8, 9])
def test_no_pair_can_saturate(name: str, products: int) -> None:
    rows, moments = problem(16, products, 5)
    rows = rows.abs()
    qparams = choose_weight_qparams(rows, spec(8), paired=False)
    free = rounded(name, rows, Grid(qparams), moments, False)
    codes = rounded(name, rows, Grid(qparams), moments, True)
    assert not torch.equal(separate_pairs(free), free) and torch.equal(separate_pairs(codes), codes)


def test_an_input_that_is_always_zero_does_no_harm() -> None:
    rows, moments = problem(4, 8, 6)
    moments[:, 3], moments[:, :, 3] = 0.0, 0.0
    qparams = choose_weight_qparams(rows, spec(4), paired=False)
    codes = rounded("gptq", rows, Grid(qparams), moments, False)
    assert codes.isfinite().all() and torch.equal(codes[:, 3], quantize(rows, qparams)[:, 3])
    assert torch.equal(rounded("gptq", rows, Grid(qparams), torch.zeros_like(moments), False), quantize(rows, qparams))


def test_the_choice_of_roundings_is_what_there_is() -> None:
    assert set(CHOICES["rounding"]) == set(ROUNDINGS) and set(ROUNDINGS) > BLIND


def moments_by_loop(layer: nn.Module, x: Tensor) -> Tensor:
    """Patch by patch, from the definition."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return with_ridge(rows.T @ rows / len(rows), len(rows))[None]
    assert isinstance(layer, nn.Conv2d)
    padded = F.pad(x, (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0]))  # type: ignore[arg-type]
    found = []
    for part in padded.chunk(layer.groups, dim=1):
        rows = []
        reach = [(side - 1) * step for side, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        for item in part:
            for top in range(0, part.shape[2] - reach[0], layer.stride[0]):
                for left in range(0, part.shape[3] - reach[1], layer.stride[1]):
                    rows.append(
                        item[:, top : top + reach[0] + 1 : layer.dilation[0], left : left + reach[1] + 1 : layer.dilation[1]].flatten()
                    )
        stacked = torch.stack(rows)
        found.append(with_ridge(stacked.T @ stacked / len(stacked), len(stacked)))
    return torch.stack(found)


def with_ridge(moments: Tensor, outputs: int) -> Tensor:
    return moments + moments.diagonal().mean() * len(moments) / outputs * torch.eye(len(moments))


LAYERS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "strided, not square": nn.Conv2d(4, 6, (1, 3), stride=2, padding=(0, 1)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "linear": nn.Linear(7, 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_the_patches(name: str) -> None:
    layer = LAYERS[name]
    x = torch.randn(6, 5, 7) if name == "linear" else torch.randn(6, 4, 9, 7)
    network = capture(nn.Sequential(layer), {"input": x[:2]})
    seen: list[int] = []
    (moments,) = second_moments(network, [Batch({"input": part}) for part in x.split(4)], seen.append).values()
    torch.testing.assert_close(moments, moments_by_loop(layer, x))
    assert seen == [4, 2]


def test_layers_that_read_one_tensor_have_one_matrix_and_others_their_own() -> None:
    """Queries, keys and values: what a matrix of their inputs takes, and what is made of it, there is once."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.last = nn.Linear(7, 5), nn.Linear(7, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.query(x) * self.key(x))

    x = torch.randn(6, 4, 7)
    network = capture(Three(), {"x": x[:2]})
    moments = second_moments(network, [Batch({"x": part}) for part in x.split(4)], lambda _: None)
    assert moments["query"] is moments["key"] and set(moments) == {"query", "key", "last"}
    torch.testing.assert_close(moments["key"], moments_by_loop(nn.Linear(7, 5), x))
    assert moments["last"].shape == (1, 5, 5)


def test_moments_of_a_layer_too_large_are_left_out() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Linear(MOST_PRODUCTS + 1, MOST_PRODUCTS), nn.Linear(MOST_PRODUCTS, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.small(self.large(x).relu())

    x = torch.randn(2, MOST_PRODUCTS + 1)
    captured = capture(Two(), {"x": x})
    assert set(second_moments(captured, [Batch({"x": x})], lambda _: None)) == {"small"}
    assert without_moments(captured.graph) == ("large",)


@pytest.mark.parametrize(("rounding", "most", "told"), [("gptq", 60, True), ("gptq", 72, False), ("nearest", 60, False)])
def test_a_result_names_the_layers_that_the_method_does_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: str, most: int, told: bool
) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)
    monkeypatch.setattr("quantkit.quantization.moments.MOST_PRODUCTS", most)
    notes = [note for note in allocate(tmp_path / "run", rounding=rounding, certificate=0).notes if "nearest codes" in note]
    assert notes == (["Rounded to the nearest codes, as they have too many inputs for gptq: down."] if told else [])


@pytest.mark.parametrize("name", ["inception", "tokens"])
def test_a_bank_rounds_in_the_kernel_s_order_and_gives_codes_in_the_weight_s(name: str, tmp_path: Path) -> None:
    work = bench(name, tmp_path)
    moments = second_moments(work.captured, [Batch(work.inputs)], lambda _: None)
    state = dict(work.captured.module.named_parameters(remove_duplicate=False))
    bank = WeightBank(work.graph, state, work.bank.activations, ort_cpu.product_rows, rounding=ROUNDINGS["gptq"], moments=moments)
    for layer in work.graph.layers:
        if layer.weight:
            weight = bank.weight(layer, spec(4))
            rows, given = state[layer.weight].flatten(1), moments[layer.name]
            own = Grid(choose_weight_qparams(rows, spec(4), paired=False))
            grid, natural = fit_scales(rows, own, LayerMoments(given), ROUNDINGS["gptq"], lambda q: q)
            other_order = rows.shape[1] * torch.finfo(torch.float32).eps  # of so many products of a sum
            assert torch.equal(weight.codes.flatten(1), natural)
            torch.testing.assert_close(weight.qparams.scale, grid.qparams.scale, rtol=other_order, atol=0.0)
            assert not torch.equal(natural, work.bank.weight(layer, spec(4)).codes.flatten(1)) or layer.weight_count < 80


def cost(rows: np.ndarray, codes: np.ndarray, scale: float, moments: np.ndarray) -> float:
    return float((scale * codes - rows) @ moments @ (scale * codes - rows))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["even", "codebook", "two levels"])
def test_each_row_takes_the_scale_that_costs_least(kind: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row and scale by scale, in numpy; however many ratios are tried at once."""
    generator = torch.Generator().manual_seed(3)
    rows, x = torch.randn(6, 16, generator=generator), torch.randn(groups, 16, 40, generator=generator, dtype=torch.float64)
    mixed = x + x.roll(1, dims=1)
    moments = mixed @ mixed.mT / 40
    if kind == "even":
        grid = Grid(choose_weight_qparams(rows, spec(3), paired=False))
    else:
        grid = fit_codebook(rows, 3) if kind == "codebook" else fit_two_level(rows, torch.arange(16) // 4, 3)

    found, codes = fit_scales(rows, grid, LayerMoments(moments), ROUNDINGS["gptq"], lambda qparams: qparams)
    monkeypatch.setattr(scales, "MOST_NUMBERS", 1)
    again = fit_scales(rows, grid, LayerMoments(moments), ROUNDINGS["gptq"], lambda qparams: qparams)
    assert torch.equal(found.qparams.scale, again[0].qparams.scale) and torch.equal(codes, again[1])
    for row in range(6):
        own, part = moments[row // (6 // groups)].numpy(), rows[row].double().numpy()

        def alone(scale: Tensor, row: int = row) -> np.ndarray:
            one = None if grid.multipliers is None else grid.multipliers[[row]]
            own_grid = Grid(QParams(grid.qparams.spec, scale[None], torch.zeros(1)), one, grid.reach, grid.levels)
            return rounded("gptq", rows[[row]], own_grid, moments[[row // (6 // groups)]], False)[0].double().numpy()

        tried = [(float(grid.qparams.scale[row] * ratio), alone(grid.qparams.scale[row] * ratio)) for ratio in RATIOS]
        _, best = min(tried, key=lambda pair: cost(part, pair[1], pair[0], own))
        served = np.linalg.lstsq(np.linalg.cholesky(own).T @ best[:, None], np.linalg.cholesky(own).T @ part, rcond=None)[0][0]
        tried += [(served, best), (served, alone(torch.tensor(served, dtype=torch.float32)))]
        least = min(cost(part, of, scale, own) for scale, of in tried)
        assert cost(part, codes[row].double().numpy(), float(found.qparams.scale[row]), own) == pytest.approx(least, rel=1e-4)
        assert least < cost(part, tried[0][1], tried[0][0], own)


def test_no_scale_is_less_than_the_floor() -> None:
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    grid, moments = Grid(choose_weight_qparams(rows, spec(4), paired=False)), torch.eye(8)[None]
    least = grid.qparams.scale[[0, 0, 0, 0]] * torch.tensor([3.0, 0.0, 0.0, 0.0])

    def floor(qparams: QParams) -> QParams:
        times = len(qparams.scale) // 4
        return QParams(qparams.spec, torch.maximum(qparams.scale, least.repeat_interleave(times)), qparams.zero_point)

    found, codes = fit_scales(rows, grid, LayerMoments(moments), ROUNDINGS["gptq"], floor)
    assert found.qparams.scale[0] >= least[0] and (found.qparams.scale[1:] <= 1.3 * grid.qparams.scale[1:]).all()
    assert torch.equal(codes[0], rounded("gptq", rows, found, moments, False)[0])


def test_what_a_bank_has_rounded_another_takes() -> None:
    network = captured("inception")
    inputs = NETWORKS["inception"][1]()
    moments = second_moments(network, [Batch(inputs)], lambda _: None)
    state = dict(network.module.named_parameters(remove_duplicate=False))
    activations = calibrate(network, [Batch(inputs)]).qparams("minmax", network.graph)
    first = WeightBank(network.graph, state, activations, ort_cpu.product_rows, rounding=ROUNDINGS["gptq"], moments=moments)
    schemes = [parse_scheme(name) for name in ("w4a8", "w8a8", "w8a32", "c4a8", "w4g16a8", "w16a32", "fp32")]
    wanted = [(layer, scheme) for layer in network.graph.layers if layer.weight for scheme in schemes]
    second = WeightBank(network.graph, state, activations, ort_cpu.product_rows, rounded=first.rounded(wanted))
    for layer, scheme in wanted:
        if not isinstance(scheme.weights, QuantSpec):
            continue
        one, other = (bank.weight(layer, scheme.weights, in_float=scheme.is_float) for bank in (first, second))
        assert one.qparams.spec == other.qparams.spec
        assert torch.equal(one.codes, other.codes) and torch.equal(one.qparams.scale, other.qparams.scale)
        assert one.alignment == other.alignment < 1.5


def test_alignment_says_how_far_the_error_meets_the_inputs() -> None:
    network = captured("residual")
    inputs = images()
    state = dict(network.module.named_parameters(remove_duplicate=False))
    activations = calibrate(network, [Batch(inputs)]).qparams("minmax", network.graph)
    moments = second_moments(network, [Batch(inputs)], lambda _: None)
    same = {name: torch.eye(value.shape[1]).expand_as(value) for name, value in moments.items()}
    layer = next(layer for layer in network.graph.layers if layer.name == "two")
    told = {}
    for label, rounding, given in [("gptq", "gptq", moments), ("nearest", "nearest", moments), ("isotropic", "gptq", same)]:
        bank = WeightBank(network.graph, state, activations, ort_cpu.product_rows, rounding=ROUNDINGS[rounding], moments=given)
        told[label] = bank.weight(layer, spec(4)).alignment
    assert told["isotropic"] == pytest.approx(1.0) and told["gptq"] < 0.6 < told["nearest"]


def uneven(channels: int, groups: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights whose groups of products differ in size, up to tenfold, and the group of each product."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.rand(channels, groups, 1, generator=generator)
    rows = (torch.randn(channels, groups, width, generator=generator) * sizes).reshape(channels, -1)
    return rows, torch.arange(groups).repeat_interleave(width)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_codes_of_two_levels_are_narrow_codes_times_one_small_integer_a_group(name: str, bits: int) -> None:
    rows, groups = uneven(6, 4, 8, bits)
    grid = fit_two_level(rows, groups, bits)
    assert grid.multipliers is not None
    codes = rounded(name, rows, grid, problem(6, 32, bits)[1], False)
    narrow = codes / grid.multipliers
    assert torch.equal(narrow, narrow.round()) and narrow.abs().max() <= (1 << (bits - 1)) - 1 and codes.abs().max() <= MOST
    for group in range(4):
        (each,) = grid.multipliers[:, groups == group].unique(dim=1).T
        assert each.min() >= 1 and each.max() <= multiplier_limit(bits)


def test_groups_that_differ_in_size_lose_less_under_two_levels() -> None:
    rows, groups = uneven(32, 4, 16, 0)
    two, one = fit_two_level(rows, groups, 4), Grid(choose_weight_qparams(rows, spec(4), paired=False))
    lost = [float((rounded("nearest", rows, g, None, False) * g.qparams.scale[:, None] - rows).square().sum()) for g in (two, one)]
    assert lost[0] < 0.5 * lost[1]
    alone = fit_two_level(rows, torch.zeros_like(groups), 4)
    assert alone.multipliers is not None and torch.equal(alone.multipliers, torch.ones_like(rows))
    torch.testing.assert_close(alone.qparams.scale, one.qparams.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_codes_of_a_codebook_are_its_levels_zero_among_them(name: str, bits: int) -> None:
    rows, moments = problem(6, 40, bits)
    grid = fit_codebook(rows, bits)
    assert grid.levels is not None
    codes = rounded(name, rows, grid, moments, False)
    assert set(codes.unique().tolist()) <= set(grid.levels.tolist()) and 0.0 in grid.levels
    assert len(grid.levels) <= 1 << bits and grid.levels.abs().max() <= MOST and torch.equal(grid.levels, grid.levels.round())


def test_nearest_levels_are_found_as_by_trying_all() -> None:
    rows, _ = problem(5, 40, 1)
    grid = fit_codebook(rows, 3)
    assert grid.levels is not None
    steps = rows / grid.qparams.scale[:, None]
    tried = (steps[..., None] - grid.levels).abs().argmin(dim=-1)
    assert torch.equal(rounded("nearest", rows, grid, None, False), grid.levels[tried])


def test_bell_shaped_weights_lose_less_under_a_codebook_and_zeros_stay_zero() -> None:
    rows = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 32)[:, None]
    rows[3], rows[:, 7] = 0.0, 0.0
    book, even = fit_codebook(rows, 4), Grid(choose_weight_qparams(rows, spec(4), paired=False))
    codes = rounded("nearest", rows, book, None, False)
    errors = [rounded("nearest", rows, g, None, False) * g.qparams.scale[:, None] - rows for g in (book, even)]
    lost = [float((error.square().sum(1) / rows.square().sum(1).clamp(min=1e-30)).mean()) for error in errors]
    assert lost[0] < 0.8 * lost[1] and book.qparams.scale.isfinite().all()
    assert not codes[3].any() and not codes[:, 7].any()


def test_weights_of_a_float_layer_may_saturate_in_pairs_since_nothing_adds_them_so() -> None:
    network = captured("residual")
    state = dict(network.module.named_parameters(remove_duplicate=False))
    activations = calibrate(network, [Batch(images())]).qparams("minmax", network.graph)
    bank = WeightBank(network.graph, state, activations, ort_cpu.product_rows)
    layer, scheme = network.graph.layer("two"), parse_scheme("w8a32")
    free = bank.weight(layer, spec(8), in_float=True)
    rows = ort_cpu.product_rows(layer, free.codes)[0]
    assert not torch.equal(separate_pairs(rows), rows) and not torch.equal(free.codes, bank.weight(layer, spec(8)).codes)
    weight = bank.parameter(str(layer.weight)).detach()
    real = bank.stored_weight(layer, scheme)
    assert torch.equal(real, free.codes * free.qparams.scale[:, None, None, None])
    assert bank.squared_error(layer, scheme) == pytest.approx(float((real - weight).double().square().sum()))
    assert bank.squared_error(layer, scheme) < bank.squared_error(layer, parse_scheme("w8a8"))
    assert torch.equal(bank.stored_weight(layer, parse_scheme("w16a32")), weight.half().float())
    assert 0 < bank.squared_error(layer, parse_scheme("w16a32")) < bank.squared_error(layer, scheme)
    assert bank.squared_error(layer, parse_scheme("fp32")) == 0
