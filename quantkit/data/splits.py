"""Three disjoint splits: calibration (ranges), search (all measurements of the search), gate (the verdict only)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import DataError, unknown
from quantkit.data.batch import Batch, Dataset, Item, stack

if TYPE_CHECKING:
    from quantkit.core.progress import Advance

KEPT_BYTES = 512 << 20
COUNTED_AT_ONCE = 64

CALIBRATION_SHARE = 0.2
CALIBRATION_LIMIT = 512
SPLITS = ("calibration", "search", "gate")


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some items of a dataset, in a fixed order; itself a dataset."""

    dataset: Dataset
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> Subset:
        """The first `count` items, or all if there are fewer."""
        return Subset(self.dataset, self.indices[:count])

    def item(self, index: int) -> Item:
        """The item at position `index` of the subset."""
        return self.dataset.item(self.indices[index])

    def digest(self, index: int) -> str:
        """The content hash of the item at position `index` of the subset."""
        return self.dataset.digest(self.indices[index])

    def describe(self) -> dict[str, Any]:
        """What it is a part of, and how many items it has."""
        return {"kind": "subset", "of": self.dataset.describe(), "count": len(self)}

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All items in order, `batch_size` at a time; the last batch may be smaller. Raises DataError where items do not stack."""
        for start in range(0, len(self), batch_size):
            yield stack([self.dataset.item(index) for index in self.indices[start : start + batch_size]])

    def labels(self) -> NDArray[Any] | None:
        """Labels of shape [items, …], or None where there are none. Raises DataError where only some items have one."""
        labels = [self.item(index).label for index in range(len(self))]
        present = [label.numpy() for label in labels if label is not None]
        if present and len(present) < len(labels):
            raise DataError(
                f"{len(present)} of {len(labels)} items have a label",
                "a label for all or for none",
                "add the missing labels, or leave all out",
            )
        return np.stack(present) if present else None

    def counted(self) -> NDArray[np.bool_] | None:
        """Which tokens of each item count, [items, tokens]; None where all do."""
        if not len(self) or stack([self.item(0)]).counted is None:
            return None
        found = [batch.counted for batch in self.batches(COUNTED_AT_ONCE)]
        return np.concatenate([rows.numpy() for rows in found if rows is not None])

    def digests(self) -> tuple[str, ...]:
        """The content hash of every item, in order."""
        return tuple(self.digest(index) for index in range(len(self)))

    def fingerprint(self) -> str:
        """A sha256 over what the dataset says of itself and over the items, in order."""
        return hashlib.sha256(json.dumps([self.dataset.describe(), self.digests()], sort_keys=True).encode()).hexdigest()


class KeptBatches:
    """A subset for those who go through it many times: its batches are kept in memory, as far as `most_bytes` reach."""

    def __init__(self, subset: Subset, most_bytes: int = KEPT_BYTES) -> None:
        self._subset, self._most_bytes = subset, most_bytes
        self._kept: list[Batch] = []
        self._batch_size = 0

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """As of a subset; made anew where another size is asked for than the last time."""
        if batch_size != self._batch_size:
            self._kept, self._batch_size = [], batch_size
        yield from self._kept
        start, held = len(self._kept) * batch_size, sum(map(_nbytes, self._kept))
        rest = Subset(self._subset.dataset, self._subset.indices[start:])
        for batch in rest.batches(batch_size):
            held += _nbytes(batch)
            if held <= self._most_bytes:
                self._kept.append(batch)
            yield batch

    def read(self, batch_size: int, advance: Advance) -> None:
        """Reads what is kept ahead, so that who goes through it first takes no longer than others; `advance(items)` after each batch."""
        for number, batch in enumerate(self.batches(batch_size), 1):
            advance(batch.size)
            if len(self._kept) < number:
                return


def _nbytes(batch: Batch) -> int:
    return sum(value.nbytes for value in batch.inputs.values())


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Three subsets that share no item."""

    calibration: Subset
    search: Subset
    gate: Subset


