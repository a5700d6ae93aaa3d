from __future__ import annotations

import itertools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from quantkit.core.numerics.affine import (
    CLIP_RATIOS,
    COARSER_RATIOS,
    PAIR_LIMIT,
    QParams,
    add_codes,
    bias_codes,
    choose_qparams,
    choose_weight_qparams,
    dequantize,
    fake_quantize,
    fit_average,
    floor_weight_scale,
    half_scale,
    mul_codes,
    quantize,
    refit,
    requantize,
    separate_pairs,
)
from quantkit.core.spec import FloatFormat, Format, PerBlock, PerChannel, PerTensor, QuantSpec
from reference import nearest_codes, quantize_loop

U8 = QuantSpec(8, signed=False, symmetric=False, granularity=PerTensor())
W8 = QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(0))
W4 = QuantSpec(4, signed=True, symmetric=True, granularity=PerChannel(0))
FINITE = st.floats(-100, 100, width=32)
CODES = torch.arange(256.0)
EVERY_PAIR = (CODES.repeat_interleave(256), CODES.repeat(256))
SPREAD = (CODES.expand(256, 256), CODES[:, None])


def qparams(scale: float, zero_point: int, spec: QuantSpec = U8) -> QParams:
    return QParams(spec, torch.tensor(scale), torch.tensor(float(zero_point)))


@given(st.lists(FINITE, min_size=1, max_size=30), st.floats(2**-10, 10, width=32), st.integers(0, 255))
def test_codes_are_those_of_the_loop(values: list[float], scale: float, zero_point: int) -> None:
    codes = quantize(torch.tensor(values), qparams(scale, zero_point))
    assert codes.tolist() == quantize_loop(values, scale, zero_point, 0, 255)


def test_ties_go_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 253.5])
    assert quantize(x, qparams(1.0, 0)).tolist() == [0, 2, 2, 0, 0, 254]


def test_divides_and_does_not_multiply_by_the_reciprocal() -> None:
    wrong = 0
    for scale in torch.linspace(0.01, 0.2, 40):
        x = (torch.arange(512) * 0.5 * scale).float()
        right = torch.tensor(quantize_loop(x.tolist(), float(scale), 0, 0, 255), dtype=torch.float32)
        assert torch.equal(quantize(x, qparams(float(scale), 0)), right)
        wrong += int(((x * (1 / scale)).round().clamp(0, 255) != right).sum())
    assert wrong > 0  # the two do differ on these numbers


@given(FINITE, FINITE)
def test_zero_is_exact_and_the_range_is_covered(one: float, other: float) -> None:
    low, high = sorted((one, other))
    fitted = choose_qparams(torch.tensor(low), torch.tensor(high), U8)
    assert float(fake_quantize(torch.zeros(()), fitted)) == 0.0
    assert 0 <= fitted.zero_point <= 255 and fitted.zero_point == fitted.zero_point.round()
    ends = torch.tensor([low, high])
    assert ((fake_quantize(ends, fitted) - ends).abs() <= fitted.scale * 1.001).all()


def test_a_range_without_negatives_starts_at_the_lowest_code() -> None:
    fitted = choose_qparams(torch.tensor(0.3), torch.tensor(6.0), U8)
    assert fitted.zero_point == 0 and float(fitted.scale) == pytest.approx(6 / 255)


def test_an_empty_range_gets_scale_one() -> None:
    fitted = choose_qparams(torch.tensor(0.0), torch.tensor(0.0), U8)
    assert fitted.scale == 1 and fitted.zero_point == 0


def test_each_channel_has_its_own_scale_along_its_axis() -> None:
    spec = QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(1))
    x = torch.tensor([[1.0, 100.0], [-0.5, 50.0]])
    fitted = choose_qparams(x.amin(0), x.amax(0), spec)
    for channel in (0, 1):
        scale = float(fitted.scale[channel])
        assert quantize(x, fitted)[:, channel].tolist() == quantize_loop(x[:, channel].tolist(), scale, 0, -127, 127)
    assert torch.allclose(dequantize(quantize(x, fitted), fitted), x, rtol=0.01)


