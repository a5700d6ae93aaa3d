"""The tensors of a folder as `transformers` saves it, read one by one from its safetensors: never all of them, and nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantkit.core.errors import ModelError

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
AGAIN = "copy or download the folder again"


class Checkpoint:
    """Tensors by name. Nothing stays in memory: what is given out belongs to the caller.

    ModelError for a folder without safetensors, a shard that is missing or cut off, a file outside of the folder, and a tensor that is not
    of float32, float16 or bfloat16.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for path in _shards(folder):
            with _opened(path) as shard:
                for name in shard.keys():  # noqa: SIM118 - no mapping
                    part = shard.get_slice(name)
                    self._files[name], self._shapes[name], self._types[name] = path, tuple(part.get_shape()), part.get_dtype()
        missing = sorted(_indexed(folder).keys() - self._files.keys())
        if missing:
            raise ModelError(f"{len(missing)} tensors of {INDEX} are in no shard, {missing[0]} among them", "complete shards", AGAIN)

    @property
    def names(self) -> frozenset[str]:
        """Of all tensors."""
        return frozenset(self._files)

    @property
    def weights(self) -> int:
        """How many numbers there are in all tensors."""
        return sum(torch.Size(shape).numel() for shape in self._shapes.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, as it lies in its file."""
        if self._types[name] not in TYPES:
            do = "save the network as it was before it was quantized"
            raise ModelError(f"{name} is of type {self._types[name]}", "float32, float16 or bfloat16", do)
        return TYPES[self._types[name]]

    def stored(self, name: str) -> Tensor:
        """A tensor as it lies in its file, a copy."""
        self.dtype(name)
        with _opened(self._files[name]) as shard:
            tensor: Tensor = shard.get_tensor(name)
            return tensor.clone()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors in float32."""
        return {name: self.stored(name).float() for name in names}


def _shards(folder: Path) -> list[Path]:
    single = {WHOLE} if (folder / WHOLE).is_file() else {path.name for path in folder.glob("*.safetensors")}
    named = set(_indexed(folder).values()) or single
    if not named:
        do = "save it again: save_pretrained(folder, safe_serialization=True)"
        raise ModelError(f"no safetensors in {folder}", "weights that are read lazily, and never unpickled", do)
    for name in sorted(named):
        if Path(name).name != name:
            raise ModelError(f"{INDEX} names {name}", "files beside it", AGAIN)
        if not (folder / name).is_file():
            raise ModelError(f"{name} is missing in {folder}", f"all {len(named)} shards", AGAIN)
    return [folder / name for name in sorted(named)]


def _indexed(folder: Path) -> Mapping[str, str]:
    """The shard of each tensor; nothing where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("weight_map"), dict):
            return {str(name): str(file) for name, file in found["weight_map"].items()}
    raise ModelError(f"{path} cannot be read", "a JSON object with weight_map", AGAIN)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        got = f"{path.name} is truncated or no safetensors file: {error}"
        raise ModelError(got, "a complete .safetensors file", "save or download it again") from error
