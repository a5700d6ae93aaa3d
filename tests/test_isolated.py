"""Estimators that compare outputs or errors directly, against plain passes and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.graph import Layer
from quantkit.core.numerics.affine import dequantize
from quantkit.core.spec import parse_scheme, parse_schemes
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import Simulation
from quantkit.sensitivity import aumann_shapley, fisher_output, kl, noise, pairs, weight_error
from quantkit.sensitivity.gram import measure
from quantkit.sensitivity.passes.batches import cached_batch
from quantkit.sensitivity.passes.float_forward import Interior, Operation
from quantkit.sensitivity.passes.perturbed import FLOAT_PLACEMENT
from quantkit.targets import ort_cpu
from quantkit.targets.placement import Placement
from reference import pass_error

PAIRS = [("stem", "w4a8"), ("add", "w8a8"), ("down", "w8a8"), ("classifier", "w4a8")]


EQUAL = 1e-9  # of sums in float64 of the same float32 outputs


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    torch.manual_seed(5)
    return toys.unpack(toys.Toy().eval())  # untrained, so that it is not sure of anything


def placed(box: toys.Toybox, *chosen: tuple[str, str]) -> Placement:
    """These groups quantized, each as when it is alone."""
    layers = {group.name: group.layers for group in box.groups}
    parts = [ort_cpu.isolate(box.captured.graph, layers[name], parse_scheme(scheme)) for name, scheme in chosen]
    schemes = {name: scheme for part in parts for name, scheme in part.schemes.items()}
    inputs, outputs = (frozenset().union(*(getattr(part, ends) for part in parts)) for ends in ("inputs", "outputs"))
    return Placement(schemes, inputs, outputs, {})


def outputs(box: toys.Toybox, *chosen: tuple[str, str]) -> Tensor:
    """In batches of the passes' own size: another may add up in another order, and near a rounding boundary give another code."""
    simulation = Simulation(box.captured, placed(box, *chosen) if chosen else FLOAT_PLACEMENT, box.bank)
    batches = box.items.batches(cached_batch(box.captured.graph))
    return torch.cat([simulation.run(dict(batch.inputs))["output"][0] for batch in batches]).double()