def test_requantization_is_float32_with_ties_to_even() -> None:
    accumulator = torch.tensor([1.0, 3.0, -1.0, 1e7, -1e7])
    assert requantize(accumulator, torch.tensor(0.5), qparams(1.0, 10)).tolist() == [10, 12, 10, 255, 0]


@pytest.mark.parametrize("spec", [W8, W4], ids=["8 bits", "4 bits"])
def test_weight_scales_are_the_best_of_those_tried(spec: QuantSpec) -> None:
    rows = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)).double()
    rows[1, 3] = 9.0
    fitted = choose_weight_qparams(rows, spec, paired=False)
    for row, scale in zip(rows.float().tolist(), fitted.scale.tolist(), strict=True):
        least = min(_error(row, max(map(abs, row)) * ratio / spec.code_max, spec) for ratio in CLIP_RATIOS)
        assert _error(row, scale, spec) == pytest.approx(least, rel=1e-5)


def _error(row: list[float], scale: float, spec: QuantSpec) -> float:
    codes = nearest_codes(row, scale, spec.code_max)
    return sum((code * scale - value) ** 2 for code, value in zip(codes, row, strict=True))


def test_a_row_of_large_neighbours_gets_a_coarser_scale_rather_than_saturating() -> None:
    rows = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    fitted = choose_weight_qparams(rows, W8, paired=True)
    codes = separate_pairs(quantize(rows, fitted))
    assert torch.allclose(codes * fitted.scale[:, None], rows, atol=0.01)
    assert fitted.scale[0] > 1.9 / 127 > fitted.scale[1]
    assert min(COARSER_RATIOS) > max(CLIP_RATIOS) and max(COARSER_RATIOS) == 2.0


def test_a_per_tensor_weight_has_one_scale() -> None:
    spec = QuantSpec(8, signed=True, symmetric=True, granularity=PerTensor())
    fitted = choose_weight_qparams(torch.tensor([[1.0, 2.0], [3.0, -4.0]]), spec, paired=False)
    assert fitted.scale.shape == () and float(fitted.scale) == pytest.approx(4 / 127, rel=0.1)


@given(st.lists(st.lists(st.integers(-127, 127), min_size=5, max_size=5), min_size=1, max_size=4))
def test_no_two_neighbours_can_saturate(rows: list[list[int]]) -> None:
    before = torch.tensor(rows, dtype=torch.float32)
    after = separate_pairs(before)
    for row, old in zip(after.tolist(), before.tolist(), strict=True):
        for place in (0, 2):
            assert abs(row[place] + row[place + 1]) <= PAIR_LIMIT
            assert 255 * (max(row[place], 0) + max(row[place + 1], 0)) <= 32767
            assert 255 * (min(row[place], 0) + min(row[place + 1], 0)) >= -32768
            if abs(old[place] + old[place + 1]) <= PAIR_LIMIT:
                assert row[place : place + 2] == old[place : place + 2]
            assert all(abs(new) <= abs(was) for new, was in zip(row[place : place + 2], old[place : place + 2], strict=True))
        assert row[4] == old[4]


def test_separated_pairs_share_the_excess() -> None:
    assert separate_pairs(torch.tensor([[127.0, 127.0], [-127.0, -2.0], [100.0, 20.0]])).tolist() == [[64, 64], [-126, -2], [100, 20]]


def test_a_dead_channel_keeps_its_bias_within_int32() -> None:
    weight = QParams(W8, torch.tensor([1e-19, 0.01]), torch.zeros(2))
    bias, input_scale = torch.tensor([3.0, 3.0]), torch.tensor(0.02)
    assert bias_codes(bias, weight.scale, input_scale).abs().max() > 2**31
    floored = floor_weight_scale(weight, bias, input_scale)
    codes = bias_codes(bias, floored.scale, input_scale)
    assert codes.abs().max() <= 2**30 * 1.001
    assert floored.scale[1] == weight.scale[1]
    assert torch.allclose(codes * floored.scale * input_scale, bias.double(), rtol=1e-4)


