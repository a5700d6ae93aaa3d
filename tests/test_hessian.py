"""The Hessian term, against Hessians that are written out in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.errors import DataError
from quantkit.core.numerics.affine import dequantize
from quantkit.core.spec import parse_scheme, parse_schemes
from quantkit.data import Batch, collect
from quantkit.data.splits import whole
from quantkit.network.captured import Captured
from quantkit.sensitivity import hessian

SIDE = 8


class Small(nn.Module):
    """Few enough weights that every entry of the Hessian can be had; smooth, so that it is more than its diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 3, stride=2)
        self.head = nn.Linear(2, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.convolution(x)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    torch.manual_seed(1)
    model = Small().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return toys.unpack(model)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes without a stopping rule: what is left is the error of sampling."""
    monkeypatch.setattr(hessian, "ITEMS", 24)
    monkeypatch.setattr(hessian, "MOST_PROBES", 400)
    monkeypatch.setattr(hessian, "TOLERANCE", 0.0)


def inputs_and_labels(box: toys.Toybox) -> tuple[Tensor, Tensor]:
    batch = next(box.items.batches(len(box.items)))
    assert batch.labels is not None
    return batch.inputs["x"], batch.labels


def dense_trace(captured: Captured, weight: str, labels: Tensor | None, x: Tensor) -> float:
    """The trace of the whole Hessian block of the mean loss, by automatic differentiation of every entry."""
    parameters = {name: value.detach() for name, value in captured.module.named_parameters()}
    own = captured.module(x).detach()

    def loss(flat: Tensor) -> Tensor:
        changed = parameters | {weight: flat.reshape(parameters[weight].shape)}
        scores = torch.func.functional_call(captured.module, changed, (x,))
        if labels is None:
            return 0.5 * (scores - own).square().sum(1).mean()
        return F.cross_entropy(scores, labels)

    return float(torch.autograd.functional.hessian(loss, parameters[weight].flatten()).trace())  # type: ignore[no-untyped-call]


def perturbation(box: toys.Toybox, layer_name: str, scheme: str) -> float:
    layer = box.captured.graph.layer(layer_name)
    spec = parse_scheme(scheme).weights
    assert spec is not None and layer.weight is not None
    quantized = box.bank.weight(layer, spec)
    return float(((dequantize(quantized.codes, quantized.qparams) - box.bank.parameter(layer.weight)).detach().double() ** 2).sum())


def wanted(box: toys.Toybox, layer_name: str, scheme: str, trace: float) -> float:
    count = box.bank.parameter(f"{layer_name}.weight").numel()
    return 0.5 * trace / count * perturbation(box, layer_name, scheme)


@pytest.mark.parametrize("layer", ["convolution", "head"])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.usefixtures("patient")
def test_omega_is_half_the_mean_diagonal_of_the_dense_block_times_the_squared_change(box: toys.Toybox, layer: str, scheme: str) -> None:
    x, labels = inputs_and_labels(box)
    trace = dense_trace(box.captured, f"{layer}.weight", labels, x)
    found, exact = hessian.estimate(toys.context(box)).table.at(layer, scheme), wanted(box, layer, scheme, trace)

    if layer == "convolution":  # whose trace is negative here: what is left is its standard error
        assert exact < 0 < found < 0.1 * abs(exact)
    else:
        assert found == pytest.approx(exact, rel=0.08)


@pytest.mark.usefixtures("patient")
def test_without_labels_the_networks_own_answers_stand_in(box: toys.Toybox) -> None:
    x, labels = inputs_and_labels(box)
    own = box.captured.module(x).argmax(1)
    unlabelled = toys.context(box, items=toys.subset(len(box.items), seed=2, labelled=False))
    ignored = toys.context(box, labelled=False)
    trace = dense_trace(box.captured, "head.weight", own, x)

    assert not torch.equal(own, labels)
    assert hessian.estimate(unlabelled).table.at("head", "w4a8") == pytest.approx(wanted(box, "head", "w4a8", trace), rel=0.08)
    assert hessian.estimate(unlabelled).table.at("head", "w4a8") == hessian.estimate(ignored).table.at("head", "w4a8")
    assert hessian.estimate(unlabelled).table.at("head", "w4a8") != hessian.estimate(toys.context(box)).table.at("head", "w4a8")


@pytest.mark.usefixtures("patient")
def test_plain_values_are_judged_by_their_squared_distance(box: toys.Toybox) -> None:
    x, _ = inputs_and_labels(box)
    trace = dense_trace(box.captured, "head.weight", None, x)

    assert hessian.estimate(toys.context(box, "identity")).table.at("head", "w4a8") == pytest.approx(
        wanted(box, "head", "w4a8", trace), rel=0.08
    )


def test_float_and_groups_without_weights_score_nothing_and_the_impossible_is_nan() -> None:
    box = toys.toybox()
    table = hessian.estimate(toys.context(box)).table
    weightless = [group for group in box.groups if box.captured.graph.layer(group.layers[0]).weight is None]

    assert weightless and hessian.estimate(toys.context(box)).interactions is None
    for group in box.groups:
        assert table.at(group.name, "fp32") == 0
        assert np.isnan(table.at(group.name, "w4a8")) == ("w4a8" not in group.schemes)
    assert [table.at(group.name, "w8a8") for group in weightless] == [0] * len(weightless)
    assert table.at("stem", "w4a8") > table.at("stem", "w8a8") > 0


def test_every_way_to_store_a_weight_scores_by_its_own_error() -> None:
    schemes = parse_schemes(("fp32", "w4a8", "c4a8", "w4g16a8", "w8a32", "w16a32"))
    box = toys.unpack(toys.trained(), schemes)
    table = hessian.estimate(toys.context(box, schemes=schemes)).table
    layer = box.captured.graph.layer("down")
    errors = [box.bank.squared_error(layer, parse_scheme(scheme)) for scheme in schemes]
    scores = [table.at("down", scheme) for scheme in schemes]
    assert scores == pytest.approx([error * scores[1] / errors[1] for error in errors]) and len(set(scores)) == len({*errors}) >= 5


def test_items_past_the_limit_are_not_looked_at(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    few = hessian.estimate(toys.context(box, items=box.items.first(5))).table.values
    monkeypatch.setattr(hessian, "ITEMS", 5)

    np.testing.assert_array_equal(hessian.estimate(toys.context(box)).table.values, few)


def test_the_seed_draws_the_probes(box: toys.Toybox) -> None:
    first, again, other = (hessian.estimate(toys.context(box, seed=seed)).table.values for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_labels_that_are_no_class_of_the_network_are_the_requests_fault(box: toys.Toybox) -> None:
    x, labels = inputs_and_labels(box)
    wrong = whole(collect([Batch({"x": x}, labels + 1)]))

    with pytest.raises(DataError, match=r"label 4.*0\.\.3"):
        hessian.estimate(toys.context(box, items=wrong))


@pytest.mark.usefixtures("patient")
def test_the_trace_is_pyhessians() -> None:
    pyhessian = pytest.importorskip("pyhessian")
    model = toys.trained().eval()
    box = toys.toybox()
    inputs, labels = toys.images(16, seed=5, noise=3.0)  # hard enough that the loss is not flat
    items = whole(collect([Batch({"x": inputs}, labels)]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "down.weight")  # behind all batch norms, which capture folds
    torch.manual_seed(0)
    theirs = np.array(pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(inputs, labels), cuda=False).trace(maxIter=200, tol=0))
    omega = hessian.estimate(toys.context(box, items=items)).table.at("down", "w4a8")
    ours = 2 * omega / perturbation(box, "down", "w4a8") * box.bank.parameter("down.weight").numel()

    assert len(theirs) == 200, "it stops at the first negative estimate"
    assert ours == pytest.approx(theirs.mean(), abs=4 * theirs.std() / 200**0.5)
    assert theirs.std() / 200**0.5 < 0.1 * theirs.mean()
