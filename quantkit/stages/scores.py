"""What each (group, scheme) loses, by the chosen sensitivity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from quantkit.runs.workbench import Workbench
from quantkit.sensitivity import SENSITIVITIES, Context, Scores
from quantkit.sensitivity.passes.bound import Passes
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network
from quantkit.stages.groups import schemes_of

if TYPE_CHECKING:
    from quantkit.settings.request import Request

def score_groups(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Scores:
    """The chosen sensitivity, on calibration items."""
    options, items, groups = request.options, request.splits.calibration, candidates.groups
    device, curvature, labelled = torch.device(options.device), request.metric.curvature, request.metric.reference == "labels"
    context = Context(
        Passes(network.on_device, network.target, candidates.bank.to(device), bench.workers), groups, schemes_of(groups), items,
        curvature, labelled, options.seed, device, bench.progress, options.memory_mb,
    )  # fmt: skip
    depends_on = {
        "weights": candidates.key, "sensitivity": options.sensitivity, "seed": options.seed, "metric's curvature": curvature,
        "labels": labelled, "memory_mb": options.memory_mb,
    }  # fmt: skip
    estimate = SENSITIVITIES[options.sensitivity]
    return bench.keep("scores", depends_on, lambda: estimate(context), Scores.from_json)