E4M3 = FloatFormat("e4m3", 8, PerTensor())
EVERY_E4M3 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)  # 0 … 448


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=30), st.floats(2**-10, 10, width=32))
def test_codes_of_e4m3_are_its_nearest_numbers_ties_to_even_and_saturated(values: list[float], scale: float) -> None:
    codes = quantize(torch.tensor(values), QParams(E4M3, torch.tensor(scale), torch.tensor(0.0)))
    for value, code in zip(values, codes.tolist(), strict=True):
        wanted = abs(float(np.float32(value) / np.float32(scale)))
        distance = np.abs(EVERY_E4M3 - wanted)
        nearest = np.flatnonzero(distance == distance.min())
        place = nearest[0] if len(nearest) == 1 else next(place for place in nearest if place % 2 == 0)  # its last bit is 0
        assert abs(code) == EVERY_E4M3[place] and code * value >= 0


@given(st.floats(2**-24, 60000, width=32))
def test_half_scales_are_the_least_that_are_not_below(scale: float) -> None:
    found = half_scale(torch.tensor([scale, 0.0]))
    half = np.float16(float(found[0]))
    assert float(half) == found[0] >= np.float32(scale) > float(np.nextafter(half, np.float16(0)))
    assert found[1] == 0


SIGNED = QuantSpec(8, signed=True, symmetric=True, granularity=PerTensor(), scale_bits=16)


@pytest.mark.parametrize("spec", [E4M3, SIGNED], ids=["e4m3", "int8"])
def test_a_grid_with_a_scale_in_half_covers_its_range(spec: Format) -> None:
    fitted = choose_qparams(torch.tensor(-0.7), torch.tensor(3.1), spec)
    assert torch.equal(fitted.scale, fitted.scale.half().float())
    assert 3.1 <= float(fitted.scale) * spec.code_max < 3.1 * 1.002
    assert float(fake_quantize(torch.tensor(3.1), fitted)) == pytest.approx(3.1, rel=0.04)


def test_another_format_gets_the_range_of_a_grid() -> None:
    grid = choose_qparams(torch.tensor(-2.0), torch.tensor(1.0), SIGNED)
    assert refit(grid, SIGNED) is grid
    other = refit(grid, E4M3)
    assert other.spec == E4M3 and float(other.scale) * 448 == pytest.approx(2.0, rel=3e-3)


def test_each_block_has_its_scale() -> None:
    spec = QuantSpec(4, signed=True, symmetric=True, granularity=PerBlock(1, 16), scale_bits=16)
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    rows[:, 16:32] *= 100
    fitted = choose_weight_qparams(rows, spec, paired=False)
    assert fitted.scale.shape == (3, 4) and fitted.zero_point.shape == (3, 4)
    for channel, block in itertools.product(range(3), range(4)):
        part = rows[channel, 16 * block : 16 * block + 16].tolist()
        scale = float(fitted.scale[channel, block])
        assert nearest_codes(part, scale, 7) == quantize(rows, fitted)[channel, 16 * block : 16 * block + 16].tolist()
        assert _error(part, scale, spec) <= 1.01 * min(_error(part, max(map(abs, part)) * ratio / 7, spec) for ratio in CLIP_RATIOS)
    assert (fitted.scale[:, 1] > 20 * fitted.scale[:, 0]).all()


def test_blocks_are_the_largest_that_divide() -> None:
    lengths = {length: PerBlock(1, 128).fitting(length) for length in (512, 192, 96, 48, 40)}
    assert lengths == {512: PerBlock(1, 128), 192: PerBlock(1, 64), 96: PerBlock(1, 32), 48: PerBlock(1, 16), 40: None}
    assert PerBlock(1, 32).fitting(512) == PerBlock(1, 32)


def test_without_a_bias_no_scale_is_raised() -> None:
    weight = QParams(W8, torch.tensor([1e-19]), torch.zeros(1))
    assert floor_weight_scale(weight, None, torch.tensor(0.02)) is weight


Grids = tuple[tuple[int, ...], tuple[int, ...]]
# Scales are k/(255·16), as a histogram's are: their ratios are simple, and exact ties between two codes are common.
GRIDS = st.tuples(st.tuples(*[st.integers(1, 2000)] * 3), st.tuples(*[st.integers(0, 255)] * 3))


