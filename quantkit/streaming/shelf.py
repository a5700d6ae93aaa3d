"""What is written of each block, under the fingerprint of all that it follows from: its codes, what each scheme loses, hidden states.

    RUN/streamed-<16 of the key>/007.json          the record of a block: written last, so that it is only there beside the rest
    RUN/streamed-<16 of the key>/007-w4b32d8.bin   codes and scales of its matrices under a scheme; candidates refer to these files
    RUN/streamed-<16 of the key>/hidden-008.f32    what the block gives, for all items; gone once the next block has its record

    RUN/streamed-<16 of the key>/losses-<16>.json  what a candidate lost on a part of the items
    RUN/outline-<16 of the key>/outline.onnx       the graph without weights, and the one with a cache

Each file is whole or absent. The folder of another request is removed: it is as large as the network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.core.store import write_atomically
from quantkit.export.outline import ALIGNMENT, Blocks, Part, Plain, Rows, Slice

FOLDER, OUTLINES = "streamed-", "outline-"
KINDS: Mapping[str, Callable[..., Part]] = {"blocks": Blocks, "plain": Plain, "rows": Rows}


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Of a block, or of what stands behind them: layers by group, and by group and scheme the loss; by scheme where each layer lies.

    `weights` are how many each layer has.
    """

    groups: Mapping[str, tuple[str, ...]]
    loss: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, Mapping[str, Part]]
    weights: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        parts = {scheme: {layer: to_json(part) for layer, part in layers.items()} for scheme, layers in self.parts.items()}
        return {"groups": self.groups, "loss": self.loss, "parts": parts, "weights": self.weights}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`."""
        parts = {scheme: {layer: from_json(part) for layer, part in layers.items()} for scheme, layers in data["parts"].items()}
        return cls({name: tuple(layers) for name, layers in data["groups"].items()}, data["loss"], parts, data["weights"])


def to_json(part: Part) -> dict[str, Any]:
    """A JSON form of a part."""
    return {"kind": type(part).__name__.lower(), **asdict(part)}


def from_json(data: Mapping[str, Any]) -> Part:
    """The inverse of `to_json`."""
    values = {key: value for key, value in data.items() if key != "kind"}
    lying = {key: Slice(**{**value, "shape": tuple(value["shape"])}) if isinstance(value, dict) else value for key, value in values.items()}
    return KINDS[data["kind"]](**lying)


class Shelf:
    """The folders of one request in a run directory, of its codes and of the graphs; others are removed, and what a killed process left."""

    def __init__(self, run: Path, key: str, outline_key: str) -> None:
        self.folder, self.outlines = run / f"{FOLDER}{key[:16]}", run / f"{OUTLINES}{outline_key[:16]}"
        for other in {*run.glob(f"{FOLDER}*"), *run.glob(f"{OUTLINES}*")} - {self.folder, self.outlines}:
            shutil.rmtree(other)
        for mine in (self.folder, self.outlines):
            mine.mkdir(exist_ok=True)
            for torn in mine.glob(".*"):
                torn.unlink()

    def record(self, name: int | str) -> dict[str, Any] | None:
        """What `keep` wrote under that number of a block, or name."""
        path = self._file(name)
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return found

    def keep(self, name: int | str, data: Mapping[str, Any]) -> None:
        """Write a record: whatever it speaks of is on the disk."""
        with write_atomically(self._file(name)) as temporary:
            temporary.write_text(json.dumps(data, allow_nan=False), encoding="utf-8")

    def _file(self, name: int | str) -> Path:
        return self.folder / (f"{name:03d}.json" if isinstance(name, int) else f"{name}.json")

    def codes(self, number: int, scheme: str) -> Path:
        """The file of a block's matrices under a scheme."""
        return self.folder / f"{number:03d}-{scheme}.bin"

    def hidden(self, number: int) -> Path:
        """The file of what goes into a block."""
        return self.folder / f"hidden-{number:03d}.f32"


class Tray:
    """An open file that takes arrays one after the other; `name` is what it will be called."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def put(self, array: np.ndarray[Any, Any] | Tensor) -> Slice:
        """Write an array where a page begins."""
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        start = self._file.tell()
        if isinstance(array, Tensor):
            scalar, content = str(array.dtype).removeprefix("torch."), array.contiguous().view(torch.uint8).numpy()
        else:
            scalar, content = array.dtype.name, np.ascontiguousarray(array)
        self._file.write(content.data)
        return Slice(self._name, start, content.nbytes, scalar, tuple(array.shape))


def read_slice(folder: Path, one: Slice) -> np.ndarray[Any, Any]:
    """The array that lies there, of uint8 or float32."""
    with (folder / one.file).open("rb") as file:
        file.seek(one.offset)
        return np.frombuffer(bytearray(file.read(one.bytes)), one.scalar).reshape(one.shape)


class Hidden:
    """Hidden states of all items in a file of float32, [items, tokens, width]."""

    def __init__(self, path: Path, tokens: int, width: int) -> None:
        self.path, self._shape = path, (tokens, width)

    def read(self, first: int, last: int) -> Tensor:
        """Those of the items from `first` to before `last`."""
        size = self._shape[0] * self._shape[1]
        with self.path.open("rb") as file:
            found = np.fromfile(file, np.float32, (last - first) * size, offset=first * size * 4)
        return torch.from_numpy(found).reshape(last - first, *self._shape)
