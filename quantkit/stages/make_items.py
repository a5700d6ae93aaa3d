"""Where no data was given: items distilled from the network's batch norms, kept in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray

from quantkit.calibration.distillation import STEPS, distill, find_norms
from quantkit.core.errors import DataError
from quantkit.core.sources import code_of
from quantkit.data import Distilled, Splits, Subset
from quantkit.network.capture import unfolded
from quantkit.runs.workbench import Workbench
from quantkit.settings.request import NO_NORMS, Request
from quantkit.stages.capture import network_of

DISTILLED = "distilled_items"
WARNING = (
    "NO DATA WAS GIVEN: {count} items were made of the network's batch norms, and the promise is of equal answers on these, not on real "
    "ones, where more may be lost. Pass --data PATH to promise a drop on labelled items."
)


def is_distilled(request: Request) -> bool:
    """Whether there was no data, so that items are made."""
    return isinstance(request.splits.gate.dataset, Distilled)


def make_items(bench: Workbench, request: Request) -> Request:
    """The request with its items, which are made now where there was no data. Raises DataError for a network without batch norm."""
    items = request.splits.gate.dataset
    if not isinstance(items, Distilled):
        return request

    def compute() -> Mapping[str, NDArray[Any]]:
        module = unfolded(network_of(request.model), request.example or {}).to(torch.device(request.options.device))
        if not find_norms(module):
            raise DataError(*NO_NORMS)
        with bench.progress.stage("distill items", len(items) * STEPS, "item steps") as advance:
            return {"items": distill(module, items.shape, len(items), seed=items.seed, advance=advance, steps=STEPS).cpu().numpy()}

    bench.progress.note(WARNING.format(count=len(items)))
    values = bench.keep_arrays(DISTILLED, {"network": request.model.digest, "items": items.describe(), "steps": STEPS}, compute)
    made = replace(items, values=torch.from_numpy(values["items"]), code=code_of(distill.__module__))
    splits = request.splits
    parts = (Subset(made, part.indices) for part in (splits.calibration, splits.search, splits.gate))
    return replace(request, splits=Splits(*parts))
