"""Networks of other kinds than classifiers, small, with random weights: each with inputs, answers and a metric of its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantkit
from quantkit.core.metric import Metric, Outputs

ITEMS = 120


def conv(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Segmentation(nn.Module):
    """Down and up again, five classes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 12), conv(12, 24, stride=2)
        self.up, self.joined, self.head = nn.ConvTranspose2d(24, 12, 2, stride=2), conv(24, 12), nn.Conv2d(12, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        wide = self.down(image)
        return self.head(self.joined(torch.cat([wide, self.up(self.deep(wide))], 1)))


class Detection(nn.Module):
    """A box and the scores of three classes for each cell of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 16, stride=2), conv(16, 24, stride=2))
        self.boxes, self.scores = nn.Conv2d(24, 4, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(image)
        return {"boxes": self.boxes(maps).flatten(2).mT, "scores": self.scores(maps).sigmoid().flatten(2).mT}


class SuperResolution(nn.Module):
    """ESPCN: a map twice as wide and high, by moving channels into space."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1), nn.PReLU(16))
        self.head = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False) + self.head(self.body(image))


class Audio(nn.Module):
    """DS-CNN on a spectrogram of 40 bands, with a GRU over its steps: ten words."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(conv(1, 16, stride=2), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(4, 16), nn.Hardswish())
        self.steps, self.head = nn.GRU(16 * 20, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, spectrogram: Tensor) -> Tensor:
        maps = self.front(spectrogram)
        return self.head(self.steps(maps.permute(0, 3, 1, 2).flatten(2))[0][:, -1])


class Regression(nn.Module):
    """A number from a table's row."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, 64), nn.LayerNorm(64), nn.LeakyReLU(0.1), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, row: Tensor) -> Tensor:
        return self.body(row)[:, 0]


class Embedding(nn.Module):
    """A vector of unit length for an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2)), nn.Linear(32, 16)

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.head(self.body(image).mean((2, 3))), dim=-1)


class TwoInputs(nn.Module):
    """An image and a row of numbers, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.row, self.head = conv(3, 16, stride=2), nn.Linear(6, 16), nn.Linear(32, 5)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image).mean((2, 3)), self.row(row).relu()], 1))


def box_error(outputs: Outputs, reference: Outputs) -> float:
    """Mean distance of boxes from the float network's, weighted by how likely their cells are."""
    likely = reference[1].max(-1, keepdims=True)
    return float((abs(outputs[0] - reference[0]) * likely).mean())


IMAGE = (3, 16, 16)
BOXES = Metric("boxes", "pixels", False, lambda outputs, reference, index: box_error(
    tuple(value[index] for value in outputs), tuple(value[index] for value in reference)), None, "float", "identity")  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a network of that kind is made, the sides of its inputs, its metric, and how much of it may be lost."""

    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    metric: str | Metric
    max_drop: float
    labels: Callable[[Tensor], Tensor] | None = None


FAMILIES: Mapping[str, Family] = {
    "segmentation": Family(Segmentation, {"image": IMAGE}, "miou", 40.0, lambda scores: scores.argmax(1)),
    "detection": Family(Detection, {"image": IMAGE}, BOXES, 1.0),
    "super_resolution": Family(SuperResolution, {"image": IMAGE}, "psnr", 60.0),
    "audio": Family(Audio, {"spectrogram": (1, 40, 24)}, "top1", 40.0, lambda scores: scores.argmax(1)),
    "regression": Family(Regression, {"row": (24,)}, "mae", 1.0, lambda value: value),
    "embedding": Family(Embedding, {"image": IMAGE}, "cosine", 20.0),
    "two_inputs": Family(TwoInputs, {"image": IMAGE, "row": (6,)}, "top1", 40.0, lambda scores: scores.argmax(1)),
}


def network(name: str) -> nn.Module:
    """The network, with statistics of its batch norms from random items."""
    torch.manual_seed(0)
    model = FAMILIES[name].make().train()
    with torch.no_grad():
        for _ in range(20):
            model(**_inputs(name, 32))
    return model.eval()


def data(name: str, model: nn.Module) -> list[quantkit.Batch]:
    """Random items; labels are what the network answers, where the metric needs any."""
    inputs, labels = _inputs(name, ITEMS), FAMILIES[name].labels
    with torch.no_grad():
        return [quantkit.Batch(inputs, labels(model(**inputs)) if labels else None)]


def _inputs(name: str, items: int) -> dict[str, Tensor]:
    return {key: torch.randn(items, *sides) for key, sides in FAMILIES[name].inputs.items()}
