"""Items held in memory as arrays: from `.npz`, from `.safetensors`, or from batches that someone yields."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantkit.core.errors import DataError, OutputError
from quantkit.data.batch import Batch, Dataset, Item, stack
from quantkit.data.preprocessing import Preprocessing, normalise

LABEL_NAMES = ("labels", "label")
# A shard keeps its items' content hashes, so that an item is the same one there and in the files it was made from.
DIGESTS = "item_sha256"


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Inputs by name, each of shape [items, …], with labels and mask of the same length where there are any.

    Raises DataError where lengths differ, where nothing is there, and where an item holds NaN or infinity, naming it.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None
    preprocessing: Preprocessing
    mask: Tensor | None = None
    digests: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        counts = {name: len(values) if values.dim() else 0 for name, values in _named(self).items()}
        if not self.inputs or 0 in counts.values():
            raise DataError(
                f"arrays without items ({counts})" if counts else "no input array",
                "arrays of shape [items, …]",
                "put the items along the first axis",
            )
        if self.digests is not None:
            counts[DIGESTS] = len(self.digests)
        if len(set(counts.values())) > 1:
            raise DataError(
                f"arrays of different length ({', '.join(f'{k}: {v}' for k, v in counts.items())})",
                "one length, the number of items",
                "save one entry an item in each",
            )
        for name, values in _named(self).items():
            _refuse_not_finite(name, values)
        p = self.preprocessing
        if p.resize is not None or p.crop is not None:
            raise DataError(
                "resize or crop for arrays", "image files, or arrays that have their final size", "leave --resize and --crop out"
            )
        if p.changes_values and (len(self.inputs) > 1 or next(iter(self.inputs.values())).dtype == torch.int64):
            raise DataError(f"scale, mean or std for the inputs {', '.join(self.inputs)}", "one input of image values", "leave them out")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def item(self, index: int) -> Item:
        """One row of every array, scaled where the preprocessing asks for it."""
        inputs = {name: values[index] for name, values in self.inputs.items()}
        if self.preprocessing.changes_values:
            inputs = {name: normalise(value, self.preprocessing, scale=1.0) for name, value in inputs.items()}
        return Item(inputs, *(None if values is None else values[index] for values in (self.labels, self.mask)))

    def digest(self, index: int) -> str:
        """The hash that a shard carries; else the sha256 over the inputs' names, types, shapes and bytes, in the order of the names."""
        if self.digests is not None:
            return self.digests[index]
        return content_hash({name: values[index] for name, values in self.inputs.items()})

    def describe(self) -> dict[str, Any]:
        """Kind, preprocessing, count, a hash of the labels, and one of the values where the items' own hashes come from elsewhere."""
        labels = None if self.labels is None else content_hash({"labels": self.labels})
        values = None if self.digests is None else content_hash(self.inputs)
        return {"kind": "arrays", "preprocessing": self.preprocessing.to_json(), "count": len(self), "labels": labels, "values": values}


