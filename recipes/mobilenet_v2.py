"""MobileNetV2 1.0 (3.49 M parameters, ImageNet): rounded to nearest, uniform int8 loses 1.3 to 3.7 points here.

    quantkit allocate recipes/mobilenet_v2.py --max-drop 1.0
    python recipes/mobilenet_v2.py --max-drop 1.0 --json

Weights and 1,200 labelled photographs come from the folder in QUANTKIT_DATA, by default ../shared/data beside the repository.
Network: Sandler et al., arXiv 1801.04381, with TensorFlow's padding and batch norm already folded. Weights: Apache-2.0.

Result (three split seeds, one thread, avx512_vnni, AMD EPYC): 0.00 points lost on average (-0.52 to +0.28 over the seeds, 520 gate items
each; +0.06 by counting), at most the budget on 3 of 3, sure at 95 % on 2, broken on 0; 0.49 of float's time, 1.03 of that of onnxruntime's
quantize_static (which loses +2.37); 0.26 of float's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import quantkit
from quantkit.core.errors import DataError
from quantkit.data import Dataset, Preprocessing, concatenate, open_dataset

# (expansion, channels, repeats, stride of the first) as in table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
CLASSES = 1000


class Convolution(nn.Conv2d):
    """3x3 or 1x1 convolution that pads as TensorFlow's SAME does for even sizes: at stride 2 on the right and below only."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride == (2, 2) else x)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project; the input is added where its shape is kept."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Convolution(inputs, width) if expansion > 1 else None
        self.dw = Convolution(width, width, 3, stride, groups=width)
        self.project = Convolution(width, outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.dw(y)))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Images [items, 3, 224, 224] → scores [items, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for expansion, outputs, repeats, stride in STAGES:
            for number in range(repeats):
                blocks.append(Block(channels, outputs, expansion, stride if number == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(channels, 1280)
        self.classifier = nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.head(self.blocks(F.relu6(self.stem(x)))))
        return self.classifier(x.mean(dim=(2, 3)))


def network(weights: Path) -> nn.Module:
    """The network with the weights of an .npz, whose keys are its own parameter names."""
    model = MobileNetV2().eval()
    with np.load(weights) as arrays:
        model.load_state_dict({name: torch.from_numpy(without_background(name, arrays)) for name in arrays.files})
    return model


def without_background(name: str, arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The classifier of TensorFlow's models has a class 0, "background", that ImageNet has not."""
    return arrays[name][-CLASSES:] if name.startswith("classifier.") else arrays[name]


def photographs(folder: Path) -> Dataset:
    """Both sets of 600, each with its own preprocessing, as one; pixels become -1..1."""
    flickr = Preprocessing(resize=(224, 224), scale=1 / 127.5, mean=1.0)
    sample = Preprocessing(resize=256, crop=224, scale=1 / 127.5, mean=1.0)
    return concatenate([open_dataset(folder / "imagenet-nips17", flickr), open_dataset(folder / "imagenet-sample", sample)])


def data_folder() -> Path:
    folder = Path(os.environ.get("QUANTKIT_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "weights" / "mobilenet_v2").is_dir():
        raise DataError(f"no weights/mobilenet_v2 in {folder}", "the folder that holds weights and images", "set QUANTKIT_DATA to it")
    return folder


def recipe() -> quantkit.Recipe:
    folder = data_folder()
    return quantkit.Recipe(
        name="mobilenet_v2",
        model=network(folder / "weights" / "mobilenet_v2" / "mobilenet_v2_1.0_224.npz"),
        data=photographs(folder),
        metric="top1",
        max_drop=1.0,
        calibration=160,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
