"""What a candidate loses on the search split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.search import Measured
from quantkit.core.environment import describe
from quantkit.core.metric import NO_LABEL, Metric, Outputs, check_budget, unpadded
from quantkit.core.metrics import METRICS
from quantkit.core.sources import code_of
from quantkit.core.spec import Allocation, parse_allocation
from quantkit.core.statistics import EVEN, SURE, UNKNOWN_RATE, Expectation, asked_for, can_be_kept, looked_at, noise
from quantkit.core.store import Run, fingerprint
from quantkit.core.workers import Workers
from quantkit.data import KeptBatches, Subset, check_labels
from quantkit.export.onnx_file import content_digest, has_data, size_bytes
from quantkit.runs.workbench import Workbench
from quantkit.runtimes.evaluation import evaluate
from quantkit.stages.candidates import Candidates
from quantkit.stages.looks import NEAR, Shipped, Standard, look_apart

if TYPE_CHECKING:
    from quantkit.settings.request import Request

FLOATS = "float_on_search"


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
    is_strict: bool  # whether each plan is to be as sure, however little the gate can tell of it
    batch_size: int
    seed: int
    items: KeptBatches  # those of `search`
    counted: NDArray[np.bool_] | None = None  # which of their tokens are no padding

    def expect(self, anchors: Sequence[Allocation]) -> Callable[[Allocation], Measured]:
        """How to measure a plan once the anchors are: with their drops and divergences behind the judgement whether it passes."""
        near, told = self.near, self.expectation(anchors)

        def measure(allocation: Allocation) -> Measured:
            look = self.measure(allocation)
            expectation = told if look["divergence"] <= near else UNKNOWN_RATE
            seen = looked_at(look, len(self.search)), look["divergence"], self.gate_items, self.budget
            chance = expectation.chance_kept(*seen)
            asked = self.confidence if self.is_strict else asked_for(self.confidence, expectation.attainable(*seen))
            return Measured(look["drop"], chance >= asked, {**look, "chance_kept": chance, "asked": asked})

        return measure

    def expectation(self, anchors: Sequence[Allocation]) -> Expectation:
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
            "gate_items": self.gate_items, "confidence": self.confidence, "is_strict": self.is_strict,
        }  # fmt: skip

    def measured_plans(self) -> list[tuple[Allocation, dict[str, float]]]:
        """All that the journal holds of these candidates, each allocation once."""
        own = {r["key"]: r for r in self.store.records() if r["key"] == fingerprint(self.key, r["allocation"])}
        return [(parse_allocation(record["allocation"]), dict(record["look"])) for record in own.values()]

    def knows(self, allocation: Allocation) -> bool:
        """Whether the journal holds it."""
        return self._recorded(allocation) is not None

    def measure(self, allocation: Allocation) -> dict[str, float]:
        """Drop, interval, divergence and bytes on the search split, from the journal or measured now; of a broken network on a few."""
        recorded = self._recorded(allocation)
        if recorded is not None:
            return recorded
        with self.candidates.written(allocation) as path:
            return self._record(allocation, self._standard.look(self.candidates.open(path, threads=0), size_bytes(path)))

    def measure_apart(self, allocations: Sequence[Allocation], workers: Workers, is_late: Callable[[], bool]) -> Iterator[Allocation]:
        """Measures those that the journal does not hold, several at once, and yields each when it is; none where no others compute.

        Their files are written here and sent: workers need none of their own.
        """
        new = [one for place, one in enumerate(allocations) if not self.knows(one) and one not in allocations[:place]]
        standard = self._standard.portable(self.search) if new and workers.count > 1 else None
        if standard is None:
            return
        self.candidates.prepare(new, is_late)
        shipped = Shipped(standard, self.candidates.target.NAME, self.candidates.target.SESSION_OPTIONS)
        sent: list[Allocation] = []

        def files() -> Iterator[bytes]:
            for allocation in new:
                if is_late():
                    return
                with self.candidates.written(allocation) as path:
                    if not has_data(path):  # else it is larger than what is sent
                        sent.append(allocation)
                        yield path.read_bytes()

        for place, look in enumerate(workers.run(look_apart, shipped, files())):
            self._record(sent[place], look)
            yield sent[place]

    @property
    def _standard(self) -> Standard:
        return Standard(self.items, self.reference, self.labels, self.counted, self.metric, self.budget, self.batch_size, self.seed)

    def _record(self, allocation: Allocation, look: dict[str, float]) -> dict[str, float]:
        self.store.append({"key": fingerprint(self.key, dict(allocation)), "allocation": dict(allocation), "look": look})
        return look

    def _recorded(self, allocation: Allocation) -> dict[str, float] | None:
        """The last that the journal holds; nothing where it was left early under a smaller budget, which says too little now."""
        key = fingerprint(self.key, dict(allocation))
        look = next((dict(record["look"]) for record in reversed(self.store.records()) if record["key"] == key), None)
        is_whole = look is None or look.get("items", len(self.search)) == len(self.search)
        return look if is_whole or self._standard.is_hopeless(look or {}) else None


def labels_for(request: Request, subset: Subset, reference: Outputs) -> Any:
    """The subset's labels, checked against the number of classes; None where the metric compares with the float file.

    Our own metrics leave padding out: it has no label, and what the float file makes of it is no reference.
    """
    counted, own = subset.counted(), METRICS.get(request.metric.name) is request.metric
    if request.metric.reference == "float":
        return unpadded(reference, counted, np.nan) if own and counted is not None else None
    labels = subset.labels()
    if labels is not None and np.issubdtype(labels.dtype, np.integer) and request.metric.curvature == "softmax":
        check_labels(labels, reference[0].shape[-1])
        labels = np.where(counted, labels, NO_LABEL) if own and counted is not None and counted.shape == labels.shape else labels
    return labels


def budget_for(request: Request, reference: Outputs, labels: Any) -> float:
    """The budget in the metric's unit, relative to the float file's score where it is given so."""
    truth = reference if request.metric.reference == "float" else labels
    return request.budget.points(request.metric.score(reference, truth))


def _kept_outputs(bench: Workbench, request: Request, candidates: Candidates, subset: Subset, items: KeptBatches) -> Outputs:
    """The float file's answers on the search split, kept in the run directory as arrays in their order; `items` are those of `subset`."""

    def compute() -> Mapping[str, Any]:
        with bench.progress.stage("float file on the search split", len(subset), "items") as advance:
            outputs = evaluate(candidates.open(candidates.float_file, threads=0), items, request.options.batch_size, None, advance)
        return {f"output {place}": output for place, output in enumerate(outputs)}

    depends_on = {
        "float file": content_digest(candidates.float_file), "search data": subset.fingerprint(), "batch_size": request.options.batch_size,
        "target": request.options.target, "processor": describe()["cpu"],
    }  # fmt: skip
    return tuple(bench.keep_arrays(FLOATS, depends_on, compute).values())