def npz(path: Path, preprocessing: Preprocessing) -> Arrays:
    """The arrays of a numpy archive. Raises DataError where it cannot be read without running code, or is cut short."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _from_arrays({name: torch.from_numpy(archive[name]) for name in archive.files}, preprocessing, path)
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}", "a complete .npz of plain number arrays", "save it with numpy.savez") from error


def safetensors(path: Path, preprocessing: Preprocessing) -> Arrays:
    """The tensors of a safetensors file. Raises DataError where it is cut short or none."""
    try:
        return _from_arrays(load_file(path), preprocessing, path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path}: {error}", "a complete .safetensors file", "save or copy it again") from error


def collect(source: Iterable[Any]) -> Arrays:
    """Everything that `source` yields, held in memory: `Batch`es, tensors, mappings (labels under `labels` or `label`), or
    tuples (inputs, labels) as a DataLoader yields them; of a longer tuple the last element is the labels.

    Raises DataError where nothing comes, where a batch is none of these, and where batches do not fit together.
    """
    batches = [_as_batch(value) for value in source]
    if not batches:
        raise DataError("the data yields no batch", "at least one", "a generator can be read only once: pass a list or a DataLoader")
    names = tuple(batches[0].inputs)
    if any(tuple(batch.inputs) != names for batch in batches):
        raise DataError(
            "batches with different inputs", f"{', '.join(names)} in each, as in the first", "yield the same inputs in each batch"
        )
    inputs = {name: _join(name, [batch.inputs[name] for batch in batches]) for name in names}
    labels = [batch.labels for batch in batches if batch.labels is not None]
    masks = [batch.mask for batch in batches if batch.mask is not None]
    if len(labels) not in (0, len(batches)) or len(masks) not in (0, len(batches)):
        raise DataError("only some batches have labels or a mask", "all of them, or none", "add what is missing, or leave it out of all")
    joined_mask = _join("mask", masks) if masks else None
    return Arrays({k: _plain(v) for k, v in inputs.items()}, _join("labels", labels) if labels else None, Preprocessing(), joined_mask)


def write_shard(dataset: Dataset, path: Path) -> None:
    """Writes every item, as a network takes it, and its content hash to an `.npz` or `.safetensors`, to be read without preprocessing.

    Raises DataError for another ending, and OutputError where the file cannot be written; nothing is then left behind.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise DataError(f"a shard called {path.name}", "a name ending in .npz or .safetensors", "rename it")
    batch = stack([dataset.item(index) for index in range(len(dataset))])
    digests = torch.tensor([list(bytes.fromhex(dataset.digest(index))) for index in range(len(dataset))], dtype=torch.uint8)
    arrays = {**batch.inputs, **({} if batch.labels is None else {"labels": batch.labels}), DIGESTS: digests}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **{name: values.numpy() for name, values in arrays.items()})
        else:
            save_file({name: values.contiguous() for name, values in arrays.items()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {path}: {error}", "a writable folder with free space", "choose another folder, or free disk space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _from_arrays(arrays: Mapping[str, Tensor], preprocessing: Preprocessing, path: Path) -> Arrays:
    label = next((name for name in LABEL_NAMES if name in arrays), None)
    inputs = {name: _plain(values) for name, values in arrays.items() if name not in (label, DIGESTS)}
    if not inputs:
        raise DataError(
            f"{path} holds no input ({', '.join(arrays) or 'nothing'})",
            "inputs beside the labels, named as the model names them",
            "save the inputs too: numpy.savez(path, x=inputs, labels=labels)",
        )
    digests = tuple(bytes(row).hex() for row in arrays[DIGESTS].tolist()) if DIGESTS in arrays else None
    return Arrays(inputs, None if label is None else arrays[label], preprocessing, digests=digests)


def _as_batch(value: object) -> Batch:
    if isinstance(value, Batch):
        return Batch(
            {k: _tensor(v) for k, v in value.inputs.items()}, *(None if v is None else _tensor(v) for v in (value.labels, value.mask))
        )
    if isinstance(value, Mapping):
        label = next((name for name in LABEL_NAMES if name in value), None)
        return Batch({str(k): _tensor(v) for k, v in value.items() if k != label}, None if label is None else _tensor(value[label]))
    if isinstance(value, (tuple, list)) and value:
        *inputs, labels = value if len(value) > 1 else (value[0], None)
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return Batch({str(k): _tensor(v) for k, v in inputs[0].items()}, _tensor(labels))
        return Batch({str(k): _tensor(v) for k, v in enumerate(inputs)}, None if labels is None else _tensor(labels))
    return Batch({"0": _tensor(value)})


def _tensor(value: object) -> Tensor:
    if isinstance(value, (Tensor, np.ndarray)):
        return torch.as_tensor(value).detach().cpu()
    raise DataError(
        f"the data yields {type(value).__name__}", "Batch, tensor, mapping of tensors, or (inputs, labels)", "let it yield one of these"
    )


def _plain(values: Tensor) -> Tensor:
    # Double and half precision are how arrays happen to be saved; networks here take float32.
    return values.to(torch.float32) if values.is_floating_point() else values


def _join(name: str, values: list[Tensor]) -> Tensor:
    if any(value.shape[1:] != values[0].shape[1:] or value.dim() == 0 for value in values):
        shapes = sorted({str(list(value.shape[1:])) for value in values})
        raise DataError(
            f"batches whose {name!r} differ in shape behind the batch axis: {', '.join(shapes)}", "one shape", "pad sequences to one length"
        )
    return torch.cat(values)


def _named(arrays: Arrays) -> dict[str, Tensor]:
    beside = {"labels": arrays.labels, "mask": arrays.mask}
    return {**arrays.inputs, **{name: values for name, values in beside.items() if values is not None}}


def _refuse_not_finite(name: str, values: Tensor) -> None:
    if values.is_floating_point():
        wrong = (~torch.isfinite(values)).flatten(1).any(1) if values.dim() > 1 else ~torch.isfinite(values)
        if wrong.any():
            raise DataError(f"item {int(wrong.nonzero()[0])} has NaN or infinity in {name!r}", "finite numbers", "remove or repair it")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 over names, types, shapes and bytes, in the order of the names."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        content.update(f"{name}:{values.dtype}:{list(values.shape)}:".encode())
        content.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
