"""Image files with class labels, in a folder or in a zip archive."""

from __future__ import annotations

import csv
import hashlib
import io
import posixpath
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from quantkit.core.errors import DataError
from quantkit.data.batch import Item
from quantkit.data.preprocessing import Preprocessing, decode, normalise

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
LABEL_COLUMNS = ("class_index", "label", "class")


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Named image files. `read` gives a file's bytes; `labels` is None where nothing names a class.

    Decoded pixels are kept, as bytes before scaling, until they fill `cache_bytes`; later ones are decoded at each use.
    """

    source: str
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    read: Callable[[str], bytes]
    preprocessing: Preprocessing
    cache_bytes: int
    _pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> Item:
        """Input "0" of shape [3, height, width]. Raises DataError, naming the file, where it is not a complete image."""
        values = normalise(torch.from_numpy(self._decoded(index)).permute(2, 0, 1), self.preprocessing, scale=1 / 255)
        return Item({"0": values}, self._label(index))

    def digest(self, index: int) -> str:
        """The sha256 of the file's bytes. Raises DataError where these are no image, before any stage depends on it."""
        if index not in self._digests:
            content = self._read(index)
            self._open(index, content).close()
            self._digests[index] = hashlib.sha256(content).hexdigest()
        return self._digests[index]

    def describe(self) -> dict[str, Any]:
        """Kind, preprocessing, count and a hash of the labels; no path, so that a moved folder keeps its fingerprint."""
        labels = None if self.labels is None else hashlib.sha256(repr(self.labels).encode()).hexdigest()
        return {"kind": "images", "preprocessing": self.preprocessing.to_json(), "count": len(self), "labels": labels}

    def _label(self, index: int) -> Tensor | None:
        return None if self.labels is None else torch.tensor(self.labels[index])

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        if index in self._pixels:
            return self._pixels[index]
        with self._open(index, self._read(index)) as image:
            try:
                pixels = decode(image, self.preprocessing, f"image {self.names[index]}")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise self._unreadable(index, error) from error
        if pixels.nbytes * (len(self._pixels) + 1) <= self.cache_bytes:
            self._pixels[index] = pixels
        return pixels

    def _read(self, index: int) -> bytes:
        try:
            return self.read(self.names[index])
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise self._unreadable(index, error) from error

    def _open(self, index: int, content: bytes) -> Image.Image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                return Image.open(io.BytesIO(content))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: Exception) -> DataError:
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        return DataError(f"cannot read image {self.names[index]} in {self.source}: {reason}", "a complete image", "remove or replace it")


def image_folder(folder: Path, preprocessing: Preprocessing, cache_bytes: int) -> Images:
    """The images of `folder`: by its `labels.csv`, else by class sub-folders (sorted names are classes 0, 1, …), else without labels.

    `labels.csv` has a column `file`, relative to the folder or to its `images` sub-folder, and one of `class_index`, `label`, `class`.
    Raises DataError where there is no image, one class only, an empty class, or a file that the csv names and that does not exist.
    """
    names, labels = _from_csv(folder) if (folder / "labels.csv").is_file() else _from_folder(folder)
    return Images(str(folder), names, labels, lambda name: (folder / name).read_bytes(), preprocessing, cache_bytes)


def image_archive(path: Path, preprocessing: Preprocessing, cache_bytes: int) -> Images:
    """The images of a zip archive, in class folders as in `image_folder`; folders that hold everything are looked through.

    Raises DataError where the archive cannot be read, or holds no image or one class only.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a complete zip archive ({error})", "a zip archive of images", "copy it again") from error
    members = sorted(name for name in archive.namelist() if _is_image(PurePosixPath(name)))
    holders = {str(PurePosixPath(name).parent.parent) for name in members}
    root = posixpath.commonpath(holders) if holders else ""
    labels = _classes([PurePosixPath(name).relative_to(root) for name in members], str(path))
    return Images(str(path), tuple(members), labels, archive.read, preprocessing, cache_bytes)


def _is_image(path: PurePosixPath | Path) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _from_folder(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    names = [PurePosixPath(path.as_posix()) for path in files if _is_image(path)]
    filled = {name.parts[0] for name in names if len(name.parts) > 1}
    if filled:
        _refuse_empty_classes(folder, filled)
    return tuple(map(str, names)), _classes(names, str(folder))


def _classes(names: Sequence[PurePosixPath], source: str) -> tuple[int, ...] | None:
    if not names:
        raise DataError(f"no image in {source}", "class sub-folders of images, or a labels.csv", "pass the folder that holds the classes")
    loose = [name for name in names if len(name.parts) == 1]
    if len(loose) == len(names):
        return None
    if loose:
        got = f"{loose[0]} lies beside the class folders of {source}"
        raise DataError(got, "every image in a class folder, or none", "move it, or write a labels.csv")
    return _numbered([name.parts[0] for name in names], source)


def _refuse_empty_classes(folder: Path, filled: set[str]) -> None:
    # Left out, an empty class would silently shift the number of every class behind it.
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and child.name not in filled:
            raise DataError(f"class folder {child} holds no image", "images in every class folder", "fill it or remove it")


def _from_csv(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    path = folder / "labels.csv"
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows: list[dict[str, str]] = list(csv.DictReader(file))
    column = next((name for name in LABEL_COLUMNS if rows and name in rows[0]), None)
    if column is None or "file" not in rows[0]:
        got = f"{path} has columns {', '.join(rows[0])}" if rows else f"{path} has no rows"
        raise DataError(got, f"a column file and one of {', '.join(LABEL_COLUMNS)}", "name the columns so in its first line")
    names = tuple(_located(folder, row["file"]) for row in rows)
    values = [row[column] for row in rows]
    try:
        numbers = tuple(int(value) for value in values)
    except (ValueError, TypeError):
        return names, _numbered(values, str(path))
    _refuse_one_class(numbers, str(path))
    return names, numbers


def _located(folder: Path, name: str) -> str:
    for candidate in (name, f"images/{name}"):
        if (folder / candidate).is_file():
            return candidate
    raise DataError(
        f"{folder / 'labels.csv'} names {name}, which does not exist",
        f"the file in {folder} or {folder / 'images'}",
        "put it there, or remove its line",
    )


def _numbered(classes: Sequence[str], source: str) -> tuple[int, ...]:
    _refuse_one_class(classes, source)
    order = {name: number for number, name in enumerate(sorted(set(classes)))}
    return tuple(order[name] for name in classes)


def _refuse_one_class(classes: Sequence[str | int], source: str) -> None:
    if len(set(classes)) == 1:
        got = f"all {len(classes)} images of {source} are of one class, {classes[0]!r}"
        raise DataError(got, "two classes or more", "pass the folder that holds the class folders")
