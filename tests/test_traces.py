"""Estimators of second order, against derivatives that are written out in full on a network that is small enough for it."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.numerics.affine import dequantize, fake_quantize
from quantkit.core.spec import parse_scheme
from quantkit.core.table import Table
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity import fisher, gauss_newton, hessian, hessian_activation, hessian_cross, pyhessian
from quantkit.sensitivity.passes.changes import InputErrors
from reference import pass_error

pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")  # PyHessian's way


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


@pytest.fixture(scope="module")
def tied() -> toys.Toybox:
    torch.manual_seed(3)
    return toys.unpack(toys.TiedToy().eval())


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All items, and probes without a stopping rule: what is left is the error of sampling."""
    for method in (hessian_activation, hessian_cross, pyhessian, gauss_newton):
        monkeypatch.setattr(method, "ITEMS", 24)
    monkeypatch.setattr(hessian_activation, "MOST_PROBES", 400)
    monkeypatch.setattr(hessian_activation, "TOLERANCE", 0.0)
    monkeypatch.setattr(pyhessian, "MOST_PROBES", 400)
    monkeypatch.setattr(pyhessian, "TOLERANCE", 0.0)
    monkeypatch.setattr(gauss_newton, "DRAWS", 100)


def data(box: toys.Toybox) -> tuple[Tensor, Tensor]:
    batch = next(box.items.batches(len(box.items)))
    assert batch.labels is not None
    return batch.inputs["x"], batch.labels


def change(box: toys.Toybox, layer_name: str, scheme: str) -> Tensor:
    layer, spec = box.captured.graph.layer(layer_name), parse_scheme(scheme).weights
    assert spec is not None and layer.weight is not None
    quantized = box.bank.weight(layer, spec)
    return (dequantize(quantized.codes, quantized.qparams) - box.bank.parameter(layer.weight)).detach()


def with_weights(box: toys.Toybox, names: list[str], flat: Tensor, x: Tensor) -> Tensor:
    """The outputs with these weights, one after the other in `flat`; a weight under two names is moved under both."""
    module = box.captured.module
    state = {name: value.detach() for name, value in module.named_parameters(remove_duplicate=False)}
    start = 0
    for name in names:
        state[name] = flat[start : start + state[name].numel()].reshape(state[name].shape)
        start += state[name].numel()
    return torch.func.functional_call(module, state, (x,), tie_weights=True)


def flat(box: toys.Toybox, names: list[str]) -> Tensor:
    return torch.cat([box.bank.parameter(name).detach().flatten() for name in names])


def dense(box: toys.Toybox, names: list[str]) -> Tensor:
    """The Hessian of the mean cross-entropy over all these weights."""
    x, labels = data(box)
    return torch.autograd.functional.hessian(lambda w: F.cross_entropy(with_weights(box, names, w, x), labels), flat(box, names))


def gauss_newton_trace(box: toys.Toybox, weight: str, curvature: str) -> float:
    """1/N Σ tr(J' F J), J by automatic differentiation."""
    x, _ = data(box)
    jacobian = torch.autograd.functional.jacobian(lambda w: with_weights(box, [weight], w, x), flat(box, [weight])).double()
    total = 0.0
    for scores, rows in zip(box.captured.module(x).detach().double(), jacobian, strict=True):
        p = scores.softmax(0)
        f = torch.diag(p) - torch.outer(p, p) if curvature == "softmax" else torch.eye(len(p), dtype=torch.float64)
        total += float((rows.T @ f @ rows).trace())
    return total / len(x)


def weight_term(box: toys.Toybox, layer: str, scheme: str, trace: float) -> float:
    moved = change(box, layer, scheme)
    return 0.5 * trace / moved.numel() * float(moved.double().square().sum())


def mean_error(box: toys.Toybox, layer_name: str, x: Tensor) -> float:
    """‖Δx‖² of one item."""
    layer = box.captured.graph.layer(layer_name)
    return float((fake_quantize(x, box.bank.input_qparams(layer, 0)) - x).double().square().sum()) / len(x)


