"""The Gram matrix of displacements, against its formula in double precision, one item and one pair at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

from quantkit.core.spec import parse_scheme
from quantkit.core.table import Interactions
from quantkit.data import Batch, collect
from quantkit.data.splits import whole
from quantkit.quantization.simulation.program import Simulation
from quantkit.sensitivity import context as contexts
from quantkit.sensitivity import kl
from quantkit.sensitivity.displacement import estimate
from quantkit.sensitivity.gram import gram, measure
from quantkit.sensitivity.passes import outputs
from quantkit.sensitivity.passes.batches import cached_batch
from quantkit.sensitivity.passes.perturbed import FLOAT_PLACEMENT
from quantkit.targets import ort_cpu


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    return toys.toybox()


@pytest.fixture(scope="module")
def measured(box: toys.Toybox) -> Interactions:
    return measure(toys.context(box))[0]


def scores_of(box: toys.Toybox, group: str | None = None, scheme: str = "fp32") -> np.ndarray:
    """Scores of all items with one group quantized, in double precision from here on.

    In batches of the passes' own size: another may add up in another order, and near a rounding boundary give another code.
    """
    layers = next((found.layers for found in box.groups if found.name == group), ())
    placement = ort_cpu.isolate(box.captured.graph, layers, parse_scheme(scheme)) if layers else FLOAT_PLACEMENT
    simulation = Simulation(box.captured, placement, box.bank)
    batches = box.items.batches(cached_batch(box.captured.graph))
    return torch.cat([simulation.run(dict(batch.inputs))["output"][0] for batch in batches]).double().numpy()


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def explicit(box: toys.Toybox, one: tuple[str, str], other: tuple[str, str], curvature: str) -> tuple[float, float]:
    """1/N Σ u' F v with F written out as a matrix, in double precision; and how far the Gram's float32 coordinates may lie from it.

    To first order: a coordinate of S'u, S = diag(√p) − p√p' (1 for plain values), is off by its magnitude times the unit roundoff ε for
    each operation behind it. The difference is one. Softmax adds the exponent's own rounding (ε times the range of the scores), and
    two sums over the classes. Products and sums over items are in float64 on both sides.
    """
    plain = scores_of(box)
    u, v = scores_of(box, *one) - plain, scores_of(box, *other) - plain
    total = slack = 0.0
    for n, scores in enumerate(plain):
        p = softmax(scores)
        curved = np.diag(p) - np.outer(p, p) if curvature == "softmax" else np.eye(len(p))
        total += u[n] @ curved @ v[n]
        operations = 2 * len(p) + 8 + 2 * np.ptp(scores) if curvature == "softmax" else 1
        sizes = [np.sqrt(p) * (abs(w[n]) + p @ abs(w[n])) if curvature == "softmax" else abs(w[n]) for w in (u, v)]
        slack += 2 * operations * 2.0**-24 * sizes[0] @ sizes[1]
    return total / len(plain), slack / len(plain)


@pytest.mark.parametrize("curvature", ["softmax", "identity"])
def test_the_gram_is_the_sum_over_items_with_the_curvature_written_out(box: toys.Toybox, curvature: str) -> None:
    found = measure(toys.context(box, curvature))[0]  # type: ignore[arg-type]
    pairs = [("stem", "w4a8"), ("stem", "w8a8"), ("down", "w4a8"), ("classifier", "w4a8")]

    for one in pairs:
        for other in pairs:
            wanted, slack = explicit(box, one, other, curvature)
            sizes = [explicit(box, pair, pair, curvature)[0] for pair in (one, other)]
            assert slack < 0.25 * np.sqrt(np.prod(sizes)), "a bound as large as what it bounds would prove nothing"
            np.testing.assert_allclose(found.matrix[found.index(*one), found.index(*other)], wanted, rtol=0, atol=slack)


def test_it_is_symmetric_and_no_direction_gains(measured: Interactions) -> None:
    np.testing.assert_allclose(measured.matrix, measured.matrix.T)
    assert np.linalg.eigvalsh(measured.matrix).min() > -1e-9 * np.abs(measured.matrix).max()


def test_the_table_is_half_the_diagonal_and_nan_where_a_group_cannot(box: toys.Toybox) -> None:
    scores = estimate(toys.context(box))
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
    assert estimate(toys.context(box, "identity")).table.unit != "nats"


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_small_perturbations_diverge_as_predicted(scheme: str) -> None:
    """½ x'Gx against the divergence of the network in which all chosen groups are perturbed at once."""
    torch.manual_seed(5)
    box = toys.unpack(toys.Toy().eval())
    chosen = dict.fromkeys(("stem", "depthwise", "point", "down", "classifier"), scheme)
    simulation = Simulation(box.captured, ort_cpu.isolate(box.captured.graph, list(chosen), parse_scheme(scheme)), box.bank)
    moved = torch.cat([simulation.run(dict(batch.inputs))["output"][0] for batch in box.items.batches(16)]).double()
    log_p, log_q = F.log_softmax(torch.from_numpy(scores_of(box)), 1), F.log_softmax(moved, 1)
    divergence = float((log_p.exp() * (log_p - log_q)).sum(1).mean())

    assert measure(toys.context(box))[0].predicted(chosen) == pytest.approx(divergence, rel=0.3)


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


