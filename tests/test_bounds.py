import json
import math

import numpy as np
import pytest

from quantkit.allocation.costs.counted import bit_costs, bop_costs, byte_costs, float_bops
from quantkit.core.errors import RequestError
from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import parse_schemes
from quantkit.settings.bounds import Bound, Bounds, parse_bound, parse_bounds, parse_seconds, show_amount
from quantkit.settings.options import DEFAULT_SCHEMES, Options


@pytest.mark.parametrize(
    ("name", "text", "bound"),
    [
        ("bytes", "2MB", Bound(2e6)),
        ("bytes", "1.5 MiB", Bound(1.5 * 2**20)),
        ("bytes", 4096, Bound(4096.0)),
        ("bytes", "0.25x", Bound(0.25, relative=True)),
        ("latency", "5ms", Bound(5.0)),
        ("latency", "0.5s", Bound(500.0)),
        ("latency", "800us", Bound(0.8)),
        ("latency", " .5X ".lower(), Bound(0.5, relative=True)),
        ("bops", "2.5G", Bound(2.5e9)),
        ("bops", "1e9", Bound(1e9)),
        ("bops", "3 Gbops", Bound(3e9)),
        ("average_bits", "4.5", Bound(4.5)),
        ("average_bits", 4, Bound(4.0)),
    ],
)
def test_what_people_write_is_read(name, text, bound):
    assert parse_bound(name, text) == bound


@pytest.mark.parametrize(
    ("name", "text"),
    [("bytes", "2 apples"), ("bytes", "-1"), ("bytes", "0"), ("latency", "5MB"), ("bops", "x"), ("average_bits", "4 bits"), ("bytes", "0x"),
     ("bytes", "nan"), ("latency", "")],
)  # fmt: skip
def test_what_is_no_amount_is_refused_with_an_example(name, text):
    with pytest.raises(RequestError, match="above 0") as caught:
        parse_bound(name, text)

    assert caught.value.got.endswith(f"{text}") and caught.value.next_step.startswith("write --")


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h", 3600), ("1.5min", 90), (30, 30), ("2", 2)])
def test_times_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1m", "soon", "5 parsecs"])
def test_no_time_is_refused(text):
    with pytest.raises(RequestError, match="--time-limit"):
        parse_seconds(text)


def test_only_what_was_said_bounds():
    assert parse_bounds({"bytes": None, "latency": "5ms", "bops": None, "average_bits": None}).given() == {"latency": Bound(5.0)}
    assert Bounds().given() == {}


def test_a_relative_bound_is_a_share_of_the_float_networks():
    assert Bound(0.25, relative=True).at_most(400.0) == 100.0
    assert Bound(7.0).at_most(400.0) == 7.0


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("latency", 5.0, "5.00 ms"), ("bytes", 2_050_000, "2.05 MB"), ("bytes", 999, "999 B"), ("bops", 1.2e9, "1.20 Gbops"),
     ("average_bits", 4.5, "4.50 bits"), ("bytes", 0.0, "0 B"), ("bops", 5e12, "5.00 Tbops")],
)  # fmt: skip
def test_amounts_are_told_as_people_write_them(name, value, told):
    assert show_amount(name, value) == told


def test_the_least_drop_needs_a_bound_and_a_search_that_goes_on():
    with pytest.raises(RequestError, match="without a bound"):
        Options(minimize="drop")
    bounds = Bounds(bytes=Bound(1e6))
    with pytest.raises(RequestError, match="bisection"):
        Options(minimize="drop", bounds=bounds, search="bisection")
    assert Options(minimize="drop", bounds=bounds, search="swaps").menu == DEFAULT_SCHEMES["ort-cpu"]["bytes"]


@pytest.mark.parametrize(
    ("minimize", "bounds", "menu"),
    [
        ("latency", Bounds(), "latency"),
        ("latency", Bounds(latency=Bound(5.0)), "latency"),
        ("latency", Bounds(bytes=Bound(5.0)), "bytes"),
        ("latency", Bounds(average_bits=Bound(5.0)), "bytes"),
        ("bops", Bounds(), "bytes"),
        ("drop", Bounds(latency=Bound(5.0)), "latency"),
    ],
)
def test_narrow_weights_are_on_the_menu_where_they_help(minimize, bounds, menu):
    assert Options(minimize=minimize, bounds=bounds).menu == DEFAULT_SCHEMES["ort-cpu"][menu]


# What is counted.


def graph():
    layers = (
        Layer("a", "conv", "a", "a", ("x",), weight="w", weight_shape=(4, 5), output_shape=(4,), macs=100),
        Layer("b", "conv", "b", "b", ("a",), weight="w", weight_shape=(4, 5), output_shape=(4,), macs=100),
        Layer("c", "linear", "c", "c", ("b",), weight="v", bias="v0", weight_shape=(6, 10), output_shape=(6,), macs=60),
        Layer("d", "add", "d", "d", ("b", "c"), output_shape=(6,)),
        Layer("e", "matmul", "e", "e", ("b", "c"), output_shape=(6,), macs=7),
    )
    return Graph(layers, (), (), (), ("x",), ("e",), {})


class Target:
    """Whole bytes, and nothing else."""

    @staticmethod
    def weight_bytes(layer, scheme):
        return layer.weight_count * (32 if scheme.weights is None else scheme.weights.bits) // 8


SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))
GROUPS = (Group("a", ("a", "b"), SCHEMES, ""), Group("c", ("c",), SCHEMES[:2], ""), Group("d", ("d", "e"), SCHEMES[:2], ""))


def test_a_shared_weight_counts_once_in_bytes_and_bits_and_each_use_of_it_in_operations():
    given = (graph(), GROUPS, SCHEMES)
    size, bits, bops = byte_costs(*given, Target), bit_costs(*given), bop_costs(*given)

    assert [size.at("a", scheme) for scheme in SCHEMES] == [80, 20, 10]
    assert [bits.at("a", scheme) for scheme in SCHEMES] == [32 * 20 / 80, 8 * 20 / 80, 4 * 20 / 80]
    assert [bops.at("a", scheme) for scheme in SCHEMES] == [200 * 1024, 200 * 64, 200 * 32]


def test_tied_layers_of_different_weights_count_both():
    tied = (Group("a", ("a", "c"), SCHEMES, ""),)

    assert byte_costs(graph(), tied, SCHEMES, Target).at("a", "w8a8") == 80


def test_the_average_is_weighted_by_the_weights_and_32_for_float():
    bits = bit_costs(graph(), GROUPS, SCHEMES)

    assert bits.total({"a": "fp32", "c": "fp32", "d": "fp32"}) == 32
    assert bits.total({"a": "w4a8", "c": "w8a8", "d": "w8a8"}) == pytest.approx((20 * 4 + 60 * 8) / 80)


def test_float_operations_are_32_by_32_and_products_of_activations_count_them_twice():
    bops = bop_costs(graph(), GROUPS, SCHEMES)

    assert float_bops(graph()) == 267 * 1024 == bops.total({"a": "fp32", "c": "fp32", "d": "fp32"})
    assert bops.at("d", "w8a8") == 7 * 64


def test_what_a_group_cannot_take_is_nan():
    assert math.isnan(bop_costs(graph(), GROUPS, SCHEMES).at("c", "w4a8"))
    assert np.isnan(bit_costs(graph(), GROUPS, SCHEMES).at("c", "w4a8"))
    assert json.dumps(bit_costs(graph(), GROUPS, SCHEMES).to_json(), allow_nan=False)
