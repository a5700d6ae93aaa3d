"""Candidates: a plan's file, written for a look at it, and what it loses on the search split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from quantkit.data import Subset
from quantkit.evaluation import evaluate, open_session
from quantkit.export.qdq import Emitted, emit
from quantkit.graph import Graph, Group
from quantkit.metric import Metric, Outputs
from quantkit.quantization import WeightBank
from quantkit.search import Measured
from quantkit.spec import parse_scheme
from quantkit.statistics import likely_kept
from quantkit.store import Run, fingerprint
from quantkit.targets.placement import Placement
from quantkit.verify import judge


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Everything a plan needs to become a file and a number. `key` stands for all of it in the journal."""

    float_file: Path
    graph: Graph
    groups: tuple[Group, ...]
    target: ModuleType
    bank: WeightBank
    folder: Path

    def placement(self, allocation: Mapping[str, str]) -> Placement:
        """The target's answer for one scheme per group."""
        layers = {name: parse_scheme(allocation[group.name]) for group in self.groups for name in group.layers}
        placed: Placement = self.target.place(self.graph, layers)
        return placed

    def uniform(self, scheme: str) -> dict[str, str]:
        """Every group under `scheme`, or under the last of its menu where it cannot take it."""
        return {group.name: scheme if scheme in group.schemes else group.schemes[-1] for group in self.groups}

    def emit(self, allocation: Mapping[str, str], path: Path | None = None) -> Path:
        """Write the plan's file, by default over the last candidate's."""
        self.emitted(allocation, path or self.folder / "candidate.onnx")
        return path or self.folder / "candidate.onnx"

    def emitted(self, allocation: Mapping[str, str], path: Path) -> Emitted:
        """Write the plan's file to `path`; the names of its codes."""
        return emit(self.float_file, self.graph, self.placement(allocation), self.bank, path)


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
    batch_size: int
    seed: int

    def measure(self, allocation: Mapping[str, str]) -> Measured:
        """The drop on the search split, and whether the gate will likely keep the promise."""
        record_key = fingerprint(self.key, dict(allocation))
        for record in self.store.records():
            if record["key"] == record_key:
                return Measured.from_json(record["measured"])
        path = self.candidates.emit(allocation)
        session = open_session(path, threads=0, options=self.candidates.target.SESSION_OPTIONS)
        outputs = evaluate(session, self.search, self.batch_size)
        verdict = judge(self.metric, self.reference, outputs, self.labels, self.budget, self.seed)
        passes = likely_kept(verdict, self.gate_items, self.budget)
        measured = Measured(verdict.drop, passes, {"low": verdict.low, "high": verdict.high, "bytes": float(path.stat().st_size)})
        self.store.append({"key": record_key, "allocation": dict(allocation), "measured": measured.to_json()})
        return measured
