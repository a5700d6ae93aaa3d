"""Any classifier of torchvision's on your copy of the ImageNet validation set: ResNet-50 and MobileNetV2 are those of the founding paper.

    IMAGENET_DIR=path/to/val quantkit allocate recipes/torchvision_imagenet.py --max-drop 0.5
    IMAGENET_DIR=path/to/val NETWORK=mobilenet_v2 quantkit allocate recipes/torchvision_imagenet.py --keep 99.9%

NETWORK is a name of torchvision.models, resnet50 unless it is set. IMAGENET_DIR holds class sub-folders (n01440764, …: all 1,000, since
their sorted order numbers the classes), or images and a labels.csv with the columns file and class_index. The weights, IMAGENET1K_V1, are
downloaded once by torchvision; without a network, put their file where the message says. Needs quantkit[vision].

Result: not measured, for want of the ImageNet validation set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

import quantkit
from quantkit.core.errors import DataError, ModelError
from quantkit.data import Dataset, Preprocessing, open_dataset

NETWORK = "resnet50"


def weights_of(name: str) -> Any:
    """The weights of the network's first ImageNet training, as torchvision names them."""
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ModelError("torchvision is not installed", "quantkit[vision]", "pip install quantkit[vision]") from error
    try:
        return get_model_weights(name).IMAGENET1K_V1
    except (ValueError, AttributeError) as error:
        wanted = "a classifier of torchvision.models with weights IMAGENET1K_V1"
        raise ModelError(f"NETWORK is {name!r}", wanted, "export NETWORK=resnet50") from error


def network(name: str) -> nn.Module:
    """The network with those weights."""
    weights = weights_of(name)
    from torchvision.models import get_model

    try:
        model: nn.Module = get_model(name, weights=weights)
    except (URLError, OSError, RuntimeError) as error:
        file = weights.url.rpartition("/")[2]
        place = Path(torch.hub.get_dir()) / "checkpoints" / file
        raise ModelError(f"cannot load {file}: {error}", f"the weights, downloaded or at {place}", f"copy {file} to {place}") from error
    return model.eval()


def images(name: str) -> Dataset:
    """The folder in IMAGENET_DIR, as the weights were evaluated."""
    folder = os.environ.get("IMAGENET_DIR")
    if folder is None:
        raise DataError(
            "IMAGENET_DIR is not set",
            "the folder of the ImageNet validation images, in class sub-folders",
            "export IMAGENET_DIR=path/to/val",
        )
    told = weights_of(name).transforms()
    preprocessing = Preprocessing(resize=told.resize_size[0], crop=told.crop_size[0], mean=tuple(told.mean), std=tuple(told.std))
    return open_dataset(Path(folder), preprocessing)


def recipe() -> quantkit.Recipe:
    name = os.environ.get("NETWORK", NETWORK)
    return quantkit.Recipe(
        name=name,
        data=images(name),
        model=network(name),
        metric="top1",
        max_drop=0.5,
        calibration=512,
        search=2000,
        gate=5000,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