def grids(drawn: Grids) -> list[QParams]:
    return [qparams(float(np.float32(step) / np.float32(255 * 16)), zero) for step, zero in zip(*drawn, strict=True)]


@settings(max_examples=25, deadline=None)
@given(GRIDS)
def test_addition_is_the_runtimes_on_every_pair_of_codes(drawn: Grids) -> None:
    _assert_the_runtimes("QLinearAdd", add_codes, grids(drawn), *EVERY_PAIR)


@settings(max_examples=25, deadline=None)
@given(GRIDS)
def test_addition_of_one_number_to_many_is_the_runtimes(drawn: Grids) -> None:
    """The smaller summand second, as `spelling` puts it: first, it would be added in another order."""
    _assert_the_runtimes("QLinearAdd", add_codes, grids(drawn), *SPREAD)


@settings(max_examples=25, deadline=None)
@given(GRIDS, st.sampled_from([EVERY_PAIR, SPREAD, SPREAD[::-1]]))
def test_multiplication_is_the_runtimes_on_every_pair_of_codes(drawn: Grids, codes: tuple[Tensor, Tensor]) -> None:
    _assert_the_runtimes("QLinearMul", mul_codes, grids(drawn), *codes)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0.25, 0.5]), st.tuples(*[st.floats(2**-10, 0.25, width=32)] * 2), st.tuples(*[st.integers(0, 127)] * 3))
def test_multiplication_is_the_runtimes_where_ties_are_exact(share: float, scales: tuple[float, ...], zeros: tuple[int, ...]) -> None:
    """An odd zero point, so that rounding before it is added would show."""
    product = np.float32(scales[0]) * np.float32(scales[1])
    chosen = [qparams(scale, 2 * zero + 1) for scale, zero in zip((*scales, float(product / np.float32(share))), zeros, strict=True)]
    _assert_the_runtimes("QLinearMul", mul_codes, chosen, *EVERY_PAIR)


def _assert_the_runtimes(
    kernel: str, ours: Callable[[Tensor, QParams, Tensor, QParams, QParams], Tensor], chosen: list[QParams], a: Tensor, b: Tensor
) -> None:
    one, other, output = chosen
    assert torch.equal(ours(a, one, b, other, output), _run(kernel, a, one, b, other, output))


def _run(kernel: str, a: Tensor, a_qparams: QParams, b: Tensor, b_qparams: QParams, output: QParams) -> Tensor:
    names = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "scale", "zero"]
    values = [a, a_qparams.scale, a_qparams.zero_point, b, b_qparams.scale, b_qparams.zero_point, output.scale, output.zero_point]
    feeds = {name: value.numpy().astype(np.float32 if "scale" in name else np.uint8) for name, value in zip(names, values, strict=True)}
    types = [TensorProto.FLOAT if "scale" in name else TensorProto.UINT8 for name in names]
    inputs = [helper.make_tensor_value_info(name, kind, feeds[name].shape) for name, kind in zip(names, types, strict=True)]
    node = helper.make_node(kernel, names, ["c"], domain="com.microsoft")
    graph = helper.make_graph([node], "joined", inputs, [helper.make_tensor_value_info("c", TensorProto.UINT8, None)])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, feeds)[0]).float()


@pytest.mark.parametrize(("source", "own"), [(1.0, 1e-9), (1e-12, 1.0), (0.02, 0.01), (1.0, 1.0)])
def test_the_grid_of_an_average_is_one_that_the_kernel_takes_and_otherwise_left_alone(source: float, own: float) -> None:
    grid = lambda scale: QParams(U8, torch.tensor(scale), torch.tensor(3.0))  # noqa: E731
    fitted = fit_average(grid(own), grid(source), 49)
    multiplier = float(torch.tensor(source) / (fitted.scale * 49))

    assert 2.0**-32 <= multiplier < 256 and fitted.zero_point == 3
    assert (fitted.scale == torch.tensor(own)) == (2.0**-31 <= source / (own * 49) <= 128)
