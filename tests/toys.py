"""A small trained network, separable images and all that the estimators need: made once, shared by the tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from quantkit.calibration.ranges import calibrate
from quantkit.core.graph import Group
from quantkit.core.progress import Silent
from quantkit.core.spec import Allocation, parse_allocation, parse_schemes
from quantkit.data import Batch, Subset, collect
from quantkit.data.splits import whole
from quantkit.export.float_onnx import export_float
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity import Context
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.sensitivity.passes.bound import Passes
from quantkit.settings.options import Options
from quantkit.stages.candidates import Candidates
from quantkit.stages.groups import find_groups
from quantkit.targets import ort_cpu

CLASSES = 4
SIDE = 8
SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))


class Toy(nn.Module):
    """Convolutions with batch norm, a shortcut, a depthwise one and a classifier: images [items, 3, 8, 8] → scores [items, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.point(F.relu(self.depthwise(x))) + x)
        return self.classifier(F.relu(self.down(x)).mean(dim=(2, 3)))


class TiedToy(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))).mean(dim=(2, 3)))


def images(count: int, seed: int, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    """One pattern a class, and noise; classes in turn."""
    patterns = torch.randn(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    return patterns[labels] + noise * torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)), labels


@lru_cache
def _trained() -> Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Toy()
    inputs, labels = images(256, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


def trained() -> Toy:
    """The toy after forty steps: it knows its patterns."""
    return copy.deepcopy(_trained())


def subset(count: int, seed: int, labelled: bool = True, noise: float = 0.8) -> Subset:
    """Items in memory."""
    inputs, labels = images(count, seed, noise)
    return whole(collect([Batch({"x": inputs}, labels if labelled else None)]))


@dataclass(frozen=True)
class Toybox:
    """What becomes of a network until it can be scored and emitted."""

    captured: Captured
    groups: tuple[Group, ...]
    bank: WeightBank
    items: Subset


def unpack(model: nn.Module | ExportedProgram, schemes: Sequence[str] = SCHEMES, observer: str = "minmax") -> Toybox:
    """Capture and calibrate."""
    return calibrated(capture(model, {"x": images(2, seed=0)[0]}), subset(24, seed=2), schemes, observer)


def calibrated(captured: Captured, items: Subset, schemes: Sequence[str] = SCHEMES, observer: str = "minmax") -> Toybox:
    """Any captured network on items of its own."""
    groups = find_groups(captured.graph, Options(schemes=tuple(schemes)))
    ranges = calibrate(captured, network_batches(captured.graph, items, 8))
    state = {name: value.detach() for name, value in captured.module.named_parameters(remove_duplicate=False)}
    bank = WeightBank(captured.graph, state, ranges.qparams(observer, captured.graph), ort_cpu.product_rows)
    return Toybox(captured, groups, bank, items)


@lru_cache
def toybox() -> Toybox:
    """The trained toy, captured and calibrated."""
    return unpack(trained())


def context(box: Toybox, curvature: Literal["softmax", "identity"] = "softmax", **changes: Any) -> Context:
    """What an estimator gets."""
    plain = Context(
        Passes(box.captured, changes.pop("target", ort_cpu), box.bank),
        box.groups,
        SCHEMES,
        box.items,
        curvature,
        labelled=True,
        seed=0,
        device=torch.device("cpu"),
        progress=Silent(),
    )
    return replace(plain, **changes)


def candidates(box: Toybox, folder: Path) -> Candidates:
    """The toy's files; the float one is exported once for each folder."""
    float_file = folder / "float.onnx"
    if not float_file.exists():
        export_float(box.captured, float_file, ort_cpu.OPSET)
    return Candidates(float_file, box.captured.graph, box.groups, ort_cpu, box.bank, folder, "key")


def everything(groups: Sequence[Group], scheme: str, **others: str) -> Allocation:
    """One scheme for all groups that can take it (fp32 for the rest), and exceptions."""
    return parse_allocation({group.name: scheme if scheme in group.schemes else "fp32" for group in groups} | others)


def written(candidates: Candidates, plan: Mapping[str, str], path: Path | None = None) -> Path:
    """The plan's file, by default plan.onnx beside the temporary files."""
    path = path or candidates.folder / "plan.onnx"
    candidates.emit(parse_allocation(plan), path)
    return path
