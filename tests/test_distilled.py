"""Without data: items distilled from batch norms, against statistics written out, and whole allocations on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_disk import prepare
from test_pipeline import Spy, hurry, remember
from torch import Tensor, nn

import quantkit
from quantkit.calibration import distillation
from quantkit.calibration.distillation import distill, find_norms, statistics_apart
from quantkit.core.errors import ContractError, DataError, MetricError, ModelError
from quantkit.data import Distilled
from quantkit.network.capture import unfolded
from quantkit.report.format import verdict_line
from quantkit.runs.result import Result

SHAPE = (3, 8, 8)


class Normed(nn.Module):
    """Two convolutions with batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.norm_two = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_one(self.one(x)))
        return self.head(F.relu(self.norm_two(self.two(x))).mean((2, 3)))


def normed() -> Normed:
    """The network, its statistics those of items that are no noise: shifted, smooth, and of different size by channel."""
    torch.manual_seed(0)
    network = Normed()
    with torch.no_grad():
        for _ in range(60):
            smooth = F.interpolate(torch.randn(32, 3, 2, 2), size=(8, 8), mode="bilinear")
            network.train()(smooth * torch.tensor([2.0, 0.5, 1.0])[:, None, None] + 1)
    return network.eval()


@pytest.fixture(scope="module")
def graph() -> torch.fx.GraphModule:
    return unfolded(normed(), {"x": torch.zeros(2, *SHAPE)})


def nothing(_: int) -> None:
    pass


def test_every_batch_norm_is_found_with_what_it_reads(graph: torch.fx.GraphModule) -> None:
    network = normed()
    found = find_norms(graph)
    assert [norm.source for norm in found] == ["conv2d", "conv2d_1"]
    for norm, layer in zip(found, (network.norm_one, network.norm_two), strict=True):
        assert layer.running_mean is not None and layer.running_var is not None
        torch.testing.assert_close(norm.mean, layer.running_mean)
        torch.testing.assert_close(norm.deviation, (layer.running_var + layer.eps).sqrt())


def test_the_loss_is_the_mean_over_channels_and_norms(graph: torch.fx.GraphModule) -> None:
    """Channel by channel, in numpy, from what the network's own layers give."""
    network, items = normed(), torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    seen = {}
    for name in ("one", "two"):
        getattr(network, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.detach().double().numpy()}))
    network(items)
    losses = []
    for name, layer in (("one", network.norm_one), ("two", network.norm_two)):
        assert layer.running_mean is not None and layer.running_var is not None
        own = []
        for channel in range(seen[name].shape[1]):
            values, sigma = seen[name][:, channel], math.sqrt(float(layer.running_var[channel]) + layer.eps)
            own.append(((values.mean() - float(layer.running_mean[channel])) / sigma) ** 2 + (values.std() / sigma - 1) ** 2)
        losses.append(np.mean(own))
    assert statistics_apart(graph, items) == pytest.approx(np.mean(losses), rel=1e-4)


def test_each_of_two_norms_that_read_one_tensor_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm_one, self.norm_two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.norm_one(x) + self.norm_two(x)

    network = Twice().eval()
    items, losses = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)), []
    for mean in (0.0, 5.0, (0.0, 5.0)):
        for layer, value in zip((network.norm_one, network.norm_two), mean if isinstance(mean, tuple) else (mean, mean), strict=True):
            assert layer.running_mean is not None
            layer.running_mean.fill_(value)
        losses.append(statistics_apart(unfolded(network, {"x": items}), items))
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-5) and losses[1] > 10 * losses[0]


def test_distilled_statistics_are_the_stored_ones(graph: torch.fx.GraphModule) -> None:
    """Within a fifth of a stored deviation, root mean square; noise is several times as far."""
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    items = distill(graph, SHAPE, 64, seed=0, advance=nothing)
    assert statistics_apart(graph, items) < 0.2**2 < 0.3 * statistics_apart(graph, noise)


