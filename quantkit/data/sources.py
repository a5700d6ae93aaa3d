"""What a path to data is, and the dataset behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantkit.core.errors import DataError
from quantkit.data.arrays import npz, safetensors
from quantkit.data.batch import Dataset
from quantkit.data.images import image_archive, image_folder
from quantkit.data.preprocessing import Preprocessing
from quantkit.data.rows import FORMATS, is_saved, saved

CACHE_BYTES = 2 << 30


def open_dataset(path: Path, preprocessing: Preprocessing, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """The dataset behind `path`: a folder or .zip of images, an .npz, a .safetensors, or what `datasets` wrote.

    Decoded images of files are kept up to `cache_bytes`. Raises DataError where the path is missing, empty or something else.
    """
    readers: dict[str, Callable[[], Dataset]] = {
        ".npz": lambda: npz(path, preprocessing),
        ".safetensors": lambda: safetensors(path, preprocessing),
        ".zip": lambda: image_archive(path, preprocessing, cache_bytes),
    }
    if path.exists() and is_saved(path):
        return saved(path, preprocessing)
    if path.is_dir():
        return image_folder(path, preprocessing, cache_bytes)
    if not path.exists():
        raise DataError(f"no file or folder {path}", "an image folder, a .zip of one, .npz, .safetensors or .parquet", "check the path")
    if path.suffix not in readers:
        raise DataError(
            f"{path} is not readable data",
            f"an image folder, or a file ending in {', '.join((*readers, *FORMATS))}",
            "save it as one of these: numpy.savez(path, x=inputs, labels=labels)",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", "a file with items", "copy or download it again")
    return readers[path.suffix]()
