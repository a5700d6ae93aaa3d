"""The predictor fitted to measured plans near the budget, and tested on others; the certificate is printed with every plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.allocation import MeasuredLoss, Plan, draw, fit_losses, predicted_loss
from quantkit.allocation.prediction.certificate import Agreement, Certificate, band, beyond_additive
from quantkit.allocation.prediction.predictor import Predictor
from quantkit.allocation.search import Measure, Space
from quantkit.core.progress import Advance, expect
from quantkit.core.spec import Allocation, Scheme
from quantkit.core.store import fingerprint
from quantkit.core.table import Interactions, Table
from quantkit.data import KeptBatches
from quantkit.runs.workbench import Workbench
from quantkit.settings.request import EVERYTHING, Request
from quantkit.stages.judge import Judge
from quantkit.stages.looks import first_items
from quantkit.stages.search import measure_anchors, measure_apart, new_anchors

TRAINED = {"fast": 24, "balanced": 16, "best": 16}  # plans that are fitted to, by effort
ITEMS = 128  # of the search split, for each of these plans: the same ones, so that their noise is shared and ranks stand
WIDTH = 0.05  # how far from the budget's cost these plans may be


def learn(
    bench: Workbench, request: Request, judge: Judge, predictor: Predictor, space: Space
) -> tuple[Predictor, tuple[MeasuredLoss, ...]]:
    """The predictor, its losses fitted to measured plans near the budget and along the front, and these plans.

    Unchanged where none are wanted or time is up.
    """
    if not request.options.tested_plans or bench.is_late():
        return predictor, ()
    with bench.timed("fit"):
        with bench.progress.stage("evaluate a few plans", new_anchors(judge, space), "plans") as advance:
            judged, anchors = measure_anchors(bench, judge, space, advance)
            base, walked = _near_budget(bench, request, judge, space, judged, advance)
        drawn = _drawn(request, predictor, base.allocation, TRAINED[request.options.chosen_effort], ())
        small = _small(judge)
        with bench.progress.stage("fit the predictor", _new(small, drawn), "plans") as advance:
            near = _measured(bench, small, drawn, advance)
        seen = (*near, *((plan.allocation, judge.measure(plan.allocation)["divergence"]) for plan in (*anchors, *walked)))
    return refit(predictor, seen), seen


def refit(predictor: Predictor, seen: Sequence[MeasuredLoss]) -> Predictor:
    """The predictor with its losses fitted to the measured ones."""
    fitted = fit_losses(predictor.loss, predictor.interactions, seen)
    return replace(predictor, loss=fitted.loss, interactions=fitted.interactions)


def certify(
    bench: Workbench,
    request: Request,
    judge: Judge,
    prior: Predictor,
    fitted: Predictor,
    gram: Interactions | None,
    plan: Plan,
    seen: Sequence[MeasuredLoss],
    refits: int,
) -> tuple[Certificate | None, tuple[MeasuredLoss, ...]]:
    """The certificate on plans about `plan` that were not `seen`, and what was measured of them; None where there are too few plans.

    Where the predictor is additive, the `gram` tells what it may miss.
    """
    if not request.options.tested_plans or bench.is_late():
        return None, ()
    small = _small(judge)
    with bench.timed("certificate"):
        drawn = _drawn(request, fitted, plan.allocation, request.options.tested_plans, [allocation for allocation, _ in seen])
        with bench.progress.stage("test the predictor", _new(small, [*drawn, plan.allocation]), "plans") as advance:
            tested = _measured(bench, small, drawn, advance)
            ((_, own),) = _measured(bench, small, [plan.allocation], advance, always=True)
        rate = judge.expectation([allocation for allocation, _ in judge.measured_plans()]).rate
    if len(tested) < 3:
        return None, tested
    plans, measured = [allocation for allocation, _ in tested], [value for _, value in tested]

    def predict(loss: Table, interactions: Interactions | None) -> list[float]:
        return [predicted_loss(loss, interactions, allocation) for allocation in plans]

    predicted, mine = predict(fitted.loss, fitted.interactions), predicted_loss(fitted.loss, fitted.interactions, plan.allocation)
    certificate = Certificate(
        plans=len(tested),
        trained=len(seen),
        items=len(small.search),
        fitted=Agreement.of(predicted, measured),
        additive=Agreement.of(predict(fit_losses(_isolated(prior), None, seen).loss, None), measured),
        prior=Agreement.of(predict(prior.loss, prior.interactions), measured),
        beyond_additive=beyond_additive(fitted.loss, fitted.interactions or gram, plans),
        band=band(predicted, measured),
        predicted=mine,
        measured=own,
        refits=refits,
        predicted_drop=rate * mine,
    )
    return certificate, tested


def certificate_of(certificate: Certificate, plan: Plan, judge: Judge, fitted: Predictor) -> Certificate:
    """The same certificate of another plan near those that were tested: what is predicted of it, and measured on the same items."""
    predicted = predicted_loss(fitted.loss, fitted.interactions, plan.allocation)
    return replace(
        certificate, predicted=predicted, measured=_small(judge).measure(plan.allocation)["divergence"],
        predicted_drop=judge.expectation([allocation for allocation, _ in judge.measured_plans()]).rate * predicted,
    )  # fmt: skip


def _near_budget(
    bench: Workbench, request: Request, judge: Judge, space: Space, judged: Measure, advance: Advance
) -> tuple[Plan, list[Plan]]:
    """The cheapest plan of the front that passes, the dearest where none does, and what was measured to find it; without a promise the
    middle one.

    What is already measured says between which plans it lies; the rest is bisected, so that predictions are fitted where they are needed.
    """
    if request.budget == EVERYTHING:
        return space.front[len(space.front) // 2], []
    passes = [judged(plan.allocation).passes if judge.knows(plan.allocation) else None for plan in space.front]
    high = passes.index(True) if True in passes else len(passes)
    low = max((place + 1 for place in range(high) if passes[place] is False), default=0)
    walked: list[Plan] = []
    while low < high and not bench.is_late():
        expect(advance, (high - low).bit_length())
        middle = (low + high) // 2
        walked.append(space.front[middle])
        low, high = (low, middle) if judged(space.front[middle].allocation).passes else (middle + 1, high)
        advance(1)
    return space.front[min(high, len(space.front) - 1)], walked


def _drawn(
    request: Request, predictor: Predictor, base: Allocation, count: int, seen: Sequence[Allocation]
) -> list[dict[str, Scheme]]:
    cost = predictor.cost(request.options.minimize, request.options.bounds)
    seed = request.options.seed + len(seen)  # others than those of the last draw
    drawn = draw(base, predictor.groups, cost, count=count + len(seen), width=WIDTH, seed=seed)
    return [plan for plan in drawn if plan not in seen][:count]


def _new(judge: Judge, plans: Sequence[Allocation]) -> int:
    """How many plans `_measured` counts, if there is time."""
    return sum(not judge.knows(plan) for plan in plans)


def _measured(
    bench: Workbench, judge: Judge, plans: Sequence[Allocation], advance: Advance, *, always: bool = False
) -> tuple[MeasuredLoss, ...]:
    """Each plan's divergence, `always` or as far as the time reaches; `advance(1)` after each that was not known."""
    measure_apart(bench, judge, plans, advance)
    found: list[MeasuredLoss] = []
    for plan in plans:
        is_known = judge.knows(plan)
        if is_known or always or not bench.is_late():
            found.append((plan, judge.measure(plan)["divergence"]))
            advance(not is_known)
    return tuple(found)


def _small(judge: Judge) -> Judge:
    """The judge on the first ITEMS items of the search split."""
    items = judge.search.first(ITEMS)
    count = len(items)
    return replace(
        judge, search=items, items=KeptBatches(items), labels=first_items(judge.labels, count), counted=first_items(judge.counted, count),
        reference=first_items(judge.reference, count), key=fingerprint(judge.key, "certificate", count),
    )  # fmt: skip


def _isolated(predictor: Predictor) -> Table:
    """What each option is predicted to lose by itself."""
    if predictor.interactions is None:
        return predictor.loss
    own = 0.5 * predictor.interactions.matrix.diagonal().reshape(predictor.loss.values.shape)
    return replace(predictor.loss, values=own + 0 * predictor.loss.values)
