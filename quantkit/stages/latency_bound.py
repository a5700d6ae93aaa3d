"""--max-latency closed by measurement: where the file that was chosen is slower than asked, the search goes on under a tighter bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from quantkit.allocation import Plan
from quantkit.allocation.search import SearchResult
from quantkit.runs.workbench import Plain, Workbench
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, example_feeds
from quantkit.verification.verify import time_in_turn

TURNS = 3
MARGIN = 1.005  # what a search under the measured excess alone would meet half the time

Found = tuple[SearchResult, Plan]


def keep_latency(
    bench: Workbench, request: Request, network: Network, candidates: Candidates, found: Found,
    again: Callable[[Request, SearchResult], Found | None],
) -> Found:
    """The search's answer once its file is as fast as asked, after TURNS searches at most; the last one where none is.

    `again` searches under another bound, given what was found before, and gives None where no plan is within it.
    """
    asked = request
    for _ in range(TURNS):
        over = _over(bench, request, network, candidates, found[1])
        bound = asked.options.bounds.latency
        if over <= 1 or bound is None:
            break
        share = 1 / (over * MARGIN)
        bounds = replace(asked.options.bounds, latency=replace(bound, value=bound.value * share))
        asked = replace(asked, options=replace(asked.options, bounds=bounds))
        bench.progress.note(f"the file takes {over:.3f} of --max-latency: the search goes on under {share:.3f} of the bound before")
        closer = again(asked, found[0])
        if closer is None:
            break
        found = closer
    return found


def _over(bench: Workbench, request: Request, network: Network, candidates: Candidates, plan: Plan) -> float:
    """The measured time of the plan's file over the bound; 0 where there is no bound, or times mean nothing."""
    bound = request.options.bounds.latency
    if bound is None or not candidates.runtime.TIMES:
        return 0.0

    def timed() -> Plain:
        timing = candidates.timing(request.options.threads, example_feeds(request, network))
        with bench.progress.stage("time the file against --max-latency"), candidates.written(plan.allocation) as mine:
            return Plain(asdict(bench.device.run(time_in_turn, [network.float_file, mine], timing)[1]))

    depends_on = {
        "weights": candidates.weights_key(plan.allocation), "plan": dict(plan.allocation), "threads": request.options.threads,
        **bench.timed_on,
    }  # fmt: skip
    found = bench.keep("bounded_latency", depends_on, timed, Plain).value
    return float(found["ratio"] * found["float_ms"] / bound.at_most(found["float_ms"]))
