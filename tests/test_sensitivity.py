"""What every estimator promises: the whole table, in known units, the same under the same seed, however groups and batches are cut."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toys
from torch import nn

from quantkit.core.errors import RequestError
from quantkit.core.spec import FLOAT, parse_schemes
from quantkit.quantization.simulation.program import Simulation
from quantkit.sensitivity import COSTS, METHODS, SENSITIVITIES, Cost, Scores, pyhessian
from quantkit.sensitivity import context as contexts
from quantkit.sensitivity.passes.batches import cached_batch
from quantkit.sensitivity.passes.perturbed import FLOAT_PLACEMENT
from quantkit.targets import ort_cpu, tensorrt

WEIGHTS_ONLY = {"gauss_newton", "hessian", "hessian_cross", "pyhessian", "weight_error"}
DRAWN = {"gauss_newton", "hessian", "hessian_activation", "noise", "pyhessian"}  # where there are labels
WITH_INTERACTIONS = {"augmented", "displacement", "hessian_cross", "pairs"}
NEVER_NEGATIVE = {"augmented", "displacement", "fisher", "fisher_output", "gauss_newton", "kl", "noise", "pairs", "weight_error"}
# Probes are drawn for a whole batch, so another cut is another draw.
CUT_MATTERS = {"augmented", "hessian", "hessian_activation", "pyhessian"}

pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")  # PyHessian's way


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    torch.manual_seed(5)
    return replace(toys.unpack(toys.Toy().eval()), items=toys.subset(11, seed=4))  # untrained, so that the loss is not flat


@pytest.fixture(scope="module")
def scores(box: toys.Toybox) -> dict[str, Scores]:
    return {name: estimate(toys.context(box)) for name, estimate in SENSITIVITIES.items()}


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_the_table_is_whole_and_says_its_unit(box: toys.Toybox, scores: dict[str, Scores], name: str) -> None:
    table, moved = scores[name].table, 0
    assert (table.name, table.schemes, table.groups) == (name, toys.SCHEMES, tuple(group.name for group in box.groups))
    assert table.unit == ("share of the largest weight" if name == "weight_error" else "nats")
    for group in box.groups:
        weightless = all(box.captured.graph.layer(layer).weight is None for layer in group.layers)
        for scheme in toys.SCHEMES:
            value = table.at(group.name, scheme)
            if scheme not in group.schemes:
                assert np.isnan(value)
            elif scheme == "fp32" or (weightless and name in WEIGHTS_ONLY):
                assert value == 0
            else:
                assert np.isfinite(value) and value != 0
                assert value > 0 or name not in NEVER_NEGATIVE
                moved += 1
    assert moved == (10 if name in WEIGHTS_ONLY else 12)


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_interactions_are_symmetric_zero_where_impossible_and_agree_with_the_table(
    box: toys.Toybox, scores: dict[str, Scores], name: str
) -> None:
    table, pairs = scores[name].table, scores[name].interactions
    assert (pairs is not None) == (name in WITH_INTERACTIONS)
    if pairs is None:
        return
    np.testing.assert_allclose(pairs.matrix, pairs.matrix.T)
    for group in box.groups:
        for scheme in toys.SCHEMES:
            place = pairs.index(group.name, scheme)
            if scheme == "fp32" or scheme not in group.schemes:
                assert not pairs.matrix[place].any()
            elif name != "augmented":  # whose table holds what lies off the diagonal
                assert 0.5 * pairs.matrix[place, place] == pytest.approx(table.at(group.name, scheme), rel=1e-6)


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_plain_values_have_their_own_unit(box: toys.Toybox, name: str) -> None:
    table = SENSITIVITIES[name](toys.context(box, "identity", items=box.items.first(3))).table

    assert table.unit == ("share of the largest weight" if name == "weight_error" else "half squared distance")
    assert table.at("classifier", "w4a8") != 0, "a distance has no gradient at the float network, and yet it is curved"


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_the_order_of_the_groups_changes_nothing(box: toys.Toybox, scores: dict[str, Scores], name: str) -> None:
    turned = SENSITIVITIES[name](toys.context(box, groups=box.groups[::-1]))

    np.testing.assert_allclose(turned.table.values[::-1], scores[name].table.values, rtol=1e-6)
    if turned.interactions is not None and scores[name].interactions is not None:
        size, schemes = len(box.groups), len(toys.SCHEMES)
        back = turned.interactions.matrix.reshape(size, schemes, size, schemes)[::-1, :, ::-1].reshape(size * schemes, -1)
        np.testing.assert_allclose(back, scores[name].interactions.matrix, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SENSITIVITIES.keys() - CUT_MATTERS))
def test_the_size_of_the_batches_changes_nothing_beyond_rounding(
    box: toys.Toybox, scores: dict[str, Scores], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another batch may add in another order, and then one activation in some thousands gets the code beside its own."""
    monkeypatch.setattr(contexts.Context, "batch_size", lambda *_: 4)
    values = scores[name].table.values

    np.testing.assert_allclose(SENSITIVITIES[name](toys.context(box)).table.values, values, rtol=1e-2, atol=1e-3 * np.nanmax(values))


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_the_seed_matters_where_something_is_drawn_and_only_there(box: toys.Toybox, scores: dict[str, Scores], name: str) -> None:
    torch.manual_seed(17)  # torch's own source of randomness has no part in it
    before = torch.get_rng_state()
    again, other = (SENSITIVITIES[name](toys.context(box, seed=seed)).table.values for seed in (0, 1))

    np.testing.assert_array_equal(again, scores[name].table.values)
    if name != "augmented":  # where the seed matters only if a trace is larger than the displacement
        assert np.array_equal(other, again, equal_nan=True) == (name not in DRAWN)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_the_items_matter_where_there_are_passes(box: toys.Toybox, scores: dict[str, Scores], name: str) -> None:
    few = SENSITIVITIES[name](toys.context(box, items=box.items.first(3))).table.values

    assert np.array_equal(few, scores[name].table.values, equal_nan=True) == (name == "weight_error")


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_fewer_bits_move_more_at_the_end_of_the_network(scores: dict[str, Scores], name: str) -> None:
    assert abs(scores[name].table.at("classifier", "w4a8")) > 4 * abs(scores[name].table.at("classifier", "w8a8"))


