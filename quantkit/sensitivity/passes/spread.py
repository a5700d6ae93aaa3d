"""Perturbed passes on several workers: each takes some of the groups, and results come together in the order of one process.

A worker runs a batch in float, and its groups' part of the perturbations. What it computes hangs on nothing else, so the numbers are those
of one process that computes with as many threads as a worker does.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantkit.core.graph import Group, Pair
from quantkit.core.workers import Workers
from quantkit.data.batch import Batch
from quantkit.network.capture import restore
from quantkit.network.captured import Captured
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity.passes import perturbed
from quantkit.sensitivity.passes.outputs import Measure


class Shipped:
    """What passes are made of, in a form that goes to another process: there the network is built once, and each chunk's passes too."""

    def __init__(self, captured: Captured, groups: Sequence[Group], target: ModuleType, bank: WeightBank, chunks: int) -> None:
        self._captured, self._chunks = captured, tuple(tuple(groups[start::chunks]) for start in range(chunks))
        self._target, self._bank = target, bank
        self.passes = cache(self._passes)

    @property
    def chunks(self) -> range:
        """Those that have a group, by number."""
        return range(sum(map(bool, self._chunks)))

    def _passes(self, chunk: int) -> perturbed.Perturbed:
        return perturbed.alone(self._captured, self._chunks[chunk], self._target, self._bank)

    def __getstate__(self) -> dict[str, Any]:
        stored = io.BytesIO()
        torch.export.save(self._captured.program, stored)
        kept = {name: value for name, value in vars(self).items() if name not in ("_captured", "passes")}
        return {**kept, "program": stored.getvalue(), "graph": self._captured.graph}

    def __setstate__(self, state: dict[str, Any]) -> None:
        program, graph = io.BytesIO(state.pop("program")), state.pop("graph")
        vars(self).update(state)
        self._captured = restore(torch.export.load(program), graph)
        self.passes = cache(self._passes)


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
        parts = (Part(batch, chunk, measure) for batch in batches for chunk in self.shipped.chunks)
        found, place = self.workers.run(displaced, self.shipped, parts), {row: number for number, row in enumerate(self.rows)}
        order = [place[row] for row in chain.from_iterable(self.shipped.passes(chunk).rows for chunk in self.shipped.chunks)]
        for first in found:
            together = np.concatenate([first, *(next(found) for _ in self.shipped.chunks[1:])])
            rows = np.empty_like(together)
            rows[order] = together
            yield rows

    def means(self, batches: Iterable[Batch], measure: Measure) -> dict[tuple[Pair, ...], float]:
        """As `Perturbed.means`."""
        return perturbed.means(self.rows, self.displace(batches, measure))


def spread(
    captured: Captured, groups: Sequence[Group], target: ModuleType, bank: WeightBank, workers: Workers
) -> Spread:
    """Each (group, scheme) quantized alone, by the workers; with one of them, in one chunk."""
    shipped = Shipped(captured, groups, target, bank, max(1, min(workers.count, len(groups))))
    return Spread(shipped, workers, tuple((pair,) for pair in perturbed.quantizable(groups)))
