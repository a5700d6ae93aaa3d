"""Perturbed passes equal whole passes with the same groups changed, item by item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import toys

from quantkit.core.graph import Group
from quantkit.core.numerics.affine import dequantize, fake_quantize
from quantkit.core.spec import FLOAT, parse_scheme
from quantkit.quantization.simulation.program import Simulation
from quantkit.sensitivity.passes import perturbed
from quantkit.sensitivity.passes.outputs import whitened
from quantkit.sensitivity.passes.perturbed import FLOAT_PLACEMENT, Perturbed, alone, in_pairs, noisy
from quantkit.targets import ort_cpu
from quantkit.targets.placement import Placement


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    return toys.toybox()


@pytest.fixture(scope="module")
def tied() -> toys.Toybox:
    torch.manual_seed(3)
    return toys.unpack(toys.TiedToy().eval())


def single(box: toys.Toybox, groups: Sequence[Group] | None = None) -> Perturbed:
    return alone(box.captured, box.groups if groups is None else groups, ort_cpu, box.bank)


def displaced(box: toys.Toybox, changed: Perturbed, batch_size: int = 8) -> np.ndarray:
    """[rows, items, outputs]: how far the outputs move."""
    parts = changed.displace(box.items.batches(batch_size), whitened("identity", 0))
    return np.concatenate(list(parts), axis=1)


def layers_of(box: toys.Toybox, group: str) -> tuple[str, ...]:
    return next(found.layers for found in box.groups if found.name == group)


def placed(box: toys.Toybox, *pairs: tuple[str, str]) -> Placement:
    """Several groups quantized, each as when it is alone."""
    parts = [ort_cpu.isolate(box.captured.graph, layers_of(box, group), parse_scheme(scheme)) for group, scheme in pairs]
    schemes = {name: scheme for part in parts for name, scheme in part.schemes.items()}
    inputs, biases = (frozenset().union(*(getattr(part, name) for part in parts)) for name in ("inputs", "float_bias"))
    return Placement(schemes, inputs, frozenset(), {}, float_bias=biases)


def one_pass(box: toys.Toybox, batch_size: int, *pairs: tuple[str, str]) -> np.ndarray:
    """The whole network from its inputs on, only these groups quantized, minus the float module's own answer."""
    simulation, plain = Simulation(box.captured, placed(box, *pairs), box.bank), Simulation(box.captured, FLOAT_PLACEMENT, box.bank)
    rows = [
        simulation.run(dict(batch.inputs))["output"][0] - plain.run(dict(batch.inputs))["output"][0]
        for batch in box.items.batches(batch_size)
    ]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("name", ["box", "tied"])
def test_displacements_are_those_of_whole_passes_to_the_last_bit(name: str, request: pytest.FixtureRequest) -> None:
    box = request.getfixturevalue(name)
    changed = single(box)

    assert changed.rows == tuple(((group.name, scheme),) for group in box.groups for scheme in group.schemes if scheme != "fp32")
    for (pair,), values in zip(changed.rows, displaced(box, changed), strict=True):
        np.testing.assert_array_equal(values, one_pass(box, 8, pair), err_msg=str(pair))
        assert values.any(), f"{pair} moves nothing"


@pytest.mark.parametrize("order", [1, -1], ids=["in the graph's order", "backwards"])
def test_pairs_are_whole_passes_with_both_quantized_to_the_last_bit(box: toys.Toybox, order: int) -> None:
    changed = in_pairs(box.captured, box.groups[::order], ort_cpu, box.bank)
    pairs = [(group.name, scheme) for group in box.groups for scheme in group.schemes if scheme != "fp32"]
    wanted = {frozenset({one, other}) for one in pairs for other in pairs if one[0] != other[0] or one == other}

    assert {frozenset(row) for row in changed.rows} == wanted and len(changed.rows) == len(wanted)
    for row, values in zip(changed.rows, displaced(box, changed), strict=True):
        np.testing.assert_array_equal(values, one_pass(box, 8, *row), err_msg=str(row))