@pytest.mark.parametrize("name", ["fisher", "fisher_output", "hessian_cross"])
def test_labels_matter_unless_they_mean_nothing_here(box: toys.Toybox, scores: dict[str, Scores], name: str) -> None:
    """Of a network of ReLUs the Hessian's own blocks are the same at every label; what lies off them is not."""

    def numbers(found: Scores) -> np.ndarray:
        return found.table.values if found.interactions is None else found.interactions.matrix

    ignored = numbers(SENSITIVITIES[name](toys.context(box, labelled=False)))
    unlabelled = numbers(SENSITIVITIES[name](toys.context(box, items=toys.subset(11, seed=4, labelled=False))))

    np.testing.assert_array_equal(ignored, unlabelled)
    assert not np.allclose(ignored, numbers(scores[name]), rtol=1e-2, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_the_callers_network_is_as_it_was(box: toys.Toybox, name: str) -> None:
    module = box.captured.module
    state = {key: value.clone() for key, value in module.state_dict().items()}
    SENSITIVITIES[name](toys.context(box, items=box.items.first(2)))

    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key])
    assert all(parameter.grad is None for parameter in module.parameters())


class Told:
    """Hears notes and stages."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
        yield self.advance

    def advance(self, steps: int) -> None:
        self.steps += steps

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("name", SENSITIVITIES)
@pytest.mark.parametrize("schemes", [(FLOAT,), toys.SCHEMES], ids=["no other scheme", "all pinned"])
def test_where_nothing_can_be_quantized_nothing_is_hurt(box: toys.Toybox, name: str, schemes: tuple[str, ...]) -> None:
    pinned = tuple(replace(group, schemes=(FLOAT,)) for group in box.groups)
    found = SENSITIVITIES[name](toys.context(box, groups=pinned, schemes=schemes, items=box.items.first(2)))

    assert not np.nan_to_num(found.table.values).any()
    assert found.interactions is None or not found.interactions.matrix.any()


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_formats_of_other_targets_are_scored_too(name: str) -> None:
    """Half, E4M3, blocks of 4 bits, two levels, codebooks, weights that are only stored narrow: whatever the target can isolate."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.convolution, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, toys.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.convolution(torch.relu(self.stem(x)))).mean(dim=(2, 3)))

    torch.manual_seed(0)
    box = toys.unpack(Wide().eval())
    menus = {
        tensorrt: parse_schemes(("fp32", "fp16", "fp8", "w4a16", "w8a8")),
        ort_cpu: parse_schemes(("fp32", "w8a8", "w4g16a8", "c4a8", "w8a32", "w4a32")),
    }
    found = {}
    for target, schemes in menus.items():
        groups = target.groups(box.captured.graph, target.check_schemes(schemes))
        table = SENSITIVITIES[name](toys.context(box, groups=groups, schemes=schemes, target=target, items=box.items.first(6))).table
        found |= {scheme: abs(table.at("head", scheme)) for scheme in schemes}
        for group in groups:
            blind = name in WEIGHTS_ONLY and not box.captured.graph.layer(group.layers[0]).weight
            for scheme in schemes:
                assert np.isnan(table.at(group.name, scheme)) == (scheme not in group.schemes)
                assert (table.at(group.name, scheme) == 0) == (scheme == "fp32" or blind) or scheme not in group.schemes
    assert found["fp16"] < found["w4a16"] and found["w8a32"] < found["w4a32"]


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_its_cost_is_told_before_it_starts(box: toys.Toybox, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(METHODS[name], "estimate", lambda context: told.notes.append(f"after {told.steps}"))
    context = toys.context(box, progress=told)
    SENSITIVITIES[name](context)

    assert told.notes == [told.notes[0], "after 0"]
    assert told.notes[0].startswith(f"sensitivity {name}: at most {COSTS[name](context).passes:,.0f} passes of one item")


def test_costs_are_what_the_formulas_say(box: toys.Toybox) -> None:
    context = toys.context(box)
    costs = {name: cost(context) for name, cost in COSTS.items()}
    macs = {layer.name: layer.macs for layer in box.captured.graph.layers}
    total = sum(macs.values())
    shares = {
        name: sum(macs[later] for later in list(macs)[place:]) / total for place, name in enumerate(macs)
    }  # the toy is a chain, its shortcut aside
    menu = {group.name: len(group.schemes) - 1 for group in box.groups}
    singles = sum(shares[name] * menu[name] for name in menu)
    both = sum(shares[name] * menu[name] * sum(menu[earlier] for earlier in list(menu)[:place]) for place, name in enumerate(menu))

    assert costs["weight_error"] == Cost()
    assert costs["kl"] == costs["displacement"] == Cost(pytest.approx(11 * (1 + singles)))
    assert costs["noise"] == Cost(pytest.approx(11 * (1 + 2 * singles)))
    assert costs["pairs"] == Cost(pytest.approx(11 * (1 + singles + both)))
    assert costs["hessian"] == Cost(11, 11, 11 * 20) and costs["hessian_activation"] == Cost(8, 8, 80)
    assert costs["augmented"] == costs["gauss_newton"] + costs["displacement"]
    assert costs["hessian_cross"] == Cost(8, 8, 8 * 10)
    assert costs["gauss_newton"] == Cost(11, 22) and costs["fisher"] == Cost(11, 11) and costs["fisher_output"] == Cost(33, 11)
    assert costs["pyhessian"] == Cost(40, 40, 4000)
    assert costs["aumann_shapley"] == Cost(11 * 9, 11 * 4)
    assert Cost(1, 1, 1).passes == 7


def test_more_items_than_a_method_looks_at_cost_nothing(box: toys.Toybox) -> None:
    many = toys.context(box, items=toys.subset(300, seed=4))

    assert COSTS["fisher"](many) == Cost(128, 128)
    assert COSTS["kl"](many).forward == pytest.approx(256 / 11 * COSTS["kl"](toys.context(box)).forward)


def test_memory_bounds_the_batch_down_to_one_item(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    values = Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run({"x": toys.images(1, seed=0)[0]})
    parameters = dict(box.captured.module.named_parameters())
    flowing = [value for name, value in values.items() if name != "output" and not any(value is one for one in parameters.values())]
    counted = sum(value.numel() for value in flowing)
    sizes: list[int] = []
    original = contexts.network_batches

    def spied(graph: Any, items: Any, size: int, device: Any) -> Any:
        sizes.append(size)
        return original(graph, items, size, device)

    monkeypatch.setattr(contexts, "network_batches", spied)
    monkeypatch.setattr(contexts, "BATCH", 10**6)
    monkeypatch.setattr(contexts, "cached_batch", lambda _: 10**6)
    bounded = toys.context(box, memory_mb=1)

    assert bounded.batch_size(2) == 1_000_000 // (2 * 4 * counted)
    assert bounded.batch_size(2, rows=100) == 1_000_000 // (2 * 4 * counted + 100 * 12 * toys.CLASSES)
    assert bounded.batch_size(10**9) == 1
    for estimate in SENSITIVITIES.values():
        estimate(bounded)
    assert sizes and max(sizes) <= bounded.batch_size(2) < 50
    assert toys.context(box).batch_size(2) == pytest.approx(2048 * bounded.batch_size(2), abs=2048)


def test_a_batch_of_a_pass_is_as_large_as_the_caches_hold_it(box: toys.Toybox) -> None:
    graph = box.captured.graph

    def of_bytes(largest: int) -> int:
        tensors = (*graph.tensors, replace(graph.tensors[0], shape=(largest // 4,)))
        return cached_batch(replace(graph, tensors=tensors))

    assert [of_bytes(size) for size in (4 << 10, 128 << 10, 8 << 20)] == [64, 32, 8]


def test_without_the_package_one_line_says_what_to_install(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "pyhessian":
            raise ModuleNotFoundError("No module named 'pyhessian'")
        return original(name, *rest)

    monkeypatch.delitem(sys.modules, "pyhessian", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)

    with pytest.raises(RequestError, match=r"pyhessian is not installed; next: pip install 'quantkit\[pyhessian\]'"):
        pyhessian.estimate(toys.context(box))
