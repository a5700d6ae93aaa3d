"""The main job on something small and real: handwritten digits, and a residual network trained on the spot.

scikit-learn brings the digits (1,797 images of 8x8 pixels from the UCI repository), so nothing is downloaded. The same seed on the
same machine gives the same network.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantkit.core.errors import ModelError
from quantkit.core.progress import Progress
from quantkit.data import Batch, collect, separate
from quantkit.settings.recipe import Recipe

SEED = 0
CHANNELS = (8, 32, 160)  # narrow at first, where 4 bits hurt, and wide at last, where the bytes are
TRAINING_ITEMS, CALIBRATION_ITEMS, SEARCH_ITEMS = 897, 100, 400  # the other 400 judge
EPOCHS, BATCH, PEAK_RATE, WEIGHT_DECAY = 20, 64, 4e-3, 1e-3


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H / stride, W / stride]."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for images of one channel and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        first, *_ = CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        pairs = zip((first, *CHANNELS), CHANNELS, (1, 2, 2), strict=False)
        self.blocks = nn.Sequential(*(Block(inputs, outputs, stride) for inputs, outputs, stride in pairs))
        self.classifier = nn.Linear(CHANNELS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, H, W] → scores [N, 10]."""
        pooled = functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        scores: Tensor = self.classifier(pooled.flatten(1))
        return scores


def build(progress: Progress) -> Recipe:
    """The trained network, digits that it never saw, and the promise to lose at most one point.

    Raises ModelError where scikit-learn is not installed.
    """
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    cuts = list(accumulate((TRAINING_ITEMS, CALIBRATION_ITEMS, SEARCH_ITEMS)))
    parts = torch.tensor_split(order, cuts)
    training, *held_out = [(images[part], labels[part]) for part in parts]
    model = train(*training, progress)
    splits = separate(*(collect([Batch({"x": inputs}, classes)]) for inputs, classes in held_out))
    return Recipe(model=model, data=splits, metric="top1", max_drop=1.0, minimize="bytes", name="digits")


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in 0..1 and their classes."""
    if find_spec("sklearn") is None:
        raise ModelError("the demo's digits come with scikit-learn, which is not installed", "the extra", "pip install 'quantkit[demo]'")
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    return torch.from_numpy(bunch.images).float().unsqueeze(1) / 16, torch.from_numpy(bunch.target).long()


def train(images: Tensor, labels: Tensor, progress: Progress) -> DigitNet:
    """A network trained on `images`, each shifted by at most one pixel, in eval mode. torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DigitNet()
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    with progress.stage("train on handwritten digits", total=EPOCHS, unit="epochs") as advance, _one_thread():
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images), generator=generator)[: len(images) // BATCH * BATCH].reshape(-1, BATCH):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(_shifted(images[chosen], generator)), labels[chosen])
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
            advance(1)
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are ordered by the number of threads, so that more of them would train another network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    padded = functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]
