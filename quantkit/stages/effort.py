"""What `--effort` buys: weights rounded for their place in a plan, for the plan that ships or for all that the search measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from quantkit.allocation import undominated
from quantkit.allocation.search import Space
from quantkit.core.spec import Allocation
from quantkit.core.store import fingerprint
from quantkit.runs.workbench import Workbench
from quantkit.settings.request import Request
from quantkit.stages.blocks import in_blocks
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network
from quantkit.stages.judge import Judge
from quantkit.stages.plan_weights import PlanWeights
from quantkit.stages.refused import is_all_float
from quantkit.stages.sequence import in_sequence, items_for

BEST = "adaround"  # the rounding of least error, for the plan that ships: some five times the seconds
LEAST_ITEMS, SEARCH_MACS = 64, 4e9  # for each plan of a search: so many items, or as many more as take so many multiply-accumulates


def round_for_search(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Candidates:
    """The candidates with every plan's weights rounded in sequence, if that is asked for."""
    if request.options.chosen_effort == "fast":
        return candidates
    macs = sum(layer.macs for layer in network.captured.graph.layers)
    items = items_for(request, network, max(LEAST_ITEMS, int(SEARCH_MACS / max(macs, 1))))
    return replace(candidates, rounded=(in_sequence(bench, request, network, candidates, items),))


def round_once_more(
    bench: Workbench, request: Request, network: Network, judge: Judge, candidates: Candidates, allocation: Allocation
) -> tuple[Candidates, tuple[str, ...]]:
    """The candidates with the chosen plan's weights rounded in sequence on more items, if that diverges less on the search split.

    With the effort "best", by AdaRound too, and then learned block by block. And what there is to say of it.
    """
    if is_all_float(allocation):
        return candidates, ()
    items, own = items_for(request, network), request.options.rounding
    ways: dict[str, Callable[[Candidates], PlanWeights | None]] = {
        "in sequence, layer by layer": lambda now: in_sequence(bench, request, network, now, items, allocation)
    }
    if request.options.chosen_effort == "best":
        if own != BEST:
            ways[f"in sequence, by {BEST}"] = lambda now: in_sequence(bench, request, network, now, items, allocation, BEST)
        ways["block by block"] = lambda now: in_blocks(bench, request, network, now, items, allocation)
    chosen, chosen_judge, told = candidates, judge, []
    for how, make in ways.items():
        weights = make(chosen)
        if weights is None or any(known.key == weights.key for known in candidates.rounded):
            continue
        tried = replace(candidates, rounded=(weights, *candidates.rounded))
        tried_judge = replace(judge, candidates=tried, key=fingerprint(judge.key, weights.key))
        with bench.timed("rounding"):
            before, after = chosen_judge.measure(allocation), tried_judge.measure(allocation)
        is_better = after["divergence"] < before["divergence"] and after["low"] <= judge.budget
        told.append(
            f"The plan's weights rounded {how}: {'ships' if is_better else 'was no better'} (its divergence on the search split "
            f"{before['divergence']:.3g} before, {after['divergence']:.3g} so)."
        )
        chosen, chosen_judge = (tried, tried_judge) if is_better else (chosen, chosen_judge)
    return chosen, tuple(told)


def forget_dominated(judge: Judge, space: Space, others: Iterable[Allocation], chosen: Allocation) -> None:
    """Removes weights that were rounded for plans that neither are chosen nor lose least for what they cost; `others` were only tested."""
    looked = [replace(space.plan(plan), predicted_loss=look["divergence"]) for plan, look in judge.measured_plans()]
    kept = [chosen, *(plan.allocation for plan in undominated(looked))]
    for weights in judge.candidates.rounded:
        weights.forget(plan for plan in (*(plan.allocation for plan in looked), *others) if plan not in kept)