@pytest.mark.parametrize("group", ["depthwise", "add", "classifier"])
def test_noise_has_the_size_of_the_error_on_weights_and_inputs(box: toys.Toybox, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ones for noise, the pass can be written down: W plus each channel's deviation, x plus each item's."""
    monkeypatch.setattr(perturbed, "_normal", lambda like, *_: torch.ones_like(like))
    scheme, graph = "w8a8", box.captured.graph
    (group_found,) = [found for found in box.groups if found.name == group]
    values = displaced(box, noisy(box.captured, [group_found], box.bank, 1, seed=0), batch_size=24)[0]
    layer, base = (
        graph.layer(layers_of(box, group)[0]),
        Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run(dict(next(box.items.batches(24)).inputs)),
    )
    inputs = []
    for slot, name in enumerate(layer.inputs):
        error = fake_quantize(base[name], box.bank.input_qparams(layer, slot)) - base[name]
        inputs.append(torch.stack([x + e.square().mean().sqrt() for x, e in zip(base[name], error, strict=True)]))
    state = dict(box.captured.module.named_parameters())
    if layer.weight:
        spec = parse_scheme(scheme).weights
        assert spec is not None
        quantized = box.bank.weight(layer, spec)
        error = dequantize(quantized.codes, quantized.qparams) - state[layer.weight]
        weight = torch.stack([w + e.square().mean().sqrt() for w, e in zip(state[layer.weight], error, strict=True)])
        node = next(node for node in box.captured.module.graph.nodes if node.name == layer.node)
        moved = node.target(inputs[0], weight, state[str(layer.bias)], *node.args[3:])
    else:
        moved = inputs[0] + inputs[1]
    behind = Simulation(box.captured, FLOAT_PLACEMENT, box.bank)
    suffix = dict(base) | {layer.node: moved}
    readers = next(tensor.consumers for tensor in graph.tensors if tensor.name == layer.node)
    wanted = (behind.rerun(suffix, readers)["output"][0] if readers else moved) - base["output"][0]

    np.testing.assert_allclose(values, wanted.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_noise_is_drawn_by_seed_repeat_and_item_and_is_the_same_for_every_scheme(box: toys.Toybox) -> None:
    first, again, other = (displaced(box, noisy(box.captured, box.groups[:1], box.bank, 2, seed)) for seed in (0, 0, 1))
    smaller_batches = displaced(box, noisy(box.captured, box.groups[:1], box.bank, 2, 0), batch_size=5)
    wide, narrow = first[0], first[2]  # 8 bits and 4 bits, the first repeat of each
    likeness = (wide * narrow).sum() / np.sqrt((wide**2).sum() * (narrow**2).sum())

    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, smaller_batches, atol=1e-4)
    assert not np.allclose(first, other)
    assert not np.allclose(first[0], first[1])
    assert (narrow**2).sum() > 4 * (wide**2).sum() and likeness > 0.5


def test_the_share_behind_a_group_is_counted_in_multiply_accumulates(box: toys.Toybox) -> None:
    graph = box.captured.graph
    macs = {layer.name: layer.macs for layer in graph.layers}
    by_name = {group.name: group for group in box.groups}
    behind = {"classifier": ["classifier"], "down": ["down", "classifier"], "add": ["down", "classifier"], "stem": list(macs)}

    for name, layers in behind.items():
        assert graph.share_behind(by_name[name]) == pytest.approx(sum(macs[layer] for layer in layers) / sum(macs.values()))
    some = (by_name["stem"], by_name["add"])
    assert toys.context(box, groups=some).reruns == pytest.approx(2 + graph.share_behind(some[1]))  # an Add has one scheme to run


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
    small, large = displaced(box, single(box), batch_size=7), displaced(box, single(box), batch_size=24)

    assert small.shape == large.shape == (len(single(box).rows), len(box.items), toys.CLASSES)
    np.testing.assert_allclose(small, large, atol=1e-4)  # sums of other batch sizes may differ in the last bits


def test_where_nothing_can_be_quantized_there_is_no_displacement(box: toys.Toybox) -> None:
    pinned = [Group(group.name, group.layers, (FLOAT,), "pinned") for group in box.groups]

    assert displaced(box, single(box, pinned)).shape == (0, len(box.items), 1)
