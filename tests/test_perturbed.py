"""Displacements equal whole passes with one group quantized, item by item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import toys

from quantkit.graph import Group
from quantkit.passes.perturbed import FLOAT_PLACEMENT, Displacements, displace
from quantkit.sensitivity.displacement import subtract
from quantkit.simulation import Simulation
from quantkit.spec import parse_scheme
from quantkit.targets import ort_cpu


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    return toys.toybox()


@pytest.fixture(scope="module")
def tied() -> toys.Toybox:
    torch.manual_seed(3)
    return toys.unpack(toys.TiedToy().eval())


def displaced(box: toys.Toybox, batch_size: int = 8, groups: Sequence[Group] | None = None) -> Displacements:
    batches = [dict(batch.inputs) for batch in box.items.batches(batch_size)]
    return displace(box.captured, box.groups if groups is None else groups, ort_cpu, box.bank, batches, subtract, lambda _: None)


def one_pass(box: toys.Toybox, group: str, scheme: str, batch_size: int) -> np.ndarray:
    """The whole network from its inputs on, only this group quantized, minus the float module's own answer."""
    layers = next(found.layers for found in box.groups if found.name == group)
    simulation = Simulation(box.captured, ort_cpu.isolate(box.captured.graph, layers, parse_scheme(scheme)), box.bank)
    plain = Simulation(box.captured, FLOAT_PLACEMENT, box.bank)
    rows = [
        simulation.run(dict(batch.inputs))["output"][0] - plain.run(dict(batch.inputs))["output"][0]
        for batch in box.items.batches(batch_size)
    ]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("name", ["box", "tied"])
def test_displacements_are_those_of_whole_passes_to_the_last_bit(name: str, request: pytest.FixtureRequest) -> None:
    box = request.getfixturevalue(name)
    found = displaced(box)

    assert found.pairs == tuple((group.name, scheme) for group in box.groups for scheme in group.schemes if scheme != "fp32")
    for (group, scheme), values in zip(found.pairs, found.values, strict=True):
        np.testing.assert_array_equal(values, one_pass(box, group, scheme, 8), err_msg=f"{group} {scheme}")
        assert values.any(), f"{group} under {scheme} moves nothing"


def test_without_quantizers_the_simulation_is_the_callers_network(box: toys.Toybox) -> None:
    inputs = dict(next(box.items.batches(24)).inputs)
    simulated = Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run(inputs)["output"][0]

    torch.testing.assert_close(simulated, toys.trained()(inputs["x"]), rtol=1e-4, atol=1e-5)


def test_only_what_lies_behind_the_group_is_run_again_and_the_cache_stays_as_it_was(box: toys.Toybox) -> None:
    graph = box.captured.graph
    inputs = dict(next(box.items.batches(8)).inputs)
    base = Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run(inputs)
    before = dict(base)
    down = Simulation(box.captured, ort_cpu.isolate(graph, ["down"], parse_scheme("w4a8")), box.bank)
    again = down.rerun(base, [graph.layer("down").node])

    assert base.keys() == before.keys() and all(base[name] is before[name] for name in before)
    assert again[graph.layer("stem").output] is base[graph.layer("stem").output]
    assert again[graph.layer("down").output] is not base[graph.layer("down").output]


def test_the_order_and_number_of_items_do_not_depend_on_the_batches(box: toys.Toybox) -> None:
    small, large = displaced(box, batch_size=7), displaced(box, batch_size=24)

    assert small.values.shape == large.values.shape == (len(small.pairs), len(box.items), toys.CLASSES)
    np.testing.assert_allclose(small.values, large.values, atol=1e-4)  # sums of other batch sizes may differ in the last bits


def test_progress_counts_every_item_once(box: toys.Toybox) -> None:
    steps: list[int] = []
    batches = [dict(batch.inputs) for batch in box.items.batches(7)]
    displace(box.captured, box.groups[:1], ort_cpu, box.bank, batches, subtract, steps.append)

    assert steps == [7, 7, 7, 3]


def test_where_nothing_can_be_quantized_there_is_no_displacement(box: toys.Toybox) -> None:
    pinned = [Group(group.name, group.layers, ("fp32",), "pinned") for group in box.groups]

    assert displaced(box, groups=pinned).values.shape == (0, len(box.items), toys.CLASSES)
