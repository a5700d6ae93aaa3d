"""What saturation takes from integer sums, against sums taken product by product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.numerics.saturation import lost_in_convolution, lost_in_products, pairs_at_risk


def saturated(codes: list[int], weights: list[int]) -> int:
    """VPMADDUBSW and the additions behind it, step by step."""
    total = 0
    for first in range(0, len(codes), 2):
        pair = sum(a * c for a, c in zip(codes[first : first + 2], weights[first : first + 2], strict=True))
        total += min(max(pair, -32768), 32767)
    return total


def exact(codes: list[int], weights: list[int]) -> int:
    return sum(a * c for a, c in zip(codes, weights, strict=True))


def random_codes(shape: tuple[int, ...], low: int, high: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


@pytest.mark.parametrize("products", [1, 2, 7, 12])
def test_products(products: int) -> None:
    codes, weights = random_codes((5, 3, products), 150, 255, 0), random_codes((4, products), -128, 127, 1)
    lost = lost_in_products(torch.from_numpy(codes).float(), torch.from_numpy(weights).float())
    wanted = [[[saturated(list(x), list(w)) - exact(list(x), list(w)) for w in weights] for x in row] for row in codes]

    assert lost.tolist() == wanted
    assert (lost != 0).any() or products < 2


def gathered(x: NDArray[np.int64], place: tuple[int, int], channels: range, kernel: tuple[int, int], options: dict[str, int]) -> list[int]:
    """The codes that one output reads, in the kernel's order: taps outside, input channels inside; the zero point beyond the borders."""
    found = []
    for top in range(kernel[0]):
        for left in range(kernel[1]):
            y = place[0] * options["stride"] + top * options["dilation"] - options["padding"]
            z = place[1] * options["stride"] + left * options["dilation"] - options["padding"]
            inside = 0 <= y < x.shape[1] and 0 <= z < x.shape[2]
            found += [int(x[channel, y, z]) if inside else options["zero_point"] for channel in channels]
    return found


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions(groups: int, stride: int, dilation: int) -> None:
    x, weight = random_codes((2, 6, 6, 5), 100, 255, 2), random_codes((4, 6 // groups, 3, 2), -128, 127, 3)
    options = {"stride": stride, "padding": 1, "dilation": dilation, "zero_point": 200}
    rows = torch.from_numpy(weight).movedim(1, -1).reshape(4, -1).float()
    pairs = [[value, value] for value in (stride, 1, dilation)]
    lost = lost_in_convolution(torch.from_numpy(x).float(), rows, (3, 2), 200.0, *pairs, groups)
    for item, channel, row, column in np.ndindex(*lost.shape):
        group = channel // (4 // groups)
        channels = range(group * (6 // groups), (group + 1) * (6 // groups))
        codes = gathered(x[item], (row, column), channels, (3, 2), options)
        weights = [int(value) for value in rows[channel].tolist()]

        assert lost[item, channel, row, column] == saturated(codes, weights) - exact(codes, weights)
    assert (lost != 0).any()


def test_a_convolution_of_one_dimension_is_one_of_height_one() -> None:
    x, rows = torch.from_numpy(random_codes((2, 4, 9), 200, 255, 4)).float(), torch.from_numpy(random_codes((3, 12), 60, 127, 5)).float()
    lost = lost_in_convolution(x, rows, (3,), 0.0, (2,), (1,), (1,), 1)
    tall = lost_in_convolution(x[:, :, None], rows, (1, 3), 0.0, (1, 2), (0, 1), (1, 1), 1)

    assert lost.shape == (2, 3, 5) and torch.equal(lost, tall[:, :, 0]) and (lost != 0).any()


def test_a_pair_is_at_risk_exactly_where_some_codes_saturate_it() -> None:
    """The worst of two products is at a corner of [0, 255]²."""
    numbers = torch.arange(-128, 128)
    rows = torch.cartesian_prod(numbers, numbers)
    corners = torch.tensor([[0, 0], [0, 255], [255, 0], [255, 255]])
    sums = rows @ corners.T

    assert torch.equal(pairs_at_risk(rows)[:, 0], ((sums > 32767) | (sums < -32768)).any(dim=1))


def test_a_last_code_without_a_neighbour_is_alone() -> None:
    assert pairs_at_risk(torch.tensor([[0, 0, 127], [0, 100, 100], [100, 100, 0]])).tolist() == [[False] * 2, [False] * 2, [True, False]]


def test_nothing_is_lost_where_nothing_can_saturate() -> None:
    codes: Tensor = torch.full((2, 8), 255.0)

    assert not lost_in_products(codes, torch.full((3, 8), 64.0)).any()
