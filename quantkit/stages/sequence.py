"""Weights rounded in sequence, each layer in the plan's own network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from quantkit.core.sources import code_of
from quantkit.core.spec import Allocation
from quantkit.core.store import fingerprint
from quantkit.data import Batch, Subset
from quantkit.network.captured import Captured
from quantkit.network.portable import Portable
from quantkit.quantization.rounding import ROUNDINGS
from quantkit.quantization.sequential import Arrays, items_within, round_in_sequence, same_until
from quantkit.quantization.weights import WeightBank
from quantkit.runs.workbench import Workbench
from quantkit.sensitivity.passes.batches import cached_batch, network_batches
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network
from quantkit.stages.plan_weights import PlanWeights
from quantkit.targets.placement import Placement

if TYPE_CHECKING:
    from quantkit.settings.request import Request

MOST_ITEMS = 256  # for the plan that ships
MOST_BYTES = 256 << 20  # of codes of earlier plans, which later ones may begin with


@dataclass(frozen=True, slots=True)
class Rounder:
    """What weights are rounded in sequence with, in a form that goes to another process."""

    network: Portable
    bank: WeightBank
    batches: Sequence[Batch]


def rounded_plan(rounder: Rounder, placement: Placement) -> dict[str, NDArray[Any]]:
    """The weights of one plan, in its own network."""
    return round_in_sequence(rounder.network.captured, placement, rounder.bank, rounder.batches, lambda _: None)


def items_for(request: Request, network: Network, most: int = MOST_ITEMS) -> Subset:
    """Calibration items that weights are rounded on: at most so many, as far as their activations fit in the memory that is allowed."""
    return request.splits.calibration.first(min(most, MOST_ITEMS, items_within(network.captured, request.options.memory_mb)))


def in_sequence(
    bench: Workbench,
    request: Request,
    network: Network,
    candidates: Candidates,
    items: Subset,
    only: Allocation | None = None,
    rounding: str | None = None,
) -> PlanWeights:
    """Weights of any plan, or of the `only` one, rounded in sequence on these items, by `rounding` if it is not the request's."""
    device = torch.device(request.options.device)
    own = request.options.rounding
    bank = candidates.bank.by(ROUNDINGS[rounding or own]).to(device)

    @cache
    def batches() -> list[Batch]:
        return list(network_batches(network.captured.graph, items, cached_batch(network.captured.graph), device))

    earlier: list[tuple[Placement, Arrays]] = []

    def rounded(placement: Placement) -> dict[str, NDArray[Any]]:
        known = _known(network.captured, placement, earlier)
        found = round_in_sequence(network.on_device, placement, bank, batches(), lambda _: None, known)
        earlier.append((placement, found))
        while sum(array.nbytes for _, arrays in earlier for array in arrays.values()) > MOST_BYTES:
            del earlier[0]
        return found

    def rounded_apart(placements: Sequence[Placement]) -> Iterator[dict[str, NDArray[Any]]]:
        return bench.workers.run(rounded_plan, Rounder(Portable(network.captured), bank, batches()), placements)

    several = rounded_apart if bench.workers.count > 1 else None  # else plans are rounded one by one, each from where it is like another
    key = fingerprint(candidates.key, "in sequence", code_of(__name__), items.fingerprint(), rounding or own)
    return PlanWeights(rounded, candidates.graph, candidates.bank, bench.store, key, only, several)


def _known(captured: Captured, placement: Placement, earlier: Sequence[tuple[Placement, Arrays]]) -> dict[str, Arrays]:
    """By layer, what came of the layers that an earlier plan begins with as this one does; of the plan that shares most."""
    names: tuple[str, ...] = ()
    given: Arrays = {}
    for other, arrays in earlier:
        same = same_until(captured, placement, other)
        names, given = (same, arrays) if len(same) > len(names) else (names, given)
    own = {name: {key: array for key, array in given.items() if key.startswith(f"{name} ")} for name in names}
    return {name: arrays for name, arrays in own.items() if arrays}
