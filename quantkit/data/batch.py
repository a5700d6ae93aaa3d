"""`Item` and `Batch`, the shape in which data reaches every stage, and `Dataset`, what gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.errors import DataError
from quantkit.core.metric import NO_LABEL

PADDING_MASK = "attention_mask"  # the input that tells padding from tokens, as transformers call it


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One example, without a batch axis. `mask` is true where a token counts."""

    inputs: Mapping[str, Tensor]
    label: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Items stacked along axis 0. An input without a name has its position as key: "0", "1", …"""

    inputs: Mapping[str, Tensor]
    labels: Tensor | None = None
    mask: Tensor | None = None

    @property
    def size(self) -> int:
        """How many items it holds."""
        return len(next(iter(self.inputs.values())))

    @property
    def counted(self) -> Tensor | None:
        """Which tokens count, bool [items, tokens]: `mask`, or else the input PADDING_MASK; None where all do."""
        found = self.inputs.get(PADDING_MASK) if self.mask is None else self.mask
        return None if found is None or found.dim() != 2 else found.bool()


class Dataset(Protocol):
    """Items by position, the same on every call."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """The item at `index`, decoded and preprocessed. Raises DataError, naming the item, where it cannot be read."""

    def digest(self, index: int) -> str:
        """The sha256, in hex, of the item's content without its label; it does not depend on the item's position."""

    def describe(self) -> dict[str, Any]:
        """What shapes the items, as JSON: kind, preprocessing, count, and a hash of the labels. Goes into fingerprints."""


class Items(Protocol):
    """Some items of a dataset, in a fixed order."""

    def __len__(self) -> int: ...

    def first(self, count: int) -> Items:
        """The first `count` items, or all if there are fewer."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All items in order, `batch_size` at a time; the last batch may be smaller. Raises DataError where items do not stack."""


def stack(items: Sequence[Item]) -> Batch:
    """The batch of `items`. Raises DataError where they differ in shape or only some have a label."""
    inputs = {name: _stack(name, [item.inputs[name] for item in items]) for name in items[0].inputs}
    return Batch(inputs, _stack_some("label", [item.label for item in items]), _stack_some("mask", [item.mask for item in items]))


def bind(inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """`inputs` under the model's input `names`, in their order: by name where all are there, else by order where the count matches.

    Raises DataError otherwise, and where only some names match, since order would then pair the rest by luck.
    """
    if all(name in inputs for name in names):
        return {name: inputs[name] for name in names}
    if len(inputs) == len(names) and not set(inputs) & set(names):
        return dict(zip(names, inputs.values(), strict=True))
    raise DataError(
        f"the data has inputs {', '.join(inputs)}",
        f"the model's inputs {', '.join(names)}",
        "name the arrays as the model names its inputs",
    )


def of_tokens(values: Tensor, counted: Tensor | None) -> Tensor:
    """The rows of tokens that count, [tokens, …], where `values` has a row for each token; all of `values` otherwise.

    Behind a matrix product the first axis may be both, items and tokens.
    """
    if counted is None or values.dim() < 2:
        return values
    if values.dim() > 2 and values.shape[:2] == counted.shape:
        return values[counted]
    return values[counted.flatten()] if len(values) == counted.numel() and counted.shape[1] > 1 else values


def check_labels(labels: NDArray[Any], classes: int, of: str = "") -> None:
    """Raises DataError where a class label is not an integer or lies outside 0..classes-1, naming the first such item.

    `labels` has shape [items, …]; with a label for each position, NO_LABEL is none. `of` says behind the item's number where it is counted.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels{of} of type {labels.dtype}", f"whole class numbers 0..{classes - 1}", "store class labels as integers")
    known = labels != NO_LABEL if labels.ndim > 1 else np.ones(labels.shape, bool)
    wrong = np.flatnonzero(known & ((labels < 0) | (labels >= classes)))
    if wrong.size:
        item = np.unravel_index(wrong[0], labels.shape)[0]
        got = f"item {item}{of} has label {labels.flat[wrong[0]]}" + (f" ({wrong.size} labels are out of range)" if wrong.size > 1 else "")
        raise DataError(got, f"0..{classes - 1}, as the model has {classes} outputs", "fix the labels, or pass the model they belong to")


def _stack(name: str, values: Sequence[Tensor]) -> Tensor:
    for value in values:
        if value.shape != values[0].shape:
            got = f"items differ in shape in {name!r}: {list(values[0].shape)} and {list(value.shape)}"
            raise DataError(got, "one shape for all", "resize and crop images (--resize 256 --crop 224); pad sequences")
    return torch.stack(list(values))


def _stack_some(name: str, values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    if present and len(present) < len(values):
        raise DataError(
            f"{len(present)} of {len(values)} items have a {name}",
            f"a {name} for all or for none",
            f"add the missing {name}s, or leave all out",
        )
    return _stack(name, present) if present else None
