"""The search on measured drops, and the choice among the plans that passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation import Plan
from quantkit.allocation.costs.timing import interleave
from quantkit.allocation.prediction.predictor import Predictor, explain_shortage
from quantkit.allocation.search import SEARCHES, Measure, Measured, SearchResult, Space, TimeIsUp, Trial
from quantkit.core.environment import describe
from quantkit.core.metric import METRICS, NO_LABEL, Outputs, check_budget, unpadded
from quantkit.core.spec import FLOAT
from quantkit.core.statistics import can_be_kept, ratio_interval
from quantkit.core.store import fingerprint
from quantkit.data import KeptBatches, Subset, check_labels
from quantkit.runs.workbench import Plain, Workbench
from quantkit.runtimes.evaluation import evaluate
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates, Judge
from quantkit.stages.network import Network, example_feeds
from quantkit.stages.scores_and_costs import Costs

REPAIRS = 6
TIMED = ("latency", "bytes")  # what is minimised where finalists are timed
FINALISTS = 4  # passing plans of nearly the least predicted latency, which are timed against each other
NEARLY = 1.08
ROUNDS = 60
EXPECTED_CANDIDATES = 25
FLOATS = "float_on_search"
# How sure a search must be of a promise that the gate can prove; and of one that it cannot, so that the measured drop decides.
SURE, EVEN = 0.85, 0.5
ANCHORS = 6  # plans of the front that are measured beside the uniform ones, to learn how drop follows divergence


def search(bench: Workbench, request: Request, judge: Judge, predictor: Predictor, space: Space) -> SearchResult:
    """Every candidate measured on its own file over the search split; what the journal holds is not measured again.

    The uniform plans are measured too, whatever is predicted of them, so that no answer is beaten by one of them unseen. When the time is
    up, what was measured decides; the float network, which loses nothing, is then measured too if nothing else passed.
    """
    with bench.timed("search"), bench.progress.stage("search", EXPECTED_CANDIDATES, "candidates") as advance:
        judged, anchors = measure_anchors(bench, judge, space, advance)

        def look(allocation: Mapping[str, str]) -> Measured:
            measured = judged(allocation)
            advance(1)
            return measured

        def measure(allocation: Mapping[str, str]) -> Measured:
            if bench.is_late() and not judge.knows(allocation):
                raise TimeIsUp
            return look(allocation)

        try:
            found = SEARCHES[request.options.search](measure, space, repairs=REPAIRS)
        except TimeIsUp:  # before the search had begun
            found = space.judged(tuple(Trial(plan, look(plan.allocation)) for plan in anchors), space.front[-1])
        found = _then_faster(request, measure, predictor, space, found)
        known = [trial.plan.allocation for trial in found.measured]
        late = found.untried is not None
        more = [plan for plan in (anchors if late else uniform_plans(judge, space)) if plan.allocation not in known]
        found = found.extended(space, [Trial(plan, look(plan.allocation)) for plan in more])
        if late and found.best is None:
            floats = space.plan(space.highest_precision())
            known += [plan.allocation for plan in more]
            found = found.extended(space, [Trial(floats, look(floats.allocation))] if floats.allocation not in known else [])
        return found


def _then_faster(request: Request, measure: Measure, predictor: Predictor, space: Space, found: SearchResult) -> SearchResult:
    """Smallest first, then fastest: the search goes on among the faster of the plans that take nearly as few bytes as the best."""
    if space.tie is None or found.best is None or found.untried is not None:
        return found
    within = [trial for trial in found.measured if trial.measured.passes and not space.excess(trial.plan, trial.measured.figures)]
    smallest = min(within, key=lambda trial: trial.plan.predicted_cost)
    faster = predictor.faster_space(request.options.bounds, smallest.plan, space.tie)
    if faster is None:
        return found
    known = [trial.plan.allocation for trial in found.measured]
    try:
        more = SEARCHES["pareto"](measure, faster, repairs=REPAIRS).measured
    except TimeIsUp:
        return found
    return found.extended(space, [Trial(space.plan(t.plan.allocation), t.measured) for t in more if t.plan.allocation not in known])


def measure_anchors(
    bench: Workbench, judge: Judge, space: Space, advance: Callable[[int], None]
) -> tuple[Callable[[Mapping[str, str]], Measured], tuple[Plan, ...]]:
    """The uniform plans and a few of the front, measured while there is time and one at least, and the judgement that they teach."""
    wanted = {tuple(plan.allocation.items()): plan for plan in (*uniform_plans(judge, space), *space.front[:: _stride(space)])}
    anchors: list[Plan] = []
    for plan in wanted.values():
        if not anchors or judge.knows(plan.allocation) or not bench.is_late():
            judge.measure(plan.allocation)
            anchors.append(plan)
            advance(1)
    return judge.expect([plan.allocation for plan in anchors]), tuple(anchors)


def uniform_plans(judge: Judge, space: Space) -> list[Plan]:
    """The plan of each scheme but float."""
    return [space.plan(judge.candidates.uniform(scheme)) for scheme in space.loss.schemes if scheme != FLOAT.name]


def _stride(space: Space) -> int:
    return max(1, len(space.front) // ANCHORS)


def explain(request: Request, judge: Judge, space: Space, found: SearchResult) -> tuple[str, ...]:
    """What binds where nothing is good enough, what would relax it, and what more time would try."""
    notes = []
    if request.options.confidence is None and judge.confidence < SURE:
        notes.append(
            f"{judge.gate_items} gate items cannot prove a drop of at most {judge.budget:.2f}, even if no answer changed: the measured "
            f"drop decides, and the search asked to be {100 * judge.confidence:.0f} % sure of it; `--confidence {SURE}` asks for more."
        )
    if space.shortage:
        notes.append(f"{explain_shortage(space)} The nearest plan is written; larger bounds, or narrower --schemes, would relax it.")
    elif found.best is None:
        within, relax = ("within the bounds ", ", larger bounds") if space.limits else ("", "")
        notes.append(
            f"No plan {within}kept the promise on the search split with a margin; this is the nearest of {len(found.measured)}, "
            f"which lost {found.nearest.measured.drop:.2f} there. The accuracy budget binds: a larger --max-drop{relax} or more search "
            "items relax it."
        )
    if found.untried is not None:
        cost = f"{found.untried.predicted_cost:.4g} {space.cost.unit}"
        notes.append(
            f"The time limit was reached after {len(found.measured)} candidates. More time would next measure a plan of {cost} "
            f"with a predicted loss of {found.untried.predicted_loss:.3g}, and continue --search {request.options.search} from there."
        )
    return tuple(notes)


def choose(
    bench: Workbench, request: Request, network: Network, candidates: Candidates, space: Space, found: SearchResult, costs: Costs
) -> Plan:
    """The best plan; of those that are predicted nearly as fast, and where bytes are minimised take nearly as few, the fastest.

    They are timed side by side, and with them the uniform plans that passed within the bounds, whatever is predicted.
    """
    if found.best is None or request.options.minimize not in TIMED or not candidates.runtime.TIMES:
        return found.nearest.plan
    limit = costs.latency.predicted_ms(found.best.plan.allocation) * NEARLY
    within = [trial for trial in found.measured if trial.measured.passes and not space.excess(trial.plan, trial.measured.figures)]
    passing = [trial.plan for trial in (space.tie.near(within) if space.tie else within)]
    close = [plan for plan in passing if costs.latency.predicted_ms(plan.allocation) <= limit]
    finalists = sorted(close, key=lambda plan: costs.latency.predicted_ms(plan.allocation))[:FINALISTS]
    uniform = [candidates.uniform(scheme) for scheme in costs.sizes.schemes]
    finalists += [plan for plan in passing if plan.allocation in uniform and plan not in finalists]

    def timed() -> Plain:
        with bench.progress.stage("time the finalists"):
            files = [candidates.emit(plan.allocation, candidates.folder / f"finalist-{place}.onnx") for place, plan in enumerate(finalists)]
            example = example_feeds(request, network)
            sessions = [candidates.open(path, threads=request.options.threads, example=example) for path in files]
            return Plain(interleave(sessions, example, rounds=ROUNDS).tolist())

    host = describe()
    depends_on = {
        "weights": candidates.key, "plans": [dict(plan.allocation) for plan in finalists], "threads": request.options.threads,
        "processor": host["cpu"], "integer instructions": host["isa"],
    }  # fmt: skip
    times = np.array(bench.keep("finalists", depends_on, timed, Plain).value)
    return fastest(finalists, times, uniform)


def fastest(plans: Sequence[Plan], times_ms: NDArray[np.float64], uniform: Sequence[Mapping[str, str]]) -> Plan:
    """The plan of the least median time, `times_ms` being of shape [plans, rounds], interleaved; of those that tie with it, the simplest.

    Two plans tie where the 95 % interval of their times' ratio reaches 1. A uniform plan is the simplest, then the one of fewest schemes,
    then the one that stands first.
    """
    least = times_ms[np.median(times_ms, axis=1).argmin()]
    tied = [plan for plan, row in zip(plans, times_ms, strict=True) if ratio_interval(row, least)[1] <= 1]
    return min(tied, key=lambda plan: (plan.allocation not in uniform, len(set(plan.allocation.values()))))


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


def float_outputs(request: Request, candidates: Candidates, subset: Subset | KeptBatches) -> Outputs:
    """The float file's answers."""
    return evaluate(candidates.open(candidates.float_file, threads=0), subset, request.options.batch_size)