def open_judge(bench: Workbench, request: Request, candidates: Candidates) -> Judge:
    """What measures candidates on the search split. The journal's key leaves the promise out: what a plan loses does not hang on it."""
    subset, gate, options = request.splits.search, request.splits.gate, request.options
    items = KeptBatches(subset)
    reference = _kept_outputs(bench, request, candidates, subset, items)
    labels = labels_for(request, subset, reference)
    budget = budget_for(request, reference, labels)
    check_budget(budget, min(len(subset), len(gate)), request.metric.unit)
    confidence, is_strict = options.confidence, options.confidence is not None or options.undecided != "point"
    if confidence is None:
        truth = reference if request.metric.reference == "float" else labels
        values = request.metric.per_item(reference, truth) if request.metric.per_item and options.undecided == "point" else None
        has_margins = request.metric.margins is not None and request.metric.margins(reference, truth) is not None
        confidence = SURE if values is None or can_be_kept(values, len(gate), budget, with_margins=has_margins) else EVEN
    weights = [candidates.key, *(rounded.key for rounded in candidates.rounded)]
    metric = (request.metric.name, request.metric.source)
    key = fingerprint(weights, code_of(__name__), subset.fingerprint(), metric, describe()["isa"], options.seed)
    return Judge(
        candidates, bench.store, key, subset, labels, reference, request.metric, budget, len(gate), confidence, is_strict,
        options.batch_size, options.seed, items, subset.counted(),
    )  # fmt: skip
