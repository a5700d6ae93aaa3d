"""From a decoded image to what a network takes: resize, crop, scale, mean, standard deviation, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from quantkit.core.errors import DataError, unknown

Size = int | tuple[int, int]
Numbers = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """value = (pixel × scale − mean) / std, after resizing and then cropping the centre.

    `resize`: the short side, or (height, width); `crop`: a square's side, or (height, width). `mean` and `std`: one number, or
    one a channel. A `scale` of None is 1/255 for images and 1 for arrays. Raises DataError for values that mean nothing.
    """

    resize: Size | None = None
    crop: Size | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            _check_size(name, getattr(self, name))
        for name in ("mean", "std", "scale"):
            _check_numbers(name, getattr(self, name))
        if any(value <= 0 for value in _sequence(self.std)):
            raise DataError(f"std {self.std}", "numbers above 0", "std is what values are divided by: leave it out where nothing is")

    @property
    def changes_values(self) -> bool:
        """Whether a scale, mean or std is asked for."""
        return any(value is not None for value in (self.scale, self.mean, self.std))

    def to_json(self) -> dict[str, Any]:
        """A JSON form, with every field."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`; fields left out are not asked for. Raises DataError for a field that is none."""
        known = [field.name for field in fields(cls)]
        for name in data:
            if name not in known:
                raise DataError(*unknown("preprocessing option", name, known))
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**plain)


def decode(image: Image.Image, preprocessing: Preprocessing, name: str) -> NDArray[np.uint8]:
    """The resized and cropped RGB pixels, shape [height, width, 3]. Raises DataError where `image` is smaller than the crop.

    Sizes round as torchvision's Resize and CenterCrop do, so that accuracies published with those hold here.
    """
    image = image.convert("RGB")
    if preprocessing.resize is not None:
        height, width = _resized(image.height, image.width, preprocessing.resize)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if preprocessing.crop is not None:
        height, width = (preprocessing.crop,) * 2 if isinstance(preprocessing.crop, int) else preprocessing.crop
        if height > image.height or width > image.width:
            raise DataError(
                f"{name} is {image.height}x{image.width}", f"at least {height}x{width}, the crop", "resize first: --resize 256 --crop 224"
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        image = image.crop((left, top, left + width, top + height))
    return np.array(image)


def normalise(values: Tensor, preprocessing: Preprocessing, scale: float) -> Tensor:
    """float32 of shape [channels, …] from `values` of that shape; `scale` stands in where none is asked for.

    Raises DataError where mean or std have another number of channels.
    """
    result = values.to(torch.float32) * (scale if preprocessing.scale is None else preprocessing.scale)
    if preprocessing.mean is not None:
        result = result - _per_channel("mean", preprocessing.mean, result)
    return result if preprocessing.std is None else result / _per_channel("std", preprocessing.std, result)


def _resized(height: int, width: int, size: Size) -> tuple[int, int]:
    if isinstance(size, tuple):
        return size
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


def _per_channel(name: str, value: Numbers, like: Tensor) -> Tensor:
    numbers = _sequence(value)
    if len(numbers) not in (1, len(like)):
        raise DataError(
            f"{name} has {len(numbers)} numbers", f"1 or {len(like)}, the channels of an item", "give one number, or one a channel"
        )
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, *[1] * (like.dim() - 1))


def _sequence(value: Numbers | None) -> Sequence[float]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _check_size(name: str, value: object) -> None:
    sides = value if isinstance(value, tuple) else (value,)
    right_count = len(sides) == (2 if isinstance(value, tuple) else 1)
    if value is not None and not (right_count and all(type(side) is int and side > 0 for side in sides)):
        raise DataError(f"{name} {value!r}", "pixels, such as 256, or a height and a width above 0", f"write {name} as 256, or as 256x224")


def _check_numbers(name: str, value: Numbers | None) -> None:
    numbers = _sequence(value)
    if value == () or not all(isinstance(number, (int, float)) and isfinite(number) for number in numbers):
        raise DataError(f"{name} {value!r}", "a finite number, or one a channel", f"write {name} as 0.5, or as 0.485,0.456,0.406")
