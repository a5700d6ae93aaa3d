"""SqueezeNet 1.1 (1.24 M parameters, ImageNet): no plan here is far from float, so what counts is speed and size.

    quantkit allocate recipes/squeezenet1_1.py --max-drop 1.0
    python recipes/squeezenet1_1.py --max-drop 1.0 --minimize bytes

Weights and 1,200 labelled photographs come from the folder in QUANTKIT_DATA, by default ../shared/data beside the repository.
Network: Iandola et al., arXiv 1602.07360, version 1.1. Weights: Apache-2.0.

Result (three split seeds, one thread, avx512_vnni, AMD EPYC): -0.23 points lost on average (-0.41 to -0.13 over the seeds, 520 gate items
each; +0.19 by counting), at most the budget on 3 of 3, sure at 95 % on 3, broken on 0; 0.40 of float's time, 0.96 of that of onnxruntime's
quantize_static (which loses +0.01); 0.26 of float's bytes. With --minimize bytes --max-drop 1.0 (three seeds): +0.30 points, 0.59 of
quantize_static's bytes at 0.96 of its time.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import quantkit
from quantkit.core.errors import DataError
from quantkit.data import Dataset, Preprocessing, concatenate, open_dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (squeezed, expanded) channels of the eight fires; a pool stands before fires 0, 2 and 4.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOLED = (0, 2, 4)


class Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


class SqueezeNet(nn.Module):
    """Images [items, 3, 224, 224] → scores [items, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=2)
        inputs = [64, *(2 * expanded for _, expanded in FIRES)]
        self.fires = nn.ModuleList(Fire(channels, *fire) for channels, fire in zip(inputs, FIRES, strict=False))
        self.pool = nn.MaxPool2d(3, stride=2)
        self.classifier = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for number, fire in enumerate(self.fires):
            x = fire(self.pool(x) if number in POOLED else x)
        return self.classifier(x).relu().mean(dim=(2, 3))


def network(weights: Path) -> nn.Module:
    """The network with the weights of an .npz, whose convolutions are called conv0 … conv25 in the order of the forward pass."""
    model = SqueezeNet().eval()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with np.load(weights) as arrays:
        # The classifier is registered last and runs last; inside a fire: squeeze, 1x1, 3x3. So registration is forward order.
        for number, convolution in enumerate(convolutions):
            convolution.load_state_dict({part: torch.from_numpy(arrays[f"conv{number}.{part}"]) for part in ("weight", "bias")})
    return model


def photographs(folder: Path) -> Dataset:
    """Both sets of 600, each with its own preprocessing, as one."""
    flickr = Preprocessing(resize=(224, 224), mean=MEAN, std=STD)
    sample = Preprocessing(resize=256, crop=224, mean=MEAN, std=STD)
    return concatenate([open_dataset(folder / "imagenet-nips17", flickr), open_dataset(folder / "imagenet-sample", sample)])


def data_folder() -> Path:
    folder = Path(os.environ.get("QUANTKIT_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "weights" / "squeezenet1_1").is_dir():
        raise DataError(f"no weights/squeezenet1_1 in {folder}", "the folder that holds weights and images", "set QUANTKIT_DATA to it")
    return folder


def recipe() -> quantkit.Recipe:
    folder = data_folder()
    return quantkit.Recipe(
        name="squeezenet1_1",
        model=network(folder / "weights" / "squeezenet1_1" / "squeezenet1_1.npz"),
        data=photographs(folder),
        metric="top1",
        max_drop=1.0,
        calibration=160,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
