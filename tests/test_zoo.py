"""Networks that people deploy, with random weights: each is captured, exported, loaded, and runs as planned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformer_zoo
from networks import Bench
from torch import Tensor, nn

import quantkit
from quantkit.network.capture import capture

models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
REPORT = "QUANTKIT_ZOO_REPORT"


class First(nn.Module):
    """Of a network that answers with a mapping, the first value."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return next(iter(self.inner(x).values()))


class Backbone(nn.Module):
    """Of a detector, what runs before boxes are chosen: all feature maps through both heads."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(x).values()))
        return found["bbox_regression"], found["cls_logits"]


def classifier(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(models, name)(weights=None)


class UNet(nn.Module):
    """Two levels down and up again by transposed convolutions, each joined with what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = self.block(3, 16), self.block(16, 32)
        self.up, self.joined = nn.ConvTranspose2d(32, 16, 2, stride=2), self.block(32, 16)
        self.head = nn.Conv2d(16, 5, 1)

    @staticmethod
    def block(before: int, after: int) -> nn.Module:
        parts = [(nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()) for width in (before, after)]
        return nn.Sequential(*(layer for part in parts for layer in part))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down(x)
        deep = self.middle(torch.nn.functional.max_pool2d(wide, 2))
        return self.head(self.joined(torch.cat([wide, self.up(deep)], 1)))


class Recurrent(nn.Module):
    """Columns of a map as steps of an LSTM, as in keyword spotting; behind it a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.ReLU())
        self.recurrent, self.head = nn.LSTM(64, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.front(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.recurrent(steps)[0][:, -1])


ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{
        name: (classifier(name), 96)
        for name in ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "densenet121")
    },
    "googlenet": (lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False), 96),
    "convnext_tiny": (classifier("convnext_tiny"), 96),
    "regnet_y_400mf": (classifier("regnet_y_400mf"), 96),
    "unet": (UNet, 32),
    "lstm": (Recurrent, 32),
    "fcn_resnet50": (lambda: First(models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)), 64),
    "ssdlite320": (lambda: Backbone(models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)), 160),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_deployed_network_runs_as_planned(name: str, tmp_path: Path) -> None:
    build, side = ZOO[name]
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 3, side, side)}
    work = Bench(capture(build().eval(), inputs), inputs, tmp_path)
    random = np.random.default_rng(0)
    uniform = work.uniform("w8a8")
    mixed = {layer: "fp32" if random.random() < 0.3 else scheme for layer, scheme in work.uniform("w5a8").items()}
    shares = []
    total = sum(layer.macs for layer in work.graph.layers)
    for plan in (uniform, mixed):
        placement = work.place(plan)
        path, _ = work.emit(placement)
        ran = work.executed(path, placement)
        assert ran.mismatches == ()
        shares.append(sum(layer.macs for layer in work.graph.layers if ran.precisions.get(layer.name) == "int8") / total)
    assert shares[0] >= 0.9
    if REPORT in os.environ:
        with Path(os.environ[REPORT]).open("a") as file:
            file.write(json.dumps({"network": name, "layers": len(work.graph.layers), "uniform_int8_macs": shares[0]}) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", transformer_zoo.NAMES)
def test_a_transformer_is_allocated_and_runs_as_planned(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    result = quantkit.allocate(
        transformer_zoo.source(name, tmp_path), data=[quantkit.Batch(transformer_zoo.inputs(name))], metric="agreement", max_drop=20.0,
        certificate=0, minimize="bytes", schemes="w8d8,w8a8,w4a32,fp32", run=tmp_path / "run",
    )  # fmt: skip
    assert result.executed.as_planned and result.simulation.layers_exact == 1.0
    assert result.bytes["ratio"] < 0.6
    assert all(row.as_planned and row.layers_exact == 1.0 for row in result.variants)
