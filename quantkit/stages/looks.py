"""What is seen of a candidate on the search split: the file, evaluated here or by a worker that it is sent to."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.core.metric import Metric, Outputs, divergence, unpadded
from quantkit.core.metrics import METRICS
from quantkit.data import KeptBatches, Subset, collect, whole
from quantkit.data.splits import KEPT_BYTES
from quantkit.runtimes import Session, find_runtime
from quantkit.runtimes.evaluation import Early, evaluate
from quantkit.verification.verify import judge

# Beyond 0.2 nats a network is broken, and says nothing about small losses. A squared distance is what a loss is made of, however large.
NEAR = {"softmax": 0.2, "identity": math.inf}
EARLY = 64  # items that are looked at first
HOPELESS = 2  # times NEAR: then no more are


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """What a file's answers are held against: the items, the float file's answers for them, and what they count for."""

    items: KeptBatches
    reference: Outputs
    labels: Any
    counted: Any
    metric: Metric
    budget: float
    batch_size: int
    seed: int

    def look(self, session: Session, size_bytes: int) -> dict[str, float]:
        """Drop, interval, divergence and bytes; of a broken network on a few items."""
        early = Early(EARLY, lambda found: self.is_hopeless(self._seen(found, size_bytes)))
        return self._seen(evaluate(session, self.items, self.batch_size, early), size_bytes)

    def is_hopeless(self, look: Mapping[str, float]) -> bool:
        """Whether the network is broken and no other item will mend it: drop and divergence both say so."""
        return look["divergence"] > HOPELESS * NEAR[self.metric.curvature] and look["low"] > self.budget

    def _seen(self, outputs: Outputs, size_bytes: int) -> dict[str, float]:
        """What is measured of the outputs for the first items."""
        count = len(outputs[0])
        reference, labels, counted = (first_items(values, count) for values in (self.reference, self.labels, self.counted))
        verdict = judge(self.metric, reference, outputs, labels, self.budget, self.seed)
        apart = divergence(unpadded(reference, counted), unpadded(outputs, counted), self.metric.curvature)
        return {
            "items": count,
            "float": verdict.float, "quantized": verdict.quantized, "drop": verdict.drop, "low": verdict.low, "high": verdict.high,
            "divergence": apart, "bytes": float(size_bytes),
        }  # fmt: skip

    def portable(self, search: Subset) -> Standard | None:
        """The same with the items of `search` as arrays, which need nothing of the machine that they came from; None where these are
        too many, or where the metric is the user's own, whose code workers need not have.
        """
        one = sum(value.nbytes for value in search.item(0).inputs.values())
        if METRICS.get(self.metric.name) is not self.metric or one * len(search) > KEPT_BYTES:
            return None
        return replace(self, items=KeptBatches(whole(collect(search.batches(self.batch_size)))))


@dataclass(frozen=True, slots=True, eq=False)
class Shipped:
    """What a worker needs to look at files: the standard, and how they are opened."""

    standard: Standard
    target: str
    options: Mapping[str, str]


def look_apart(shipped: Shipped, content: bytes) -> dict[str, float]:
    """At a worker: the look of a file of that `content`, on one thread."""
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        path = Path(folder) / "candidate.onnx"
        path.write_bytes(content)
        session = find_runtime(shipped.target).open_file(path, threads=1, options=shipped.options)
        return shipped.standard.look(session, len(content))


def first_items(values: Any, count: int) -> Any:
    """Of the first items: of an array, or of several of them."""
    if isinstance(values, tuple):
        return tuple(value[:count] for value in values)
    return None if values is None else values[:count]
