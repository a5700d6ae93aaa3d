"""The search on measured drops, and the choice among the plans that passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantkit.allocation import Plan
from quantkit.candidates import Candidates, Judge
from quantkit.data import Subset, check_labels
from quantkit.environment import describe
from quantkit.evaluation import evaluate
from quantkit.latency.timing import interleave
from quantkit.metric import Outputs, check_budget
from quantkit.request import Request
from quantkit.search import SEARCHES, Measured, SearchResult, Space, Trial
from quantkit.spec import FLOAT
from quantkit.stages.network import Network, example_feeds
from quantkit.stages.tables import Costs
from quantkit.store import fingerprint
from quantkit.workbench import Workbench

REPAIRS = 6
FINALISTS = 4  # passing plans of nearly the least predicted latency, which are timed against each other
NEARLY = 1.08
ROUNDS = 60
EXPECTED_CANDIDATES = 25
ANCHORS = 6  # plans of the front that are measured beside the uniform ones, to learn how drop follows divergence


def search(bench: Workbench, request: Request, candidates: Candidates, space: Space) -> SearchResult:
    """Every candidate measured on its own file over the search split; what the journal holds is not measured again.

    The uniform plans are measured too, whatever is predicted of them, so that no answer is beaten by one of them unseen.
    """
    judge = _open(bench, request, candidates)
    uniform = [space.plan(candidates.uniform(scheme)) for scheme in space.loss.schemes if scheme != FLOAT.name]
    spaced = space.front[:: max(1, len(space.front) // ANCHORS)]
    with bench.timed("search"), bench.progress.stage("search", EXPECTED_CANDIDATES, "candidates") as advance:
        judged = judge.expect([plan.allocation for plan in (*uniform, *spaced)])
        advance(len(uniform) + len(spaced))

        def measure(allocation: Mapping[str, str]) -> Measured:
            measured = judged(allocation)
            advance(1)
            return measured

        found = SEARCHES[request.options.search](measure, space, repairs=REPAIRS)
        known = [trial.plan.allocation for trial in found.measured]
        return found.extended([Trial(plan, measure(plan.allocation)) for plan in uniform if plan.allocation not in known])


def choose(bench: Workbench, request: Request, network: Network, candidates: Candidates, found: SearchResult, costs: Costs) -> Plan:
    """The best plan; where latency is minimised, the fastest of those that are predicted nearly as fast, timed side by side.

    The uniform plans that passed are timed with them, whatever is predicted.
    """
    if found.best is None or request.options.minimize != "latency" or not candidates.runtime.TIMES:
        return found.nearest.plan
    limit = costs.latency.predicted_ms(found.best.plan.allocation) * NEARLY
    passing = [trial.plan for trial in found.measured if trial.measured.passes]
    close = [plan for plan in passing if costs.latency.predicted_ms(plan.allocation) <= limit]
    finalists = sorted(close, key=lambda plan: plan.predicted_cost)[:FINALISTS]
    uniform = [candidates.uniform(scheme) for scheme in costs.table.schemes]
    finalists += [plan for plan in passing if plan.allocation in uniform and plan not in finalists]
    with bench.timed("finalists", "time the finalists"):
        files = [candidates.emit(plan.allocation, candidates.folder / f"finalist-{place}.onnx") for place, plan in enumerate(finalists)]
        example = example_feeds(request, network)
        sessions = [candidates.open(path, threads=request.options.threads, example=example) for path in files]
        times = np.median(interleave(sessions, example, rounds=ROUNDS), axis=1)
    return finalists[int(times.argmin())]


def labels_for(request: Request, subset: Subset, reference: Outputs) -> Any:
    """The subset's labels, checked against the number of classes; None where the metric compares with the float file."""
    if request.metric.reference == "float":
        return None
    labels = subset.labels()
    if labels is not None and np.issubdtype(labels.dtype, np.integer) and request.metric.curvature == "softmax":
        check_labels(labels, reference[0].shape[-1])
    return labels


def budget_for(request: Request, reference: Outputs, labels: Any) -> float:
    """The budget in the metric's unit, relative to the float file's score where it was said so."""
    truth = reference if request.metric.reference == "float" else labels
    return request.budget.points(request.metric.score(reference, truth))


def float_outputs(request: Request, candidates: Candidates, subset: Subset) -> Outputs:
    """The float file's answers."""
    return evaluate(candidates.open(candidates.float_file, threads=0), subset, request.options.batch_size)


def _open(bench: Workbench, request: Request, candidates: Candidates) -> Judge:
    subset, gate, options = request.splits.search, request.splits.gate, request.options
    with bench.timed("float on the search split", "float file on the search split"):
        reference = float_outputs(request, candidates, subset)
    labels = labels_for(request, subset, reference)
    budget = budget_for(request, reference, labels)
    check_budget(budget, min(len(subset), len(gate)), request.metric.unit)
    key = fingerprint(
        candidates.key, subset.fingerprint(), len(gate), request.metric.name, request.metric.source, budget,
        describe()["isa"], options.seed,
    )  # fmt: skip
    seconds = EXPECTED_CANDIDATES * (bench.seconds["float on the search split"] + 0.5)
    megabytes = sum(array.nbytes for array in reference) / 1e6
    bench.progress.note(
        f"search: about {EXPECTED_CANDIDATES} candidates on {len(subset)} items, {seconds:.0f} s, {megabytes:.0f} MB a candidate"
    )
    return Judge(
        candidates, bench.store, key, subset, labels, reference, request.metric, budget, len(gate), options.confidence,
        options.batch_size, options.seed,
    )  # fmt: skip