@dataclass(frozen=True, slots=True, eq=False)
class Concatenated:
    """Several datasets as one, in order."""

    parts: tuple[Dataset, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def item(self, index: int) -> Item:
        """The item at `index`, counted through all parts."""
        part, position = self._locate(index)
        return part.item(position)

    def digest(self, index: int) -> str:
        """Its content hash, as its part gives it."""
        part, position = self._locate(index)
        return part.digest(position)

    def describe(self) -> dict[str, Any]:
        """What every part says."""
        return {"kind": "concatenated", "parts": [part.describe() for part in self.parts], "count": len(self)}

    def _locate(self, index: int) -> tuple[Dataset, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(f"item {index} past the end of {len(self)} items")


def concatenate(datasets: Sequence[Dataset]) -> Concatenated:
    """One dataset of all items of `datasets`, which keep their own preprocessing."""
    return Concatenated(tuple(datasets))


def sample(dataset: Dataset, *, count: int | None, seed: int) -> Subset:
    """`count` items, or all, chosen and ordered by a hash of their content and `seed`. Raises DataError where there are fewer."""
    order = [index for group in _groups(dataset, seed) for index in group]
    if count is not None and not 0 < count <= len(order):
        raise DataError(f"{count} items asked of {len(order)}", f"between 1 and {len(order)}", "ask for fewer, or pass more data")
    return Subset(dataset, tuple(order[:count]))


def cut(dataset: Dataset, *, seed: int, calibration: int | None = None, search: int | None = None, gate: int | None = None) -> Splits:
    """Three splits of one dataset, by sha256 of (seed, item content): where an item goes does not depend on its position or name.

    Counts left out: calibration a fifth, at most 512; what remains goes to search and gate in halves. Items with equal content stay
    together, so a split may fall short of its count. Raises DataError where a split would be empty.
    """
    if calibration is None:
        room = len(dataset) - (search or 0) - (gate or 0)
        calibration = max(1, min(CALIBRATION_LIMIT, round(CALIBRATION_SHARE * len(dataset)), room))
    return Splits(**_fill(dataset, seed, {"calibration": calibration, **_halve(len(dataset) - calibration, search, gate)}))


def separate(calibration: Dataset, search: Dataset, gate: Dataset) -> Splits:
    """Splits given apart, in their own order. Raises DataError where two of them share content, naming an item and the count."""
    given = {name: whole(dataset) for name, dataset in zip(SPLITS, (calibration, search, gate), strict=True)}
    digests = {name: subset.digests() for name, subset in given.items()}
    for one, other in combinations(SPLITS, 2):
        shared = set(digests[one]) & set(digests[other])
        if shared:
            first = next(index for index, digest in enumerate(digests[one]) if digest in shared)
            got = f"the {one} and {other} splits share {len(shared)} items; the first is item {first} of {one}"
            raise DataError(got, "splits without a common item", "remove it from one, or pass one source and let it be cut")
    return Splits(**given)


def split(
    source: Dataset | Splits | Mapping[str, Dataset],
    *,
    seed: int,
    calibration: int | None = None,
    search: int | None = None,
    gate: int | None = None,
) -> Splits:
    """The three splits of whatever `source` is: splits as they are; one dataset, by `cut`; or datasets by name.

    By name: `calibration`, `search` and `gate`; or `calibration` and `data`, where `data` is halved into search and gate. Counts are
    limits, and choose by hash and seed. Raises DataError for other names, overlaps, and counts that cannot be met.
    """
    if isinstance(source, Splits):
        return source
    if not isinstance(source, Mapping):
        return cut(source, seed=seed, calibration=calibration, search=search, gate=gate)
    for name in source:
        if name not in (*SPLITS, "data"):
            raise DataError(*unknown("data source", name, (*SPLITS, "data")))
    if set(source) == {"calibration", "data"}:
        calibrated = sample(source["calibration"], count=calibration, seed=seed)
        return separate(calibrated, **_fill(source["data"], seed, _halve(len(source["data"]), search, gate)))
    if set(source) != set(SPLITS):
        raise DataError(
            f"data given as {', '.join(sorted(source))}",
            "calibration, search and gate; or calibration and data; or one dataset",
            "add what is missing, or pass one dataset as data",
        )
    counts = zip(SPLITS, (calibration, search, gate), strict=True)
    return separate(*(sample(source[name], count=count, seed=seed) for name, count in counts))


def whole(dataset: Dataset) -> Subset:
    """All items in their own order."""
    return dataset if isinstance(dataset, Subset) else Subset(dataset, tuple(range(len(dataset))))


def _halve(room: int, search: int | None, gate: int | None) -> dict[str, int]:
    if search is None:
        search = room // 2 if gate is None else room - gate
    return {"search": search, "gate": room - search if gate is None else gate}


def _fill(dataset: Dataset, seed: int, counts: Mapping[str, int]) -> dict[str, Subset]:
    if min(counts.values()) < 1 or sum(counts.values()) > len(dataset):
        got = f"{len(dataset)} items for splits of {', '.join(f'{count} ({name})' for name, count in counts.items())}"
        raise DataError(got, "at least one item in each, and no more than there are", "pass more data, or other counts")
    chosen: dict[str, list[int]] = {name: [] for name in counts}
    for group in _groups(dataset, seed):
        for name, indices in chosen.items():
            if len(indices) + len(group) <= counts[name]:
                indices.extend(group)
                break
    for name, indices in chosen.items():
        if not indices:
            raise DataError(
                f"no item is left for the {name} split: too many of {len(dataset)} are equal",
                "more different items",
                "pass more data, or take the copies out",
            )
    return {name: Subset(dataset, tuple(indices)) for name, indices in chosen.items()}


def _groups(dataset: Dataset, seed: int) -> list[list[int]]:
    """Positions of items with equal content, together, in the order of a hash of that content and the seed."""
    groups: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        groups.setdefault(dataset.digest(index), []).append(index)
    return [groups[digest] for digest in sorted(groups, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())]