def test_items_follow_from_the_seed_and_come_in_batches(graph: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    first = distill(graph, SHAPE, 6, seed=3, advance=steps.append, steps=4)
    assert sum(steps) == 6 * 4
    assert torch.equal(first, distill(graph, SHAPE, 6, seed=3, advance=nothing, steps=4))
    assert not torch.equal(first, distill(graph, SHAPE, 6, seed=4, advance=nothing, steps=4))
    assert not torch.equal(first, distill(graph, SHAPE, 6, seed=3, advance=nothing, steps=5))
    monkeypatch.setattr(distillation, "BATCH", 4)
    assert distill(graph, SHAPE, 6, seed=3, advance=nothing, steps=1).shape == (6, *SHAPE)


def test_an_item_is_known_before_it_is_made() -> None:
    items = Distilled("digest", "x", (2,), 3, 0)
    made = Distilled("digest", "x", (2,), 3, 0, torch.arange(6.0).reshape(3, 2))
    assert [items.digest(place) for place in range(3)] == [made.digest(place) for place in range(3)]
    others = (Distilled("digest", "x", (2,), 3, 1), Distilled("other", "x", (2,), 3, 0))
    assert len({items.digest(0), items.digest(1), *(one.digest(0) for one in others)}) == 4
    assert made.item(1).inputs["x"].tolist() == [2.0, 3.0] and made.item(1).label is None
    with pytest.raises(ContractError, match="not made yet"):
        items.item(0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Spy]:
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        spy = Spy()
        folder = tmp_path_factory.mktemp("distilled")
        return allocate(folder / "run", progress=spy), spy


def allocate(run: Path, **options: Any) -> Result:
    arguments: dict[str, Any] = {"max_drop": 30.0, "minimize": "bytes", "effort": "fast", "run": run, "certificate": 0, **options}
    recipe = quantkit.Recipe(model=arguments.pop("model", None) or normed(), calibration=16, search=24, gate=24)
    return quantkit.allocate(recipe, input_shape="1x3x8x8", **arguments)


def test_an_allocation_without_data_says_so_everywhere(ran: tuple[Result, Spy]) -> None:
    result, spy = ran
    assert result.distilled and result.kept and result.metric == "agreement" and result.verdict.n == 24
    assert "distill items" in spy.stages
    assert any(note.startswith("NO DATA WAS GIVEN: 64 items") for note in spy.notes) and result.notes[0].startswith("NO DATA WAS GIVEN")
    assert "24 items distilled from the network, as no data was given" in verdict_line(result.to_json())
    lock = json.loads((result.run / "quantkit.lock.json").read_text())
    assert [entry["data"]["distilled"] for entry in lock["files"].values()] == [True]
    asked = json.loads((result.run / "request.json").read_text())
    assert asked["data"]["gate"]["of"]["kind"] == "distilled"


def test_items_are_made_once(ran: tuple[Result, Spy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that is stopped after they were made, and goes on, makes none; its file is the same in all bytes, as no clock decides."""
    prepare(monkeypatch)
    from quantkit import pipeline

    with monkeypatch.context() as patch:

        def stopped(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(pipeline, "calibrate_ranges", stopped)
        with pytest.raises(KeyboardInterrupt):
            allocate(tmp_path / "run")
    spy = Spy()
    again = allocate(tmp_path / "run", progress=spy)
    assert "distill items" not in spy.stages
    assert again.files.onnx.read_bytes() == ran[0].files.onnx.read_bytes()


def test_with_data_nothing_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)
    data = torch.randn(90, *SHAPE, generator=torch.Generator().manual_seed(2))
    result = quantkit.allocate(
        normed(), data=data, metric="agreement", max_drop=30.0, minimize="bytes", effort="fast", certificate=0, run=tmp_path / "run"
    )
    assert not result.distilled and not any("NO DATA" in note for note in result.notes)
    assert "distilled" not in verdict_line(result.to_json())


def test_an_archive_says_what_its_inputs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("quantkit.stages.make_items.STEPS", 2)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(normed(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: batch},)), tmp_path / "model.pt2")
    recipe = quantkit.Recipe(model=str(tmp_path / "model.pt2"), calibration=4, search=4, gate=4)
    assert quantkit.allocate(recipe, max_drop=50.0, certificate=0, run=tmp_path / "run").distilled


def test_what_cannot_be_distilled_is_said_in_one_line(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(DataError, match=r"no batch norm to distill items from.*--metric agreement"):
        allocate(tmp_path / "run", model=plain)
    with pytest.raises(MetricError, match=r"top1 without data.*no labels"):
        allocate(tmp_path / "run", metric="top1")
    fixed = torch.export.export(normed(), (torch.zeros(2, *SHAPE),))
    torch.export.save(fixed, tmp_path / "fixed.pt2")
    with pytest.raises(DataError, match="fixed size but for the batch"):
        quantkit.allocate(str(tmp_path / "fixed.pt2"), max_drop=1.0, run=tmp_path / "run")
    with pytest.raises(ModelError, match="needs an example input"):
        quantkit.allocate(normed(), max_drop=1.0, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