def test_batches_add_up_to_a_mean_over_items() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    wanted = np.einsum("anc,bnc->ab", rows, rows) / 7

    ahead = np.concatenate([np.full((*rows.shape[:2], 1), 7.0, rows.dtype), rows], axis=2)  # the measure that stands in front
    found, first = gram(iter([ahead[:, :3], ahead[:, 3:]]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(first, 7.0)


def test_isolated_divergences_come_from_the_same_passes(box: toys.Toybox) -> None:
    context = toys.context(box)
    np.testing.assert_allclose(measure(context)[1].values, kl.estimate(context).table.values, rtol=1e-9)


def test_wide_outputs_are_sketched_to_nearly_the_same_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy, self.head = toys.trained(), nn.Linear(toys.CLASSES, 600)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.toy(x))

    torch.manual_seed(0)
    context = toys.context(toys.unpack(Wide().eval()))
    exact = measure(context)[0].matrix
    monkeypatch.setattr(outputs, "WIDE", 599)
    monkeypatch.setattr(outputs, "SKETCH", 128)
    sketched = measure(context)[0].matrix
    lengths = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))

    assert not np.array_equal(sketched, exact)
    assert np.abs(sketched - exact)[lengths > 0].max() < 4 * np.sqrt(2 / 128) * lengths.max()
    assert np.linalg.eigvalsh(sketched).min() > -1e-9 * np.abs(sketched).max()


@pytest.mark.parametrize(
    ("passes", "wanted"), [(1.0, 16), (20.0, 20), (1e9, 24)], ids=["at least a batch", "what is affordable", "all there are"]
)
def test_macs_bound_the_items(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch, passes: float, wanted: int) -> None:
    few, fewer = (measure(toys.context(box, items=box.items.first(count)))[0].matrix for count in (wanted, wanted - 1))
    context = toys.context(box)
    monkeypatch.setattr(contexts, "MOST_MACS", passes * context.reruns * context.macs)
    bounded = measure(toys.context(box))[0].matrix

    np.testing.assert_array_equal(bounded, few)
    assert not np.array_equal(bounded, fewer)


def test_most_items_bound_them_too(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    few = measure(toys.context(box, items=box.items.first(9)))[0].matrix
    monkeypatch.setattr(contexts, "MOST_ITEMS", 9)

    np.testing.assert_array_equal(measure(toys.context(box))[0].matrix, few)


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
    whole, short = (measure(toys.context(box, items=box.items.first(count)))[0].matrix for count in (4, 3))

    assert box.captured.graph.batch == 4
    assert np.isfinite(short).all() and short.any() and not np.array_equal(whole, short)


def test_items_are_bound_by_the_names_of_the_networks_inputs(box: toys.Toybox) -> None:
    inputs, labels = toys.images(8, seed=2)
    renamed = whole(collect([Batch({"picture": inputs}, labels)]))
    same = box.items.first(8)

    np.testing.assert_array_equal(measure(toys.context(box, items=renamed))[0].matrix, measure(toys.context(box, items=same))[0].matrix)
