"""The modelled latency, against the formula written out layer by layer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from test_stored_plan import wide

from quantkit.allocation.costs.measured import LatencyModel
from quantkit.allocation.costs.modelled import UNIT, model_latency
from quantkit.core.errors import ConfigError
from quantkit.core.machine import TENSOR_CORES, Machine, read_machine
from quantkit.core.spec import parse_allocation, parse_scheme, parse_schemes
from quantkit.targets import tensorrt

SCHEMES = parse_schemes(("fp16", "w8a8", "fp8", "w4a16", "fp32"))
SPEED = {"fp32": 0.5, "fp16": 1, "w4a16": 1, "w8a8": 2, "fp8": 2}
WIDTH = {"fp32": 4, "fp16": 2, "w4a16": 2, "w8a8": 1, "fp8": 1}


@pytest.fixture(scope="module")
def modelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, LatencyModel]:
    graph = wide(tmp_path_factory.mktemp("modelled")).graph
    groups = tensorrt.groups(graph, tensorrt.check_schemes(SCHEMES))
    return graph, model_latency(graph, groups, SCHEMES, tensorrt)


def by_hand(name: str, scheme: str) -> float:
    """Of two layers of `Wide`, on tensor cores."""
    macs = {"one": 16 * 16 * 9 * 144, "head": 320}[name]
    return max(macs / (TENSOR_CORES.macs_per_s * SPEED[scheme]), by_hand_bytes(name, scheme))


def by_hand_bytes(name: str, scheme: str) -> float:
    """Elements read and written, and bytes of weights with scales and biases."""
    elements = {"one": 2 * 16 * 144, "head": 32 + 10}[name]
    count, channels = {"one": (16 * 16 * 9, 16), "head": (320, 10)}[name]
    weights = {
        "fp32": 4 * count + 4 * channels, "fp16": 2 * count + 2 * channels, "w8a8": count + 4 * channels, "fp8": count + 4 * channels,
        "w4a16": count / 2 + 2 * count / 32 + 2 * channels,
    }[scheme]  # fmt: skip
    return weights + elements * WIDTH[scheme]


def test_a_layer_takes_what_the_formula_says(modelled: tuple[object, LatencyModel]) -> None:
    _, model = modelled
    for name in ("one", "head"):
        for scheme in SCHEMES:
            if name == "head" or scheme != "w4a16":
                ratio = model.table.at(name, scheme) / model.table.at(name, "fp16")
                assert ratio == pytest.approx(by_hand(name, scheme) / by_hand(name, "fp16"), rel=1e-9)
    assert math.isnan(model.table.at("one", "w4a16")) and math.isnan(model.table.at("stem", "w8a8"))


def test_all_in_half_is_one_and_nothing_claims_to_be_a_measurement(modelled: tuple[object, LatencyModel]) -> None:
    _, model = modelled
    halves = dict.fromkeys(model.table.groups, parse_scheme("fp16"))
    assert model.predicted_ms(halves) == pytest.approx(1.0)
    assert model.table.unit == UNIT == "relative time" and model.table.name == "modelled latency on tensor cores"
    assert math.isnan(model.rank_correlation) and model.tested == () and model.offset_ms == 0
    again = LatencyModel.from_json(model.to_json())
    np.testing.assert_array_equal(again.table.values, model.table.values)


def test_a_change_of_type_costs_what_crosses(modelled: tuple[object, LatencyModel]) -> None:
    _, model = modelled
    edge = next(edge for edge in model.boundaries if (edge.producer, edge.consumer) == ("one", "two"))
    scale = model.table.at("head", "fp16") / by_hand("head", "fp16")
    assert edge.latency_ms == pytest.approx(16 * 144 * 3 * scale)
    mixed = parse_allocation(dict.fromkeys(model.table.groups, "fp16") | {"two": "w8a8"})
    charged = [edge for edge in model.boundaries if mixed[edge.producer].is_float != mixed[edge.consumer].is_float]
    wanted = model.table.total(mixed) + sum(edge.latency_ms for edge in charged)
    assert len(charged) == 2 and model.predicted_ms(mixed) == pytest.approx(wanted)


TEXT = """
name = "edge unit"
macs_per_s = 2e9
bytes_per_s = 30e6
launch_us = 1.5
[speed]
w8a8 = 3.0
"""


def test_a_machine_of_the_user_s_own_decides_what_a_layer_takes(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(TEXT)
    machine = read_machine(tmp_path / "edge.toml")
    graph = wide(tmp_path).graph
    groups = tensorrt.groups(graph, tensorrt.check_schemes(SCHEMES))
    model = model_latency(graph, groups, SCHEMES, tensorrt, machine)

    def seconds(name: str, scheme: str) -> float:
        macs, moved = {"one": 16 * 16 * 9 * 144, "head": 320}[name], by_hand_bytes(name, scheme)
        speed = {**SPEED, "w8a8": 3.0}[scheme]
        return max(macs / (2e9 * speed), moved / 30e6) + 1.5e-6

    assert machine == Machine("edge unit", 2e9, 30e6, 1.5e-6, {"w8a8": 3.0})
    for scheme in ("w8a8", "fp32", "fp8"):
        ratio = model.table.at("one", scheme) / model.table.at("head", "fp16")
        assert ratio == pytest.approx(seconds("one", scheme) / seconds("head", "fp16"), rel=1e-9)
    assert model.table.name == "modelled latency on edge unit"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("macs_per_s = 1e9", "does not say bytes_per_s"),
        (TEXT + "w9z9 = 1.0", "no scheme: .*w9z9"),
        (TEXT.replace("2e9", "-1"), "macs_per_s = -1.*above 0"),
        (TEXT.replace("1.5", "-1"), "launch_us = -1.*at least 0"),
        (TEXT.replace("3.0", "true"), "w8a8 = True"),
        (TEXT.replace("3.0", "inf"), "w8a8 = inf"),
        (TEXT.replace("name", "nmae"), "nmae"),
        (TEXT.replace('"edge unit"', "3"), "name = 3"),
        (TEXT.partition("[speed]")[0] + "speed = 2", r"table \[speed\]"),
        ("macs_per_s", "not TOML"),
    ],
)
def test_what_is_no_machine_is_one_line(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        read_machine(tmp_path / "edge.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        read_machine(tmp_path / "none.toml")
