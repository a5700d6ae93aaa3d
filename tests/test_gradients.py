"""Squared gradients of items, against one backward pass for each item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.data import Batch
from quantkit.sensitivity.passes import gradients
from quantkit.sensitivity.passes.gradients import squared_gradients
from quantkit.sensitivity.passes.outputs import at_labels, drawn
from quantkit.sensitivity.passes.recorded import Recorded
from reference import pass_error


class Mixed(nn.Module):
    """Grouped, strided, dilated and one-dimensional convolutions, and a linear layer over tokens, in one chain."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.strided = nn.Conv2d(6, 4, (3, 1), stride=2, padding=(1, 0))
        self.dilated = nn.Conv2d(4, 4, 2, dilation=2)
        self.line = nn.Conv1d(4, 5, 2, stride=2)
        self.token = nn.Linear(5, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.dilated(torch.tanh(self.strided(torch.tanh(self.grouped(x))))))
        return self.token(torch.tanh(self.line(x.flatten(2))).transpose(1, 2)).mean(1)


@pytest.fixture(scope="module", params=["trained", "tied", "mixed"])
def box(request: pytest.FixtureRequest) -> toys.Toybox:
    torch.manual_seed(3)
    made = {"trained": toys.toybox, "tied": lambda: toys.unpack(toys.TiedToy().eval()), "mixed": lambda: toys.unpack(Mixed().eval())}
    return made[request.param]()


def labelled(recorded: Recorded, batch: Batch) -> list[list[Tensor]]:
    return [at_labels("softmax", recorded.outputs, batch.labels, torch.Generator())]


def one_by_one(box: toys.Toybox) -> dict[str, float]:
    """The mean squared norm over items of the gradient of each item's own loss."""
    module, total = box.captured.module, {}
    parameters = {name: value.detach().requires_grad_() for name, value in module.named_parameters(remove_duplicate=False)}
    for batch in box.items.batches(1):
        loss = F.cross_entropy(torch.func.functional_call(module, parameters, (batch.inputs["x"],)), batch.labels)
        found = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            total[name] = total.get(name, 0.0) + float(gradient.double().square().sum()) / len(box.items)
    return total


@pytest.mark.parametrize("held", [1, 1 << 24], ids=["an item at a time", "all at once"])
def test_they_are_those_of_one_backward_pass_an_item(box: toys.Toybox, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "MOST_NUMBERS", held)
    found = squared_gradients(box.captured, box.items.batches(7), labelled).traces
    wanted = one_by_one(box)

    assert set(found) == {layer.weight for layer in box.captured.graph.layers if layer.weight}
    for name, (trace, _) in found.items():
        assert trace == pytest.approx(wanted[name], rel=2 * pass_error(box.captured.graph)), name


def test_edges_are_seen_where_they_are_asked_for() -> None:
    box, seen = toys.toybox(), []
    found = squared_gradients(box.captured, box.items.batches(7), labelled, lambda sites: seen.append(len(sites[0].output)))
    inputs, labels = toys.images(24, seed=2)
    x = inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(box.captured.module(x), labels, reduction="sum"), x)

    assert seen == [7, 7, 7, 3]
    wanted = float(gradient.double().square().sum()) / 24
    assert found.traces["stem input 0"].trace == pytest.approx(wanted, rel=2 * pass_error(box.captured.graph))
    assert found.sizes["stem input 0"] == inputs[0].numel()
    assert {"add input 0", "add input 1"} <= set(found.sizes)
    assert "stem input 0" not in squared_gradients(box.captured, box.items.batches(7), labelled).traces


def test_draws_are_averaged_and_say_how_far_they_scatter() -> None:
    box = toys.toybox()

    def estimates(draws: int, seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        found = squared_gradients(box.captured, box.items.batches(24), lambda r, _: drawn("softmax", r.outputs, draws, generator))
        return found.traces["down.weight"]

    many = np.array([estimates(4, seed) for seed in range(40)])

    assert many[:, 0].std() == pytest.approx(many[:, 1].mean(), rel=0.35)
    assert np.isnan(estimates(1, 0)[1])
    assert estimates(4, 0) == estimates(4, 0) != estimates(4, 1)
