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


ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{
        name: (classifier(name), 96)
        for name in ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "densenet121")
    },
    "googlenet": (lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False), 96),
    "convnext_tiny": (classifier("convnext_tiny"), 96),
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
