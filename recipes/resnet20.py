"""ResNet-20 for CIFAR-10 (0.27 M parameters): small enough that a whole allocation takes a minute or two.

    quantkit allocate recipes/resnet20.py --max-drop 0.5
    python recipes/resnet20.py --max-drop 0.5 --json

Weights and images come from the folder in QUANTKIT_DATA, by default ../shared/data beside the repository: 256 training images to
calibrate on, 5,000 test images halved into search and gate. They are JPEG, which costs some points in float already.
Network: He et al., arXiv 1512.03385, section 4.2, shortcut option A. Weights: Y. Idelbayev, BSD-2-Clause.

Result (three split seeds, one thread, avx512_vnni, AMD EPYC): -0.01 points lost on average (-0.03 to +0.02 over the seeds, 2500 gate items
each; +0.01 by counting), at most the budget on 3 of 3, sure at 95 % on 3, broken on 0; 0.46 of float's time, 1.00 of that of onnxruntime's
quantize_static (which loses +0.02); 0.28 of float's bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantkit
from quantkit.core.errors import DataError
from quantkit.data import Dataset, Preprocessing, open_dataset

BLOCKS = 3  # in each of three stages: 6 · 3 + 2 layers
WEIGHTS = "resnet20-12fca82f.th"


class Block(nn.Module):
    """Two convolutions; where the stage narrows, the shortcut takes every second pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[..., ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Images [items, 3, 32, 32] → scores [items, 10]."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean(dim=(2, 3)))


def network(weights: Path) -> nn.Module:
    """The network with the weights of a checkpoint that was saved from a data-parallel one."""
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    model = ResNet(BLOCKS)
    model.load_state_dict({name.removeprefix("module."): values for name, values in state.items()})
    return model.eval()


def images(folder: Path) -> dict[str, Dataset]:
    """What to calibrate on, and what is halved into search and gate."""
    preprocessing = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    names = {"calibration": "train-jpeg.zip", "data": "test-jpeg.zip"}
    return {split: open_dataset(folder / "cifar10" / name, preprocessing) for split, name in names.items()}


def data_folder() -> Path:
    folder = Path(os.environ.get("QUANTKIT_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "weights" / "cifar10-resnet").is_dir():
        raise DataError(f"no weights/cifar10-resnet in {folder}", "the folder that holds weights and images", "set QUANTKIT_DATA to it")
    return folder


def recipe() -> quantkit.Recipe:
    folder = data_folder()
    return quantkit.Recipe(
        name="resnet20",
        model=network(folder / "weights" / "cifar10-resnet" / WEIGHTS),
        data=images(folder),
        metric="top1",
        max_drop=0.5,
        calibration=256,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
