"""The Gram matrix of displacements, against its formula in double precision, one item and one pair at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

from quantkit.data import Batch, collect
from quantkit.data.splits import whole
from quantkit.passes.perturbed import FLOAT_PLACEMENT, Displacements
from quantkit.sensitivity import displacement
from quantkit.sensitivity.displacement import estimate, gram, measure_gram, subtract, whiten_scores
from quantkit.simulation import Simulation
from quantkit.spec import parse_scheme
from quantkit.table import Interactions
from quantkit.targets import ort_cpu


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    return toys.toybox()


@pytest.fixture(scope="module")
def measured(box: toys.Toybox) -> Interactions:
    return measure_gram(toys.scene(box))


def outputs(box: toys.Toybox, group: str | None = None, scheme: str = "fp32") -> np.ndarray:
    """Scores of all items with one group quantized, in double precision from here on."""
    layers = next((found.layers for found in box.groups if found.name == group), ())
    placement = ort_cpu.isolate(box.captured.graph, layers, parse_scheme(scheme)) if layers else FLOAT_PLACEMENT
    simulation = Simulation(box.captured, placement, box.bank)
    return torch.cat([simulation.run(dict(batch.inputs))["output"][0] for batch in box.items.batches(16)]).double().numpy()


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def explicit(box: toys.Toybox, one: tuple[str, str], other: tuple[str, str], curvature: str) -> float:
    """1/N Σ u' F v with F written out as a matrix."""
    plain = outputs(box)
    u, v = outputs(box, *one) - plain, outputs(box, *other) - plain
    total = 0.0
    for n, scores in enumerate(plain):
        p = softmax(scores)
        curved = np.diag(p) - np.outer(p, p) if curvature == "softmax" else np.eye(len(p))
        total += u[n] @ curved @ v[n]
    return total / len(plain)


@pytest.mark.parametrize("curvature", ["softmax", "identity"])
def test_the_gram_is_the_sum_over_items_with_the_curvature_written_out(box: toys.Toybox, curvature: str) -> None:
    found = measure_gram(toys.scene(box, curvature))  # type: ignore[arg-type]
    pairs = [("stem", "w4a8"), ("stem", "w8a8"), ("down", "w4a8"), ("classifier", "w4a8")]

    for one in pairs:
        for other in pairs:
            wanted = explicit(box, one, other, curvature)
            np.testing.assert_allclose(found.matrix[found.index(*one), found.index(*other)], wanted, rtol=2e-4, atol=1e-9)


def test_it_is_symmetric_and_no_direction_gains(measured: Interactions) -> None:
    np.testing.assert_allclose(measured.matrix, measured.matrix.T)
    assert np.linalg.eigvalsh(measured.matrix).min() > -1e-9 * np.abs(measured.matrix).max()


def test_the_table_is_half_the_diagonal_and_nan_where_a_group_cannot(box: toys.Toybox) -> None:
    scores = estimate(toys.scene(box))
    assert scores.interactions is not None
    for group in box.groups:
        for scheme in toys.SCHEMES:
            value = scores.table.at(group.name, scheme)
            place = scores.interactions.index(group.name, scheme)
            if scheme not in group.schemes:
                assert np.isnan(value) and not scores.interactions.matrix[place].any()
            else:
                assert value == 0.5 * scores.interactions.matrix[place, place]
                assert (value == 0) == (scheme == "fp32")
    assert any("w4a8" not in group.schemes for group in box.groups), "the toy has an addition, which has no 4 bits"
    assert (scores.table.name, scores.table.unit) == ("displacement", "nats")
    assert estimate(toys.scene(box, "identity")).table.unit != "nats"


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_small_perturbations_diverge_as_predicted(scheme: str) -> None:
    """½ x'Gx against the divergence of the network in which all chosen groups are perturbed at once."""
    torch.manual_seed(5)
    box = toys.unpack(toys.Toy().eval())
    chosen = dict.fromkeys(("stem", "depthwise", "point", "down", "classifier"), scheme)
    simulation = Simulation(box.captured, ort_cpu.isolate(box.captured.graph, list(chosen), parse_scheme(scheme)), box.bank)
    moved = torch.cat([simulation.run(dict(batch.inputs))["output"][0] for batch in box.items.batches(16)]).double()
    log_p, log_q = F.log_softmax(torch.from_numpy(outputs(box)), 1), F.log_softmax(moved, 1)
    divergence = float((log_p.exp() * (log_p - log_q)).sum(1).mean())

    assert measure_gram(toys.scene(box)).predicted(chosen) == pytest.approx(divergence, rel=0.3)