def divergence(box: toys.Toybox, *chosen: tuple[str, str]) -> float:
    """The mean over items of KL(float ‖ quantized), by torch's own formula."""
    p, q = F.log_softmax(outputs(box), 1), F.log_softmax(outputs(box, *chosen), 1)
    return float(F.kl_div(q, p, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_kl_is_that_of_two_plain_forward_passes(box: toys.Toybox, pair: tuple[str, str]) -> None:
    assert kl.estimate(toys.context(box)).table.at(*pair) == pytest.approx(divergence(box, pair), rel=EQUAL)


def test_kl_of_plain_values_is_half_their_squared_distance(box: toys.Toybox) -> None:
    wanted = 0.5 * float((outputs(box, PAIRS[0]) - outputs(box)).square().sum()) / 24

    assert kl.estimate(toys.context(box, "identity")).table.at(*PAIRS[0]) == pytest.approx(wanted, rel=EQUAL)


def test_measured_pairs_are_differences_of_divergences(box: toys.Toybox) -> None:
    scores = pairs.estimate(toys.context(box))
    assert scores.interactions is not None
    for one in PAIRS:
        assert scores.table.at(*one) == pytest.approx(divergence(box, one), rel=EQUAL)
        for other in PAIRS:
            found = scores.interactions.matrix[scores.interactions.index(*one), scores.interactions.index(*other)]
            alone = divergence(box, one), divergence(box, other)
            wanted = 2 * alone[0] if one == other else divergence(box, one, other) - sum(alone)
            assert found == pytest.approx(wanted, abs=EQUAL * sum(alone))
    same = scores.interactions.matrix[scores.interactions.index("stem", "w4a8"), scores.interactions.index("stem", "w8a8")]
    assert same == 0


def test_pairs_predict_any_two_groups_exactly(box: toys.Toybox) -> None:
    interactions = pairs.estimate(toys.context(box)).interactions
    assert interactions is not None

    assert interactions.predicted({"stem": "w4a8", "down": "w8a8", "classifier": "fp32"}) == pytest.approx(
        divergence(box, ("stem", "w4a8"), ("down", "w8a8")), rel=EQUAL
    )


class Branches(nn.Module):
    """Two linear layers side by side: what either moves, the output moves, whatever the other does."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(192, toys.CLASSES), nn.Linear(192, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x.flatten(1)) + self.right(x.flatten(1))


def test_where_outputs_are_linear_in_the_errors_the_gram_is_what_pairs_measure() -> None:
    torch.manual_seed(2)
    context = toys.context(toys.unpack(Branches().eval()), "identity")
    gram, measured = measure(context)[0], pairs.estimate(context).interactions
    assert measured is not None
    crossed = [(one, other) for one in ("w8a8", "w4a8") for other in ("w8a8", "w4a8")]
    size = gram.matrix[gram.index("left", "w8a8"), gram.index("left", "w8a8")]

    for one, other in crossed:
        place = gram.index("left", one), gram.index("right", other)
        assert measured.matrix[place] == pytest.approx(gram.matrix[place], abs=1e-3 * size), (one, other)
        assert abs(gram.matrix[place]) > 0.01 * size
    for group in ("left", "right", "add"):
        place = gram.index(group, "w8a8")
        assert measured.matrix[place, place] == pytest.approx(gram.matrix[place, place], rel=1e-4)


class Masked(nn.Module):
    """A sum that only a softmax reads: its codes cover a mask of −3e38, and no layer behind it has an input to be scored."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(192, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return (self.scores(rows) + torch.where(rows[:, : toys.CLASSES] > 1, -3e38, 0.0)).softmax(dim=1)


def test_codes_that_no_layer_reads_are_scored_with_what_writes_them() -> None:
    """Attention's scores under a mask were called free, and the file gave all of them one code."""
    torch.manual_seed(3)
    box = toys.unpack(Masked().eval())
    (add,) = (layer.name for layer in box.captured.graph.layers if layer.kind == "add")
    schemes = {layer.name: parse_scheme("w8a8" if layer.name == add else "fp32") for layer in box.captured.graph.layers}
    file = ort_cpu.place(box.captured.graph, schemes)
    assert add in file.outputs
    runs = (Simulation(box.captured, placement, box.bank) for placement in (FLOAT_PLACEMENT, file))
    plain, quantized = (torch.cat([run.run(dict(batch.inputs))["output"][0] for batch in box.items.batches(8)]).double() for run in runs)
    wanted = 0.5 * float((quantized - plain).square().sum()) / len(plain)

    assert wanted > 0.001
    assert kl.estimate(toys.context(box, "identity")).table.at(add, "w8a8") == pytest.approx(wanted, rel=1e-5)


def test_weight_error_is_the_relative_root_mean_square(box: toys.Toybox) -> None:
    table = weight_error.estimate(toys.context(box)).table
    for name in ("stem", "depthwise", "classifier"):
        layer, spec = box.captured.graph.layer(name), parse_scheme("w4a8").weights
        assert spec is not None
        quantized, weight = box.bank.weight(layer, spec), box.bank.parameter(str(layer.weight)).detach()
        error = (dequantize(quantized.codes, quantized.qparams) - weight).numpy()
        assert table.at(name, "w4a8") == pytest.approx(np.sqrt((error**2).mean()) / np.abs(weight.numpy()).max(), rel=1e-5)


def test_noise_hurts_a_last_layer_as_much_as_its_rounding_does(box: toys.Toybox) -> None:
    """No direction is worse than another on average, and there is nothing behind it to make one so."""
    found, wanted = (method.estimate(toys.context(box)).table.at("classifier", "w4a8") for method in (noise, kl))

    assert wanted / 4 < found < wanted * 4


def test_repeats_are_averaged(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    def estimates(repeats: int) -> np.ndarray:
        monkeypatch.setattr(noise, "REPEATS", repeats)
        return np.array([noise.estimate(toys.context(box, seed=seed)).table.at("stem", "w4a8") for seed in range(8)])

    once, often = estimates(1), estimates(6)

    assert often.std() < once.std()
    assert often.mean() == pytest.approx(once.mean(), rel=0.5)


def moved_output(captured: Captured, name: str, move: Tensor, x: Tensor) -> Tensor:
    """The network's outputs with `move` added to a layer's result."""

    def meet(layer: Layer, inputs: tuple[Tensor, ...], operation: Operation) -> Tensor:
        return operation(inputs) + (move if layer.name == name else 0)

    return Interior(captured, meet).outputs({"x": x})[0]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_fisher_of_outputs_is_a_loop_over_items_of_gradient_times_change(box: toys.Toybox, pair: tuple[str, str]) -> None:
    graph, (batch,) = box.captured.graph, box.items.batches(24)
    layer = graph.layer(pair[0])
    plain = Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run(dict(batch.inputs))
    quantized = Simulation(box.captured, placed(box, pair), box.bank).layer_output(layer, [plain[name] for name in layer.inputs])
    change = quantized - plain[layer.node]
    assert batch.labels is not None
    total = 0.0
    for item in range(24):
        move = torch.zeros_like(plain[layer.node][item][None], requires_grad=True)
        loss = F.cross_entropy(moved_output(box.captured, layer.name, move, batch.inputs["x"][item][None]), batch.labels[item][None])
        (gradient,) = torch.autograd.grad(loss, move)
        total += float((gradient[0].double() * change[item].double()).square().sum())

    assert fisher_output.estimate(toys.context(box)).table.at(*pair) == pytest.approx(0.5 * total / 24, rel=2 * pass_error(graph))


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_the_share_of_a_group_that_is_alone_is_its_divergence(
    box: toys.Toybox, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else moves, so the path is straight and its integral is the difference of its ends."""
    monkeypatch.setattr(aumann_shapley, "STEPS", 16)
    groups = [group for group in box.groups if group.name == pair[0]]
    found = aumann_shapley.estimate(toys.context(box, groups=tuple(groups), schemes=parse_schemes(("fp32", pair[1])))).table.at(*pair)

    assert found == pytest.approx(divergence(box, pair), rel=0.01)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_shares_add_up_to_the_damage_of_all_groups_together(box: toys.Toybox, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [(group.name, scheme) for group in box.groups if scheme in group.schemes]
    together, isolated = divergence(box, *chosen), sum(divergence(box, pair) for pair in chosen)
    found = [np.nansum(aumann_shapley.estimate(toys.context(box)).table.values[:, toys.SCHEMES.index(scheme)])]
    monkeypatch.setattr(aumann_shapley, "STEPS", 8)
    found += [np.nansum(aumann_shapley.estimate(toys.context(box)).table.values[:, toys.SCHEMES.index(scheme)])]

    assert found == pytest.approx([together, together], rel=0.2)
    assert abs(found[1] - together) < abs(isolated - together)
