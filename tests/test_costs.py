"""Bytes of the tables against bytes of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.allocation.costs.counted import byte_costs
from quantkit.core.spec import parse_allocation, parse_schemes
from quantkit.targets import ort_cpu

SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))


class Heavy(nn.Module):
    """Mostly weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 96, 3)
        self.second = nn.Conv2d(96, 128, 3)
        self.head = nn.Linear(128, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    torch.manual_seed(0)
    return toys.unpack(Heavy().eval())


@pytest.mark.parametrize(
    "allocation",
    [
        dict.fromkeys(("first", "second", "global_pool", "head"), "w8a8"),
        {**dict.fromkeys(("first", "second", "head"), "w4a8"), "global_pool": "w8a8"},
        {"first": "fp32", "second": "w4a8", "global_pool": "fp32", "head": "w8a8"},
    ],
    ids=["w8a8", "w4a8", "mixed"],
)
def test_the_table_foretells_the_file(box: toys.Toybox, tmp_path: Path, allocation: dict[str, str]) -> None:
    """What the graph itself takes is the same whatever the bits; it is read off the float file."""
    candidates = toys.candidates(box, tmp_path)
    table = byte_costs(box.captured.graph, box.groups, SCHEMES, ort_cpu)
    weights = table.total(dict.fromkeys(table.groups, "fp32"))
    overhead = candidates.float_file.stat().st_size - weights
    size = candidates.size(parse_allocation(allocation))

    assert weights > 0.95 * candidates.float_file.stat().st_size
    assert table.total(allocation) + overhead == pytest.approx(size, rel=0.02, abs=6_000)


def test_bits_are_what_two_files_differ_in(box: toys.Toybox, tmp_path: Path) -> None:
    candidates = toys.candidates(box, tmp_path)
    table = byte_costs(box.captured.graph, box.groups, SCHEMES, ort_cpu)
    wide, narrow = ({**dict.fromkeys(("first", "second", "head"), scheme), "global_pool": "w8a8"} for scheme in ("w8a8", "w4a8"))
    difference = candidates.size(parse_allocation(wide)) - candidates.size(parse_allocation(narrow))

    assert difference == pytest.approx(table.total(wide) - table.total(narrow), rel=0.02)


def test_each_scheme_costs_its_bits_scales_and_bias(box: toys.Toybox) -> None:
    table = byte_costs(box.captured.graph, box.groups, SCHEMES, ort_cpu)
    count, channels = 96 * 128 * 9, 128

    assert table.at("second", "fp32") == 4 * count + 4 * channels
    assert table.at("second", "w8a8") == count + 8 * channels
    assert table.at("second", "w4a8") == count / 2 + 8 * channels
    assert table.unit == "bytes"


def test_a_shared_weight_counts_once_an_addition_nothing_and_the_impossible_is_nan() -> None:
    tied = toys.unpack(toys.TiedToy().eval())
    shared = byte_costs(tied.captured.graph, tied.groups, SCHEMES, ort_cpu)
    box = toys.toybox()
    table = byte_costs(box.captured.graph, box.groups, SCHEMES, ort_cpu)
    addition = next(group.name for group in box.groups if group.schemes == ("fp32", "w8a8"))

    assert shared.at("twice", "fp32") == 4 * (3 * 3 * 9 + 3) and len(tied.groups[0].layers) == 2
    assert (table.at(addition, "fp32"), table.at(addition, "w8a8")) == (0, 0)
    assert np.isnan(table.at(addition, "w4a8"))