def test_weights_that_are_only_stored_narrow_move_the_outputs_as_the_weights_alone_do() -> None:
    """The network with those weights put into it says the same."""
    box = toys.unpack(toys.trained(), ("fp32", "w8a8", "w4a32"))
    name, scheme = "down", parse_scheme("w4a32")
    layer = box.captured.graph.layer(name)
    placement = ort_cpu.isolate(box.captured.graph, [name], scheme)
    assert placement.schemes == {} and placement.inputs == frozenset() and placement.stored == {name: scheme}
    inputs = dict(next(iter(box.items.batches(16))).inputs)
    moved = Simulation(box.captured, placement, box.bank).run(inputs)["output"][0]
    changed = copy.deepcopy(box.captured.module)
    with torch.no_grad():
        dict(changed.named_parameters())[str(layer.weight)].copy_(box.bank.stored_weight(layer, scheme))
    assert torch.equal(moved, torch.as_tensor(changed(*inputs.values())))
    assert all(group.schemes == ("fp32", "w8a8") for group in box.groups if not box.captured.graph.layer(group.layers[0]).weight)


def test_tokens_weigh_as_a_mean_over_positions_and_outputs_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = (torch.randn(5, 3, 4, generator=generator), torch.randn(5, 2, generator=generator))
    one, other = ([output + 0.1 * torch.randn(output.shape, generator=generator) for output in plain] for _ in range(2))
    whitened = [whiten_scores(plain, tuple(moved)) for moved in (one, other)]
    found = gram(Displacements((("a", "w8a8"), ("b", "w8a8")), torch.stack(whitened).numpy()), ("a", "b"), ("w8a8",))
    wanted = 0.0
    for unmoved, first, second in zip(plain, one, other, strict=True):
        rows = [values.double().reshape(5, -1, values.shape[-1]) for values in (unmoved, first - unmoved, second - unmoved)]
        for item in range(5):
            for z, u, v in zip(*(row[item] for row in rows), strict=True):
                p = z.softmax(0)
                wanted += float(u @ (torch.diag(p) - torch.outer(p, p)) @ v) / (5 * rows[0].shape[1])

    assert found.matrix[0, 1] == pytest.approx(wanted, rel=1e-4)


def test_plain_values_are_subtracted_all_outputs_in_a_row() -> None:
    plain, moved = (torch.zeros(2, 3, 1), torch.ones(2)), (torch.full((2, 3, 1), 2.0), torch.full((2,), 5.0))

    assert subtract(plain, moved).tolist() == [[2.0, 2.0, 2.0, 4.0]] * 2


@pytest.mark.parametrize(
    ("passes", "wanted"), [(1.0, 16), (20.0, 20), (1e9, 24)], ids=["at least a batch", "what is affordable", "all there are"]
)
def test_macs_bound_the_items(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch, passes: float, wanted: int) -> None:
    pairs = sum(scheme != "fp32" for group in box.groups for scheme in group.schemes)
    macs = sum(layer.macs for layer in box.captured.graph.layers)
    few, fewer = (measure_gram(toys.scene(box, items=box.items.first(count))).matrix for count in (wanted, wanted - 1))
    monkeypatch.setattr(displacement, "MOST_MACS", passes * pairs * macs / 2)
    bounded = measure_gram(toys.scene(box)).matrix

    np.testing.assert_array_equal(bounded, few)
    assert not np.array_equal(bounded, fewer)


def test_most_items_bound_them_too(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    few = measure_gram(toys.scene(box, items=box.items.first(9))).matrix
    monkeypatch.setattr(displacement, "MOST_ITEMS", 9)

    np.testing.assert_array_equal(measure_gram(toys.scene(box)).matrix, few)


def test_a_network_of_fixed_batch_is_scored_in_full_batches() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.convolution(x).reshape(4, 4, 36).mean(2)  # a batch of 4 and no other

    torch.manual_seed(0)
    program = torch.export.export(Fixed().eval(), (torch.zeros(4, 3, 8, 8),))
    box = toys.unpack(program)
    whole, short = (measure_gram(toys.scene(box, items=box.items.first(count))).matrix for count in (4, 3))

    assert box.captured.graph.batch == 4
    assert np.isfinite(short).all() and short.any() and not np.array_equal(whole, short)


def test_items_are_bound_by_the_names_of_the_networks_inputs(box: toys.Toybox) -> None:
    inputs, labels = toys.images(8, seed=2)
    renamed = whole(collect([Batch({"picture": inputs}, labels)]))
    same = box.items.first(8)

    np.testing.assert_array_equal(measure_gram(toys.scene(box, items=renamed)).matrix, measure_gram(toys.scene(box, items=same)).matrix)
