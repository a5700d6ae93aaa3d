"""Single items read by position: a torch Dataset, one of Hugging Face's `datasets` or its files, any sequence of rows."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quantkit.core.errors import DataError, QuantkitError
from quantkit.data.arrays import LABEL_NAMES, content_hash
from quantkit.data.batch import Item
from quantkit.data.preprocessing import Preprocessing, decode, normalise

SAVED = "dataset_info.json"  # in a folder that `datasets` saved
FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


class Indexed(Protocol):
    """What has a length and gives a row by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A row is a tuple (inputs …, label), a mapping with its label under `label` or `labels`, or one input. Pictures are preprocessed.

    Raises DataError where there is no row, and where a row is another one each time it is read.
    """

    rows: Indexed
    preprocessing: Preprocessing
    _seen: dict[int, tuple[str, str]] = field(default_factory=dict, repr=False)  # digests of the inputs and of the label

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise DataError(f"a {self._kind} without rows", "at least one", "pass the rows that it was made of")
        if self._digests(0) != self._digests(0):
            got = f"row 0 of the {self._kind} is another one each time it is read"
            raise DataError(got, "rows that stay the same", "leave random transforms out, as for evaluation")

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Item:
        """The row's inputs, under the mapping's keys or their positions. Raises DataError for what is no number and no picture."""
        inputs, label = self._parts(index)
        return Item(self._preprocessed(index, inputs), None if label is None else self._number(index, "label", label))

    def digest(self, index: int) -> str:
        """The sha256 over the names, types, shapes and bytes of the inputs."""
        return self._met(index)[0]

    def describe(self) -> dict[str, Any]:
        """Kind, preprocessing, count and a hash of the labels, for which every row is read once."""
        labels = hashlib.sha256(repr([self._met(index)[1] for index in range(len(self))]).encode()).hexdigest()
        return {"kind": "rows", "preprocessing": self.preprocessing.to_json(), "count": len(self), "labels": labels}

    @property
    def _kind(self) -> str:
        return type(self.rows).__name__

    def _met(self, index: int) -> tuple[str, str]:
        if index not in self._seen:
            self._seen[index] = self._digests(index)
        return self._seen[index]

    def _digests(self, index: int) -> tuple[str, str]:
        inputs, label = self._parts(index)
        values = {name: torch.from_numpy(np.array(value)) if _is_picture(value) else value for name, value in inputs.items()}
        return content_hash(values), "" if label is None else content_hash({"label": self._number(index, "label", label)})

    def _parts(self, index: int) -> tuple[dict[str, Any], Any]:
        """The row's inputs by name, pictures and tensors, as they are before preprocessing, and its label."""
        row = self._row(index)
        named: Mapping[Any, Any]
        if isinstance(row, Mapping):
            key = next((name for name in LABEL_NAMES if name in row), None)
            label, named = None if key is None else row[key], {name: value for name, value in row.items() if name != key}
        elif isinstance(row, tuple | list):
            *values, label = row if len(row) > 1 else (*row, None)
            named = values[0] if len(values) == 1 and isinstance(values[0], Mapping) else dict(enumerate(values))
        else:
            label, named = None, {0: row}
        if not named:
            raise DataError(f"row {index} of the {self._kind} has no input", "inputs beside the label", "leave the label's column its name")
        return {str(name): value if _is_picture(value) else self._number(index, name, value) for name, value in named.items()}, label

    def _row(self, index: int) -> Any:
        """What the user's own code gives; what it raises becomes one line."""
        try:
            return self.rows[index]
        except QuantkitError:
            raise
        except Exception as error:
            got = f"row {index} of the {self._kind} raises {type(error).__name__}: {error}"
            raise DataError(got, "a row", "read it once by hand: dataset[index]") from error

    def _preprocessed(self, index: int, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        found = {}
        for name, value in inputs.items():
            if _is_picture(value):
                pixels = torch.from_numpy(decode(value, self.preprocessing, f"row {index}")).permute(2, 0, 1)
                found[name] = normalise(pixels, self.preprocessing, scale=1 / 255)
            elif self.preprocessing.changes_values and len(inputs) == 1:
                found[name] = normalise(value, self.preprocessing, scale=1.0)
            else:
                found[name] = value.float() if value.is_floating_point() else value
        return found

    def _number(self, index: int, name: object, value: Any) -> Tensor:
        try:
            return torch.as_tensor(np.asarray(value) if isinstance(value, list) else value).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            got = f"row {index} of the {self._kind} has a {type(value).__name__} as {str(name)!r}"
            do = "drop the column, or tokenize texts first: dataset.map(…), dataset.with_format('torch')"
            raise DataError(got, "numbers, or a picture", do) from None


def is_rows(value: object) -> bool:
    """Whether `value` is a torch Dataset that has a length, or one of Hugging Face's."""
    torch_s = isinstance(value, torch.utils.data.Dataset) and not isinstance(value, torch.utils.data.IterableDataset)
    return hasattr(value, "__len__") and (torch_s or type(value).__module__.partition(".")[0] == "datasets")


def is_saved(path: Path) -> bool:
    """Whether `datasets` wrote it: a Parquet or Arrow file, or a folder of `save_to_disk`."""
    return path.suffix in FORMATS or (path / SAVED).is_file()


def saved(path: Path, preprocessing: Preprocessing) -> Rows:
    """The rows of a file or folder that `datasets` wrote. Raises DataError where it is not installed, and where they cannot be read."""
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise DataError(f"{path}, and `datasets` is not installed", "it, to read Arrow and Parquet", "pip install datasets") from None
    try:
        if path.is_dir():
            return Rows(library.load_from_disk(str(path)), preprocessing)
        made = library.Dataset.from_parquet if path.suffix == ".parquet" else library.Dataset.from_file
        return Rows(made(str(path)), preprocessing)
    except (OSError, ValueError, KeyError, library.exceptions.DatasetsError) as error:
        raise DataError(f"cannot read {path}: {error}", "rows that `datasets` wrote, of one split", "save one split again") from error


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image)