def read_by(box: toys.Toybox, layer: str, x: Tensor) -> tuple[Tensor, nn.Module]:
    """What the layer reads, and the rest of the network behind that."""
    state = {name: box.bank.parameter(name).detach() for name in ("convolution.weight", "convolution.bias", "head.weight", "head.bias")}

    class Rest(nn.Module):
        def forward(self, inner: Tensor) -> Tensor:
            if layer == "convolution":
                y = F.conv2d(inner, state["convolution.weight"], state["convolution.bias"], stride=2)
                inner = torch.sigmoid(y).mean(dim=(2, 3))
            return F.linear(inner, state["head.weight"], state["head.bias"])

    first = F.conv2d(x, state["convolution.weight"], state["convolution.bias"], stride=2)
    return (x if layer == "convolution" else torch.sigmoid(first).mean(dim=(2, 3))), Rest()


@pytest.mark.parametrize("layer", ["convolution", "head"])
@pytest.mark.parametrize("curvature", ["softmax", "identity"])
def test_gauss_newton_is_the_trace_of_the_jacobians_written_out(box: toys.Toybox, layer: str, curvature: str) -> None:
    found = gauss_newton.estimate(toys.context(box, curvature)).table.at(layer, "w4a8")  # type: ignore[arg-type]
    trace = gauss_newton_trace(box, f"{layer}.weight", curvature)

    assert found == pytest.approx(weight_term(box, layer, "w4a8", trace), rel=0.05)


def test_gauss_newton_needs_no_labels(box: toys.Toybox) -> None:
    one, other = (gauss_newton.estimate(toys.context(box, labelled=labelled)).table.values for labelled in (True, False))

    np.testing.assert_array_equal(one, other)


def test_a_weight_used_twice_is_one(tied: toys.Toybox) -> None:
    trace = gauss_newton_trace(tied, "twice.weight", "softmax")

    assert [group.layers for group in tied.groups if len(group.layers) > 1] == [("twice", "twice.2")]
    assert gauss_newton.estimate(toys.context(tied)).table.at("twice", "w4a8") == pytest.approx(
        weight_term(tied, "twice", "w4a8", trace), rel=0.05
    )


@pytest.mark.parametrize("layer", ["convolution", "head"])
def test_fisher_is_the_items_own_squared_gradients_of_weights_and_inputs(box: toys.Toybox, layer: str) -> None:
    x, labels = data(box)
    weights = inputs = 0.0
    for item in range(len(x)):
        weight = flat(box, [f"{layer}.weight"]).requires_grad_()
        loss = F.cross_entropy(with_weights(box, [f"{layer}.weight"], weight, x[item][None]), labels[item][None])
        weights += float(torch.autograd.grad(loss, weight)[0].square().sum()) / len(x)
        inner, rest = read_by(box, layer, x[item][None])
        inner = inner.detach().requires_grad_()
        inputs += float(torch.autograd.grad(F.cross_entropy(rest(inner), labels[item][None]), inner)[0].square().sum()) / len(x)
    read, _ = read_by(box, layer, x)
    wanted = weight_term(box, layer, "w4a8", weights) + 0.5 * inputs / read[0].numel() * mean_error(box, layer, read)

    assert fisher.estimate(toys.context(box)).table.at(layer, "w4a8") == pytest.approx(wanted, rel=2 * pass_error(box.captured.graph))


@pytest.mark.parametrize(("layer", "curvature"), [("convolution", "identity"), ("head", "identity"), ("head", "softmax")])
def test_the_activation_part_is_the_dense_hessian_of_each_items_own_loss(box: toys.Toybox, layer: str, curvature: str) -> None:
    x, labels = data(box)
    read, rest = read_by(box, layer, x)
    own, trace = box.captured.module(x).detach(), 0.0
    for item in range(len(x)):

        def loss(inner: Tensor, item: int = item) -> Tensor:
            scores = rest(inner.reshape(1, *read.shape[1:]))
            return F.cross_entropy(scores, labels[item][None]) if curvature == "softmax" else 0.5 * (scores - own[item]).square().sum()

        trace += float(torch.autograd.functional.hessian(loss, read[item].flatten()).trace()) / len(x)
    activations = 0.5 * trace / read[0].numel() * mean_error(box, layer, read)
    name = f"{layer}.weight"
    dense_trace = float(dense(box, [name]).trace()) if curvature == "softmax" else gauss_newton_trace(box, name, curvature)
    weights = weight_term(box, layer, "w8a8", dense_trace)
    found = hessian_activation.estimate(toys.context(box, curvature)).table.at(layer, "w8a8")  # type: ignore[arg-type]

    assert found == pytest.approx(weights + activations, rel=0.1)
    assert abs(found - weights) > 0.5 * abs(activations) > 0.05 * abs(weights)