def _kept_outputs(bench: Workbench, request: Request, candidates: Candidates, subset: Subset) -> Outputs:
    """The float file's answers on the search split, kept in the run directory as arrays in their order."""

    def compute() -> Mapping[str, Any]:
        with bench.progress.stage("float file on the search split"):
            outputs = float_outputs(request, candidates, subset)
        return {f"output {place}": output for place, output in enumerate(outputs)}

    depends_on = {
        "float file": candidates.float_file.read_bytes(), "search data": subset.fingerprint(), "batch_size": request.options.batch_size,
        "target": request.options.target, "processor": describe()["cpu"],
    }  # fmt: skip
    return tuple(bench.keep_arrays(FLOATS, depends_on, compute).values())


def open_judge(bench: Workbench, request: Request, candidates: Candidates) -> Judge:
    """What measures candidates on the search split. The journal's key leaves the promise out: what a plan loses does not hang on it."""
    subset, gate, options = request.splits.search, request.splits.gate, request.options
    reference = _kept_outputs(bench, request, candidates, subset)
    labels = labels_for(request, subset, reference)
    budget = budget_for(request, reference, labels)
    check_budget(budget, min(len(subset), len(gate)), request.metric.unit)
    confidence = options.confidence
    if confidence is None:
        truth = reference if request.metric.reference == "float" else labels
        values = request.metric.per_item(reference, truth) if request.metric.per_item and options.undecided == "point" else None
        has_margins = request.metric.margins is not None and request.metric.margins(reference, truth) is not None
        confidence = SURE if values is None or can_be_kept(values, len(gate), budget, with_margins=has_margins) else EVEN
    weights = [candidates.key, *(rounded.key for rounded in candidates.rounded)]
    key = fingerprint(weights, subset.fingerprint(), request.metric.name, request.metric.source, describe()["isa"], options.seed)
    megabytes = sum(array.nbytes for array in reference) / 1e6
    told = f"search: about {EXPECTED_CANDIDATES} candidates on {len(subset)} items"
    if FLOATS in bench.computed:  # else it was found, and says nothing of how long a candidate takes
        told += f", {EXPECTED_CANDIDATES * (bench.seconds[FLOATS] + 0.5):.0f} s"
    bench.progress.note(f"{told}, {megabytes:.0f} MB a candidate")
    return Judge(
        candidates, bench.store, key, subset, labels, reference, request.metric, budget, len(gate), confidence,
        options.batch_size, options.seed, KeptBatches(subset), subset.counted(),
    )  # fmt: skip
