"""Candidates: a plan's file, written to be measured, and its loss on the search split."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.search import Measured
from quantkit.core.graph import Graph, Group
from quantkit.core.metric import Metric, Outputs, divergence, unpadded
from quantkit.core.spec import FLOAT, parse_scheme
from quantkit.core.statistics import UNKNOWN_RATE, Expectation, looked_at, noise
from quantkit.core.store import Run, fingerprint
from quantkit.data import KeptBatches, Subset
from quantkit.export.file_size import promised_bytes
from quantkit.export.qdq import Emitted, emit
from quantkit.quantization.weights import WeightBank
from quantkit.runtimes import Feeds, Runtime, Session, find_runtime
from quantkit.runtimes.evaluation import Early, evaluate
from quantkit.stages.plan_weights import PlanWeights
from quantkit.targets.common import uniform
from quantkit.targets.placement import Placement
from quantkit.verification.verify import judge

# Beyond 0.2 nats a network is broken, and says nothing about small losses. A squared distance is what a loss is made of, however large.
NEAR = {"softmax": 0.2, "identity": math.inf}


EARLY = 64  # items that are looked at first
HOPELESS = 2  # times NEAR: then no more are


def first_items(values: Any, count: int) -> Any:
    """Of the first items: of an array, or of several of them."""
    if isinstance(values, tuple):
        return tuple(value[:count] for value in values)
    return None if values is None else values[:count]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Everything a plan needs to become a file; `folder` is for temporary files.

    `key` stands for all that the files follow from, besides the plan. Weights are rounded as the first of `rounded` has it that covers the
    plan, and layer by layer apart (`bank`) where none does.
    """

    float_file: Path
    graph: Graph
    groups: tuple[Group, ...]
    target: ModuleType
    bank: WeightBank
    folder: Path
    key: str
    rounded: tuple[PlanWeights, ...] = ()

    @property
    def apart(self) -> Candidates:
        """The same with all weights rounded apart: files of the same size and time, without the work of rounding for each plan."""
        return replace(self, rounded=())

    def weights_key(self, allocation: Mapping[str, str]) -> str:
        """Under which the run directory keeps the plan's weights."""
        own = self._own_weights(allocation)
        return self.key if own is None else own.key_of(allocation)

    def weights(self, allocation: Mapping[str, str]) -> WeightBank:
        """The plan's weights."""
        own = self._own_weights(allocation)
        return self.bank if own is None else own.of(allocation, self.placement(allocation))

    def _own_weights(self, allocation: Mapping[str, str]) -> PlanWeights | None:
        return next((weights for weights in self.rounded if weights.covers(allocation)), None)

    @property
    def runtime(self) -> Runtime:
        """What runs the target's files."""
        return find_runtime(self.target.NAME)

    def open(self, path: Path, *, threads: int, example: Feeds | None = None) -> Session:
        """A file, the float one too, in the target's runtime with the options that it needs."""
        return self.runtime.open_file(path, threads=threads, options=self.target.SESSION_OPTIONS, example=example)

    def placement(self, allocation: Mapping[str, str]) -> Placement:
        """The target's answer for one scheme per group."""
        layers = {name: parse_scheme(allocation[group.name]) for group in self.groups for name in group.layers}
        placed: Placement = self.target.place(self.graph, layers)
        return placed

    def uniform(self, scheme: str) -> dict[str, str]:
        """Every group under `scheme`, as far as it can take it."""
        return uniform(self.groups, scheme)

    def emit(self, allocation: Mapping[str, str], path: Path | None = None) -> Path:
        """Write the plan's file, by default over the last candidate's."""
        self.emitted(allocation, path or self.folder / "candidate.onnx")
        return path or self.folder / "candidate.onnx"

    def promised_bytes(self, allocation: Mapping[str, str]) -> int | None:
        """What the plan's file will take, by the plan alone; None where the network computes in half, whose Casts are not foreseen."""
        if self.placement(allocation).float32 is not None:
            return None
        plain = self.apart.emit({group.name: FLOAT.name for group in self.groups}).stat().st_size
        return promised_bytes(plain, self.graph, self.placement(allocation), self.target.weight_bytes)

    def emitted(self, allocation: Mapping[str, str], path: Path) -> Emitted:
        """Write the plan's file to `path`; the names of its codes."""
        return emit(self.float_file, self.graph, self.placement(allocation), self.weights(allocation), path)


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Measures candidates on the search split, each once: what the journal holds is not measured again."""

    candidates: Candidates
    store: Run
    key: str
    search: Subset
    labels: Any
    reference: Outputs
    metric: Metric
    budget: float
    gate_items: int
    confidence: float
    batch_size: int
    seed: int
    items: KeptBatches  # those of `search`
    counted: NDArray[np.bool_] | None = None  # which of their tokens are no padding

    def expect(self, anchors: Sequence[Mapping[str, str]]) -> Callable[[Mapping[str, str]], Measured]:
        """How to measure a plan once the anchors are: with their drops and divergences behind the judgement whether it passes."""
        near, told = self.near, self.expectation(anchors)

        def measure(allocation: Mapping[str, str]) -> Measured:
            look = self.measure(allocation)
            expectation = told if look["divergence"] <= near else UNKNOWN_RATE
            chance = expectation.chance_kept(looked_at(look, len(self.search)), look["divergence"], self.gate_items, self.budget)
            return Measured(look["drop"], chance >= self.confidence, {**look, "chance_kept": chance})

        return measure

    def expectation(self, anchors: Sequence[Mapping[str, str]]) -> Expectation:
        """How drop follows divergence, on these plans as far as they are not broken."""
        looks = [look for look in map(self.measure, anchors) if look["divergence"] <= self.near]
        drops, divergences = (np.array([look[key] for look in looks]) for key in ("drop", "divergence"))
        return Expectation.fit(drops, np.array([noise(looked_at(look, len(self.search))) for look in looks]), divergences)

    @property
    def near(self) -> float:
        """The divergence beyond which a network is broken; a finite number."""
        return min(NEAR[self.metric.curvature], sys.float_info.max)

    def settings(self) -> dict[str, Any]:
        """What it takes to judge by the journal alone."""
        return {
            "key": self.key, "metric": self.metric.name, "unit": self.metric.unit, "near": self.near, "search_items": len(self.search),
            "gate_items": self.gate_items, "confidence": self.confidence,
        }  # fmt: skip

    def measured_plans(self) -> list[tuple[dict[str, str], dict[str, float]]]:
        """All that the journal holds of these candidates, each allocation once."""
        own = {r["key"]: r for r in self.store.records() if r["key"] == fingerprint(self.key, r["allocation"])}
        return [(dict(record["allocation"]), dict(record["look"])) for record in own.values()]

    def knows(self, allocation: Mapping[str, str]) -> bool:
        """Whether the journal holds it."""
        return self._recorded(allocation) is not None

    def measure(self, allocation: Mapping[str, str]) -> dict[str, float]:
        """Drop, interval, divergence and bytes on the search split, from the journal or measured now; of a broken network on a few."""
        recorded = self._recorded(allocation)
        if recorded is not None:
            return recorded
        path = self.candidates.emit(allocation)
        session = self.candidates.open(path, threads=0)
        outputs = evaluate(session, self.items, self.batch_size, Early(EARLY, lambda found: self._is_hopeless(self._look(path, found))))
        look = self._look(path, outputs)
        self.store.append({"key": fingerprint(self.key, dict(allocation)), "allocation": dict(allocation), "look": look})
        return look

    def _is_hopeless(self, look: Mapping[str, float]) -> bool:
        """Whether the network is broken and no other item will mend it: drop and divergence both say so."""
        return look["divergence"] > HOPELESS * NEAR[self.metric.curvature] and look["low"] > self.budget

    def _look(self, path: Path, outputs: Outputs) -> dict[str, float]:
        """What is measured of the outputs for the first items."""
        count = len(outputs[0])
        reference, labels, counted = (first_items(values, count) for values in (self.reference, self.labels, self.counted))
        verdict = judge(self.metric, reference, outputs, labels, self.budget, self.seed)
        apart = divergence(unpadded(reference, counted), unpadded(outputs, counted), self.metric.curvature)
        return {
            "items": count,
            "float": verdict.float, "quantized": verdict.quantized, "drop": verdict.drop, "low": verdict.low, "high": verdict.high,
            "divergence": apart, "bytes": float(path.stat().st_size),
        }  # fmt: skip

    def _recorded(self, allocation: Mapping[str, str]) -> dict[str, float] | None:
        """The last that the journal holds; nothing where it was left early under a smaller budget, which says too little now."""
        key = fingerprint(self.key, dict(allocation))
        look = next((dict(record["look"]) for record in reversed(self.store.records()) if record["key"] == key), None)
        is_whole = look is None or look.get("items", len(self.search)) == len(self.search)
        return look if is_whole or self._is_hopeless(look or {}) else None