def test_cross_terms_are_quadratic_forms_of_the_dense_hessian(box: toys.Toybox) -> None:
    names = ["convolution.weight", "head.weight"]
    whole, sizes = dense(box, names).double(), [box.bank.parameter(name).numel() for name in names]
    scores = hessian_cross.estimate(toys.context(box))
    assert scores.interactions is not None

    def direction(layer: str, scheme: str) -> Tensor:
        own = f"{layer}.weight"
        moved = change(box, layer, scheme).flatten()
        return torch.cat([moved if name == own else torch.zeros(size) for name, size in zip(names, sizes, strict=True)]).double()

    pairs = [(layer, scheme) for layer in ("convolution", "head") for scheme in ("w8a8", "w4a8")]
    for one in pairs:
        for other in pairs:
            wanted = float(direction(*one) @ whole @ direction(*other))
            terms = float(direction(*one).abs() @ whole.abs() @ direction(*other).abs())
            found = scores.interactions.matrix[scores.interactions.index(*one), scores.interactions.index(*other)]
            assert found == pytest.approx(wanted, abs=4 * pass_error(box.captured.graph) * terms), (one, other)


def test_a_direction_along_a_shared_weight_moves_both_uses(tied: toys.Toybox) -> None:
    moved = change(tied, "twice", "w4a8").flatten().double()
    whole = dense(tied, ["twice.weight"]).double()
    wanted, terms = float(moved @ whole @ moved), float(moved.abs() @ whole.abs() @ moved.abs())

    assert hessian_cross.estimate(toys.context(tied)).table.at("twice", "w4a8") == pytest.approx(
        wanted / 2, abs=2 * pass_error(tied.captured.graph) * terms
    )


@pytest.mark.parametrize("layer", ["convolution", "head"])
def test_pyhessian_finds_the_dense_traces_too(box: toys.Toybox, layer: str) -> None:
    """Of squared distances, whose Hessian is J'J: it stops at the first negative estimate."""
    found = pyhessian.estimate(toys.context(box, "identity")).table.at(layer, "w4a8")

    assert found == pytest.approx(weight_term(box, layer, "w4a8", gauss_newton_trace(box, f"{layer}.weight", "identity")), rel=0.1)


def test_traces_of_weights_agree_between_all_who_estimate_them(box: toys.Toybox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "ITEMS", 24)
    monkeypatch.setattr(hessian, "MOST_PROBES", 400)
    monkeypatch.setattr(hessian, "TOLERANCE", 0.0)
    ours, theirs = (method.estimate(toys.context(box, "identity")).table for method in (hessian, pyhessian))

    def column(table: Table) -> list[float]:
        return [table.at("convolution", "w4a8"), table.at("head", "w4a8")]

    np.testing.assert_allclose(column(ours), column(theirs), rtol=0.15)


@pytest.mark.parametrize("method", [gauss_newton, hessian, fisher, pyhessian])
def test_an_error_that_meets_the_inputs_less_counts_less(box: toys.Toybox, method: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rounding that knows the inputs says how far its error lies where they are: its alignment."""
    monkeypatch.setattr(pyhessian, "MOST_PROBES", 10)
    monkeypatch.setattr(InputErrors, "mean", lambda *_: 0.0)
    plain, weight = method.estimate(toys.context(box)).table.values, WeightBank.weight
    monkeypatch.setattr(WeightBank, "weight", lambda *asked, **how: replace(weight(*asked, **how), alignment=0.25))

    np.testing.assert_allclose(method.estimate(toys.context(box)).table.values, 0.25 * plain)
