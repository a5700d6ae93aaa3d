"""torchvision's ViT-B/16 on your copy of the ImageNet validation set.

    IMAGENET_DIR=path/to/val quantkit allocate recipes/vit_b_16.py --max-drop 0.5

IMAGENET_DIR holds class sub-folders (n01440764, …: all 1,000, since their sorted order numbers the classes), or images and a
labels.csv with the columns file and class_index. The weights, ViT_B_16_Weights.IMAGENET1K_V1 (86.6 M parameters), are downloaded once by
torchvision; without a network, put vit_b_16-c867db91.pth where the message says. Needs quantkit[vision].
Network: Dosovitskiy et al., arXiv 2010.11929.

Result: not measured, for want of the weights and of the ImageNet validation set.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

import quantkit
from quantkit.core.errors import DataError, ModelError
from quantkit.data import Dataset, Preprocessing, open_dataset


def network() -> nn.Module:
    """ViT-B/16 with the weights of its first ImageNet training."""
    try:
        from torchvision.models import ViT_B_16_Weights, vit_b_16
    except ImportError as error:
        raise ModelError("torchvision is not installed", "quantkit[vision]", "pip install quantkit[vision]") from error
    weights = ViT_B_16_Weights.IMAGENET1K_V1
    try:
        return vit_b_16(weights=weights).eval()
    except (URLError, OSError, RuntimeError) as error:
        name = weights.url.rpartition("/")[2]
        place = Path(torch.hub.get_dir()) / "checkpoints" / name
        raise ModelError(f"cannot load {name}: {error}", f"the weights, downloaded or at {place}", f"copy {name} to {place}") from error


def images() -> Dataset:
    """The folder in IMAGENET_DIR, as the weights were evaluated: short side 256, centre crop 224."""
    folder = os.environ.get("IMAGENET_DIR")
    if folder is None:
        raise DataError(
            "IMAGENET_DIR is not set",
            "the folder of the ImageNet validation images, in class sub-folders",
            "export IMAGENET_DIR=path/to/val",
        )
    preprocessing = Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return open_dataset(Path(folder), preprocessing)


def recipe() -> quantkit.Recipe:
    return quantkit.Recipe(
        name="vit_b_16",
        data=images(),
        model=network(),
        metric="top1",
        max_drop=0.5,
        calibration=256,
        search=1000,
        gate=2000,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
