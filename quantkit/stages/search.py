"""The search on measured drops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from quantkit.allocation import Plan
from quantkit.allocation.prediction.predictor import Predictor, explain_shortage
from quantkit.allocation.search import MOST_TRIALS, SEARCHES, Measure, Measured, Outlook, SearchResult, Space, TimeIsUp, Trial
from quantkit.core.progress import Advance, expect
from quantkit.core.spec import FLOAT, Allocation
from quantkit.core.statistics import SURE
from quantkit.runs.workbench import Workbench
from quantkit.settings.request import Request
from quantkit.stages.judge import FLOATS, Judge

REPAIRS = 6
OPENING_S = 0.5  # about what writing and opening a candidate takes
TELLING = 0.05  # a confidence that is lower by more is told
ANCHORS = 6  # plans of the front that are measured beside the uniform ones, to learn how drop follows divergence


def search(
    bench: Workbench, request: Request, judge: Judge, predictor: Predictor, space: Space, *, repairs: int = REPAIRS
) -> SearchResult:
    """Every candidate measured on its own file over the search split; what the journal holds is not measured again.

    At most `repairs` of them are for what single groups can still save. The uniform plans are measured too, whatever is predicted of them,
    so that no answer is beaten by one of them unseen. When the time is up, what was measured decides; the float network, which loses
    nothing, is then measured too if nothing else passed.
    """
    trials = MOST_TRIALS[request.options.search](space, repairs)
    most = trials + len(_anchors(judge, space)) + (MOST_TRIALS["pareto"](space, REPAIRS) if space.tie else 0)
    told = f"search: at most {most} candidates on {len(judge.search)} items"
    if FLOATS in bench.computed and not judge.candidates.rounded:  # else nothing says yet how long one takes
        told += f", {most * (bench.seconds[FLOATS] + OPENING_S):.0f} s"
    bench.progress.note(f"{told}, {sum(array.nbytes for array in judge.reference) / 1e6:.0f} MB a candidate")
    with bench.timed("search"):
        with bench.progress.stage("evaluate a few plans", new_anchors(judge, space), "plans") as advance:
            judged, anchors = measure_anchors(bench, judge, space, advance)
        with bench.progress.stage("search", trials, "candidates") as advance:  # until the search itself expects fewer
            counted = _Counted(bench, judge, judged, advance)
            try:
                found = SEARCHES[request.options.search](counted.measure, space, repairs=repairs, outlook=counted)
            except TimeIsUp:  # before the search had begun
                found = space.judged(tuple(Trial(plan, judged(plan.allocation)) for plan in anchors), space.front[-1])
        found = _then_faster(bench, request, judge, judged, predictor, space, found)
        known = _allocations(trial.plan for trial in found.measured)
        late = found.untried is not None
        more = [plan for plan in (anchors if late else uniform_plans(judge, space)) if plan.allocation not in known]
        found = found.extended(space, [Trial(plan, judged(plan.allocation)) for plan in more])
        if late and found.best is None:
            floats = space.plan(space.highest_precision())
            known += _allocations(more)
            found = found.extended(space, [Trial(floats, judged(floats.allocation))] if floats.allocation not in known else [])
        return found


class _Counted(Outlook):
    """What a search measures while there is time, and expects to: of both only plans count that the journal does not hold."""

    def __init__(self, bench: Workbench, judge: Judge, judged: Measure, advance: Advance) -> None:
        self._bench, self._judged, self._advance = bench, judged, advance
        self._known = [allocation for allocation, _ in judge.measured_plans()]
        self._judge = judge

    def measure(self, allocation: Allocation) -> Measured:
        """As a search wants it; raises TimeIsUp."""
        if self._judge.knows(allocation):  # in no time, by which others are not to be estimated
            return self._judged(allocation)
        if self._bench.is_late():
            raise TimeIsUp
        measured = self._judged(allocation)
        self._known.append(allocation)
        self._advance(1)
        return measured

    def expect(self, plans: Sequence[Plan], others: int) -> None:
        """As a search tells it."""
        expect(self._advance, sum(plan.allocation not in self._known for plan in plans) + others)

    def passes(self, plan: Plan) -> bool | None:
        """As the journal tells it."""
        return self._judged(plan.allocation).passes if plan.allocation in self._known else None


def _then_faster(
    bench: Workbench, request: Request, judge: Judge, judged: Measure, predictor: Predictor, space: Space, found: SearchResult
) -> SearchResult:
    """Smallest first, then fastest: the search goes on among the faster of the plans that take nearly as few bytes as the best."""
    if space.tie is None or found.best is None or found.untried is not None:
        return found
    within = [trial for trial in found.measured if trial.measured.passes and not space.excess(trial.plan, trial.measured.figures)]
    smallest = min(within, key=lambda trial: trial.plan.predicted_cost)
    with bench.progress.stage("solve for the front of faster plans"):
        faster = predictor.faster_space(request.options.bounds, smallest.plan, space.tie)
    if faster is None:
        return found
    known = _allocations(trial.plan for trial in found.measured)
    with bench.progress.stage("search among faster plans", MOST_TRIALS["pareto"](faster, REPAIRS), "candidates") as advance:
        counted = _Counted(bench, judge, judged, advance)
        try:
            more = SEARCHES["pareto"](counted.measure, faster, repairs=REPAIRS, outlook=counted).measured
        except TimeIsUp:
            return found
    return found.extended(space, [Trial(space.plan(t.plan.allocation), t.measured) for t in more if t.plan.allocation not in known])


def measure_anchors(
    bench: Workbench, judge: Judge, space: Space, advance: Advance
) -> tuple[Callable[[Allocation], Measured], tuple[Plan, ...]]:
    """The uniform plans and a few of the front, measured while there is time and one at least, and the judgement that they teach.

    `advance(1)` after each that was not known.
    """
    anchors: list[Plan] = []
    wanted = _anchors(judge, space)
    measure_apart(bench, judge, _allocations(wanted), advance)
    for plan in wanted:
        is_known = judge.knows(plan.allocation)
        if not anchors or is_known or not bench.is_late():
            judge.measure(plan.allocation)
            anchors.append(plan)
            if not is_known:
                advance(1)
    return judge.expect(_allocations(anchors)), tuple(anchors)


def new_anchors(judge: Judge, space: Space) -> int:
    """How many plans `measure_anchors` counts, if there is time."""
    return sum(not judge.knows(plan.allocation) for plan in _anchors(judge, space))


def measure_apart(bench: Workbench, judge: Judge, allocations: Sequence[Allocation], advance: Advance) -> None:
    """What workers can measure of the plans, each counted as done when it is; nothing where this process is alone."""
    for _ in judge.measure_apart(allocations, bench.workers, bench.is_late):
        advance(1)


def _anchors(judge: Judge, space: Space) -> list[Plan]:
    """What is measured before anything is decided, each plan once."""
    plans = (*uniform_plans(judge, space), *space.front[:: _stride(space)])
    return list({tuple(plan.allocation.items()): plan for plan in plans}.values())


def _allocations(plans: Iterable[Plan]) -> list[Allocation]:
    return [plan.allocation for plan in plans]


def uniform_plans(judge: Judge, space: Space) -> list[Plan]:
    """The plan of each scheme but float."""
    return [space.plan(judge.candidates.uniform(scheme)) for scheme in space.loss.schemes if scheme != FLOAT]


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
    elif not judge.is_strict and found.best is not None and found.best.measured.figures.get("asked", SURE) < SURE - TELLING:
        notes.append(
            f"{judge.gate_items} gate items tell little of a plan that answers so differently: the search asked to be "
            f"{100 * found.best.measured.figures['asked']:.0f} % sure of this plan; `--confidence {SURE}` asks for more."
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
