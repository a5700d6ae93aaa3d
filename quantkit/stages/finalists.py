"""The choice among the plans that passed, timed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation import Plan
from quantkit.allocation.costs.timing import interleave
from quantkit.allocation.search import SearchResult, Space
from quantkit.core.ratios import ratio_interval
from quantkit.core.spec import Allocation
from quantkit.runs.workbench import Plain, Workbench
from quantkit.runtimes.timing import Timing
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, example_feeds

if TYPE_CHECKING:
    from quantkit.settings.request import Request
    from quantkit.stages.costs import Costs

TIMED = ("latency", "bytes")  # what is minimised where finalists are timed
FINALISTS = 4  # passing plans of nearly the least predicted latency, which are timed against each other
NEARLY = 1.08
ROUNDS = 60


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
        timing = candidates.timing(request.options.threads, example_feeds(request, network))
        with bench.progress.stage("time the finalists"), ExitStack() as stack:
            files = [stack.enter_context(candidates.written(plan.allocation)) for plan in finalists]
            return Plain(bench.device.run(rounds_ms, files, timing))

    depends_on = {
        "weights": candidates.key, "plans": [dict(plan.allocation) for plan in finalists], "threads": request.options.threads,
        **bench.timed_on,
    }  # fmt: skip
    times = np.array(bench.keep("finalists", depends_on, timed, Plain).value)
    return fastest(finalists, times, uniform)


def rounds_ms(paths: Sequence[Path], _: Path, timing: Timing) -> list[list[float]]:
    """A task of a `Device`: milliseconds of each file in each round, interleaved."""
    found: list[list[float]] = interleave([timing.open(path) for path in paths], timing.feeds, rounds=ROUNDS).tolist()
    return found


def fastest(plans: Sequence[Plan], times_ms: NDArray[np.float64], uniform: Sequence[Allocation]) -> Plan:
    """The plan of the least median time, `times_ms` being of shape [plans, rounds], interleaved; of those that tie with it, the simplest.

    Two plans tie where the 95 % interval of their times' ratio reaches 1. A uniform plan is the simplest, then the one of fewest schemes,
    then the one that stands first.
    """
    least = times_ms[np.median(times_ms, axis=1).argmin()]
    tied = [plan for plan, row in zip(plans, times_ms, strict=True) if ratio_interval(row, least)[1] <= 1]
    return min(tied, key=lambda plan: (plan.allocation not in uniform, len(set(plan.allocation.values()))))
