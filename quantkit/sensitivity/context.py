"""What an estimator gets (`Context`), what it gives (`Scores`), and what it takes (`Cost`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.core.graph import Graph, Group, Pair
from quantkit.core.progress import Progress
from quantkit.core.spec import FLOAT, Scheme
from quantkit.core.table import Interactions, Table
from quantkit.data.batch import Batch, Items
from quantkit.sensitivity.engine import Engine
from quantkit.sensitivity.passes.batches import cached_batch, network_batches
from quantkit.sensitivity.passes.outputs import Curvature, task_loss

BATCH = 16
MOST_ITEMS = 256
MOST_MACS = 8e11  # of all perturbed passes together: about a minute on two cores
# How often a pass holds the activations of a batch, roughly.
RERUN, RERUN_PAIRS, FIRST_ORDER, SECOND_ORDER = 2, 3, 4, 8


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """The network, its groups, and the calibration items that may be looked at.

    `curvature` is the metric of the output space: "softmax" for class scores, "identity" otherwise. `labelled` says whether the items'
    labels mean anything here; a network that is compared with itself goes by its own answers. `memory_mb` bounds what a pass holds
    of activations and displacements, by smaller batches, down to one item.
    """

    engine: Engine
    groups: tuple[Group, ...]
    schemes: tuple[Scheme, ...]
    items: Items
    curvature: Curvature
    labelled: bool
    seed: int
    device: torch.device
    progress: Progress
    memory_mb: int = 2048

    @property
    def unit(self) -> str:
        """What the damage to the outputs is measured in."""
        return {"softmax": "nats", "identity": "half squared distance"}[self.curvature]

    @property
    def graph(self) -> Graph:
        """The network's layers and tensors."""
        return self.engine.graph

    @property
    def weights(self) -> list[str]:
        """The parameter names of all layers' weights, each once."""
        return sorted({layer.weight for layer in self.graph.layers if layer.weight})

    @property
    def generator(self) -> torch.Generator:
        """A fresh source of what is drawn under the seed, on the CPU so that every device gets the same."""
        return torch.Generator().manual_seed(self.seed)

    def table(self, name: str, score: Callable[[Group, Scheme], float], unit: str | None = None) -> Table:
        """`score` of every (group, scheme); 0 for fp32, nan where a group cannot take the scheme."""
        values = np.full((len(self.groups), len(self.schemes)), np.nan)
        for row, group in enumerate(self.groups):
            for column, scheme in enumerate(self.schemes):
                if scheme in group.schemes:
                    values[row, column] = 0.0 if scheme == FLOAT else score(group, scheme)
        return Table(name, unit or self.unit, tuple(group.name for group in self.groups), self.schemes, values)

    def place(self, group: str, scheme: Scheme) -> int:
        """The row of one (group, scheme) in interactions."""
        return [one.name for one in self.groups].index(group) * len(self.schemes) + self.schemes.index(scheme)

    def interactions(self, matrix: Mapping[tuple[int, int], float]) -> Interactions:
        """The symmetric matrix of these entries, each given once or in both places; 0 elsewhere."""
        size = len(self.groups) * len(self.schemes)
        full = np.zeros((size, size))
        for (row, column), value in matrix.items():
            full[row, column] = full[column, row] = value
        return Interactions(tuple(group.name for group in self.groups), self.schemes, full)

    def batches(self, stage: str, items: Items, size: int) -> Iterator[Batch]:
        """`items` as the network takes them, under a stage that advances."""
        with self.progress.stage(stage, len(items), "items") as advance:
            for batch in network_batches(self.graph, items, size, self.device):
                yield batch
                advance(batch.size)

    def batch_size(self, copies: int, rows: int = 0) -> int:
        """At most BATCH items, of re-runs a `cached_batch`: what `memory_mb` holds of `copies` activations and `rows` displaced outputs."""
        numbers = {tensor.name: prod(side or 1 for side in tensor.shape) for tensor in self.graph.tensors}
        per_item = 4 * copies * sum(numbers.values()) + 12 * rows * sum(numbers.get(name, 0) for name in self.graph.outputs)
        most = cached_batch(self.graph) if copies in (RERUN, RERUN_PAIRS) else BATCH
        return int(max(1, min(most, self.memory_mb * 1_000_000 // max(per_item, 1))))

    def affordable(self, passes: float) -> Items:
        """As many items as MOST_MACS allows at so many passes each, between one batch and MOST_ITEMS."""
        per_item = max(1.0, passes * self.macs)
        return self.items.first(int(min(MOST_ITEMS, max(BATCH, MOST_MACS // per_item))))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one pass of one item."""
        return sum(layer.macs for layer in self.graph.layers)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every (group, scheme) but fp32."""
        return tuple((group.name, scheme) for group in self.groups for scheme in group.schemes if scheme != FLOAT)

    @property
    def reruns(self) -> float:
        """What one pass for every (group, scheme) costs, in whole passes: only what lies behind the group is run."""
        menus = {group.name: sum(scheme != FLOAT for scheme in group.schemes) for group in self.groups}
        return sum(self.graph.share_behind(group) * menus[group.name] for group in self.groups)

    def labels(self, batch: Batch) -> Tensor | None:
        """The batch's labels where they mean anything."""
        return batch.labels if self.labelled else None

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over a batch (`outputs.task_loss`)."""
        return task_loss(self.curvature, self.engine.outputs(batch), self.labels(batch))


@dataclass(frozen=True, slots=True)
class Cost:
    """At most so many passes of one item: forward, backward, and Hessian-vector products; a re-run counts by its share of the whole."""

    forward: float = 0.0
    backward: float = 0.0
    product: float = 0.0

    @property
    def passes(self) -> float:
        """In forward passes, by the rule of thumb that a backward pass takes two and a product four."""
        return self.forward + 2 * self.backward + 4 * self.product

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward, self.product + other.product)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One number for each (group, scheme), and all pairs of them where the method predicts by them.

    `gram` are pairs that came with the same passes and that nothing is predicted by: they tell how far sums over groups can reach.
    """

    table: Table
    interactions: Interactions | None = None
    gram: Interactions | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        pairs = {"interactions": self.interactions, "gram": self.gram}
        return {"table": self.table.to_json(), **{name: value.to_json() if value else None for name, value in pairs.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scores:
        """The inverse of `to_json`."""
        pairs = (Interactions.from_json(data[name]) if data[name] else None for name in ("interactions", "gram"))
        return cls(Table.from_json(data["table"]), *pairs)
