"""The weights of the plan that ships, learned block by block from those that it has."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from quantkit.core.sources import code_of
from quantkit.core.spec import Allocation
from quantkit.core.store import fingerprint
from quantkit.data import Subset
from quantkit.quantization.reconstruction import learned_layers, reconstruct
from quantkit.runs.workbench import Workbench
from quantkit.sensitivity.passes.batches import cached_batch, network_batches
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network
from quantkit.stages.plan_weights import PlanWeights
from quantkit.targets.placement import Placement

MOST_AT_ONCE = 8  # items: a step of the optimizer sees so many at most


def in_blocks(
    bench: Workbench, request: Request, network: Network, candidates: Candidates, items: Subset, plan: Allocation
) -> PlanWeights | None:
    """The plan's weights learned on these items, or None where the plan has none to learn."""
    layers = learned_layers(network.captured, candidates.placement(plan))
    if not layers:
        return None
    device = torch.device(request.options.device)
    start = candidates.weights(plan).to(device)

    def learned(placement: Placement) -> dict[str, NDArray[Any]]:
        size = min(MOST_AT_ONCE, cached_batch(network.captured.graph))
        batches = list(network_batches(network.captured.graph, items, size, device))
        with bench.progress.stage("learn the plan's weights block by block", len(layers), "layers") as advance:
            return reconstruct(
                network.on_device, placement, start, batches, advance, curvature=request.metric.curvature, seed=request.options.seed
            )

    key = fingerprint(candidates.weights_key(plan), "block by block", code_of(__name__), items.fingerprint(), request.options.seed)
    return PlanWeights(learned, candidates.graph, candidates.weights(plan), bench.store, key, plan)
