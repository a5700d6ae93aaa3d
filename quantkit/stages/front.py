"""The front of predicted loss against cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from quantkit.allocation import Plan
from quantkit.allocation.prediction.predictor import Predictor
from quantkit.allocation.search import Space
from quantkit.runs.workbench import Plain, Workbench

if TYPE_CHECKING:
    from quantkit.settings.request import Request

def find_front(bench: Workbench, request: Request, predictor: Predictor, stage: str = "front") -> Space:
    """The front of predicted loss against cost under the bounds, and the space around it; kept, unless no plan is within the bounds.

    `stage` tells the front of one predictor from that of the same after measurements.
    """
    minimize, bounds = request.options.minimize, request.options.bounds
    solved: list[Space] = []

    def compute() -> Plain:
        with bench.progress.stage("solve for the front"):
            solved.append(predictor.space(minimize, bounds))
        return Plain([] if solved[0].shortage else [plan.to_json() for plan in solved[0].front])

    limits = {name: asdict(bound) for name, bound in bounds.given().items()}
    depends_on = {"scores and costs": predictor.key(), "minimize": minimize, "bounds": limits}
    known = bench.keep(stage, depends_on, compute, Plain).value
    if solved:
        return solved[0]
    return predictor.space(minimize, bounds, known=[Plan.from_json(row) for row in known] or None)
