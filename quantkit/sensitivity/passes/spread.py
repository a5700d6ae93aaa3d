"""Perturbed passes on several workers: each takes some of the groups, and results come together in the order of one process.

A worker runs a batch in float, and its groups' part of the perturbations. What it computes hangs on nothing else, so the numbers are those
of one process that computes with as many threads as a worker does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.graph import Group, Pair
from quantkit.core.workers import Workers
from quantkit.data.batch import Batch
from quantkit.network.captured import Captured
from quantkit.network.portable import Portable
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity.passes import perturbed
from quantkit.sensitivity.passes.outputs import Measure


class Shipped:
    """What passes are made of, in a form that goes to another process: each chunk's passes are made once there."""

    def __init__(self, network: Portable, chunks: Sequence[tuple[Group, ...]], target: ModuleType, bank: WeightBank) -> None:
        self._made_of, self.chunks = (network, target, bank), tuple(chunks)
        self.passes = cache(self._passes)

    def __reduce__(self) -> tuple[Any, ...]:
        network, target, bank = self._made_of
        return Shipped, (network, self.chunks, target, bank)

    def _passes(self, chunk: int) -> perturbed.Perturbed:
        network, target, bank = self._made_of
        return perturbed.alone(network.captured, self.chunks[chunk], target, bank)


@dataclass(frozen=True, slots=True)
class Part:
    """A batch, and the chunk of groups that are perturbed in it."""

    batch: Batch
    chunk: int
    measure: Measure


def displaced(shipped: Shipped, part: Part) -> NDArray[np.floating]:
    """The rows of the chunk over the batch, shape [rows, items, coordinates]."""
    return next(iter(shipped.passes(part.chunk).displace([part.batch], part.measure)))


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """As `perturbed.alone`, computed by workers."""

    shipped: Shipped
    workers: Workers
    rows: tuple[tuple[Pair, ...], ...]

    def displace(self, batches: Iterable[Batch], measure: Measure) -> Iterator[NDArray[np.floating]]:
        """`measure` of every row, one array of shape [rows, items, coordinates] for each batch."""
        chunks, place = range(len(self.shipped.chunks)), {row: number for number, row in enumerate(self.rows)}
        found = self.workers.run(displaced, self.shipped, (Part(batch, chunk, measure) for batch in batches for chunk in chunks))
        order = [place[pair,] for groups in self.shipped.chunks for pair in perturbed.quantizable(groups)]
        for first in found:
            together = np.concatenate([first, *(next(found) for _ in chunks[1:])])
            rows = np.empty_like(together)
            rows[order] = together
            yield rows

    def means(self, batches: Iterable[Batch], measure: Measure) -> dict[tuple[Pair, ...], float]:
        """As `Perturbed.means`."""
        return perturbed.means(self.rows, self.displace(batches, measure))


def spread(
    captured: Captured, groups: Sequence[Group], target: ModuleType, bank: WeightBank, workers: Workers
) -> Spread:
    """Each (group, scheme) quantized alone: as many chunks of groups as there are workers, early and late layers in each."""
    count = max(1, min(workers.count, len(groups)))
    shipped = Shipped(Portable(captured), [tuple(groups[start::count]) for start in range(count)], target, bank)
    return Spread(shipped, workers, tuple((pair,) for pair in perturbed.quantizable(groups)))
