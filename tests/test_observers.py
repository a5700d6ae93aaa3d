from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from networks import formed
from torch import Tensor

from quantkit.calibration.observers import ACTIVATION, BINS, OBSERVERS, PERCENTILE, Observed, observe, read_range
from quantkit.calibration.ranges import Ranges
from quantkit.core.errors import SchemeError
from quantkit.core.numerics.affine import choose_qparams, fake_quantize


def values(seed: int = 0, count: int = 50_000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5


def dense() -> Tensor:
    """Without gaps in the tails, where percentiles would be a matter of interpolation."""
    return torch.rand(2, 500_000, generator=torch.Generator().manual_seed(0)).sum(0) * 4 - 3


def observed(x: Tensor) -> Observed:
    return observe(None, x)


def width(seen: Observed) -> float:
    return 2 * seen.bound / BINS


def test_streaming_equals_one_shot_bin_by_bin() -> None:
    x = torch.cat([values() * 0.01, values(1), values(2) * 30, torch.tensor([64.0, -128.0, 0.0])])
    whole, parts = observed(x), None
    for part in x.split(777):
        parts = observe(parts, part)
    assert parts is not None
    assert (parts.low, parts.high, parts.bound) == (whole.low, whole.high, whole.bound)
    assert np.array_equal(parts.counts, whole.counts)


def test_every_value_is_counted_in_its_bin() -> None:
    x = values(count=3000)
    seen = observed(x)
    edges = np.linspace(-seen.bound, seen.bound, BINS + 1)
    assert np.array_equal(seen.counts, np.histogram(x.double().numpy(), edges)[0])


def test_counts_beyond_the_whole_numbers_of_float32() -> None:
    zeros = (1 << 24) + 3
    assert observed(torch.zeros(zeros)).counts.sum() == zeros


def test_memory_does_not_grow() -> None:
    seen = observed(values())
    for seed in range(5):
        seen = observe(seen, values(seed) * 10**seed)
    assert seen.counts.shape == (BINS,)


def test_observing_leaves_what_was_seen_before_as_it_was() -> None:
    seen = observed(values())
    before = seen.counts.copy()
    observe(seen, values(1) * 100)
    assert np.array_equal(seen.counts, before)


def test_minmax_is_the_exact_range() -> None:
    x = values()
    assert read_range(observed(x), "minmax") == (float(x.min()), float(x.max()))


def test_percentile_is_numpys_to_a_bin() -> None:
    x = dense()
    seen = observed(x)
    tail = (100 - PERCENTILE) / 2
    low, high = read_range(seen, "percentile")
    assert low == pytest.approx(np.percentile(x, tail), abs=2 * width(seen))
    assert high == pytest.approx(np.percentile(x, 100 - tail), abs=2 * width(seen))
    assert seen.low < low < high < seen.high


def test_percentile_cuts_one_side_where_only_one_is_used() -> None:
    x = dense().abs()
    seen = observed(x)
    low, high = read_range(seen, "percentile")
    assert low == seen.low
    assert high == pytest.approx(np.percentile(x, PERCENTILE), abs=2 * width(seen))


def test_mse_has_the_least_error_of_all_shrunk_ranges() -> None:
    x = torch.cat([values(), torch.tensor([60.0])])
    low, high = read_range(observed(x), "mse")
    assert high < 60

    def error(ratio: float) -> float:
        fitted = choose_qparams(x.min() * ratio, x.max() * ratio, ACTIVATION)
        return float((fake_quantize(x, fitted) - x).square().sum())

    best = min(error(ratio) for ratio in np.linspace(1, 0.2, 81))
    assert error(high / 60) == pytest.approx(best, rel=0.01)
    assert low / float(x.min()) == pytest.approx(high / 60)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_json_round_trip_gives_the_same_range(observer: str) -> None:
    seen = observed(values())
    back = Observed.from_json(json.loads(json.dumps(seen.to_json())))
    assert read_range(back, observer) == read_range(seen, observer)
    assert np.array_equal(back.counts, seen.counts)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_sigmoid_keeps_its_whole_range(observer: str) -> None:
    graph = formed(lambda m, x: m.c(torch.sigmoid(m.a(x)) * m.b(x.repeat(1, 3, 1, 1)[:, :8]))).graph
    seen = observed(torch.cat([torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) * 0.1, torch.tensor([0.99])]))
    bounds = Ranges({"sigmoid": seen, "conv2d": seen}).bounds(observer, graph)
    assert bounds["sigmoid"] == (seen.low, seen.high)
    assert (bounds["conv2d"] == bounds["sigmoid"]) == (observer == "minmax")


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_tensor_of_zeros_has_an_empty_range(observer: str) -> None:
    low, high = read_range(observed(torch.zeros(10)), observer)
    assert low == high == 0


def test_an_unknown_observer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SchemeError, match="did you mean 'percentile'"):
        read_range(observed(values()), "percentil")
