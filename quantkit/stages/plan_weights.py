"""Weights rounded for one plan, in its own network, and kept in the run directory: codes and biases by layer, once a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from quantkit.core.graph import Graph
from quantkit.core.run_files import PLAN_WEIGHTS, plan_weights_key
from quantkit.core.spec import Allocation
from quantkit.core.store import Run
from quantkit.quantization.weights import WeightBank
from quantkit.targets.placement import Placement

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class PlanWeights:
    """What `round` makes of a placement, for all plans or for the one that is `only` meant; `key` stands for all that it depends on.

    `several` rounds many placements at once, in their order; None where that gains nothing.
    """

    round: Callable[[Placement], dict[str, NDArray[Any]]]
    graph: Graph
    bank: WeightBank
    store: Run
    key: str
    only: Allocation | None = None
    several: Callable[[Sequence[Placement]], Iterator[dict[str, NDArray[Any]]]] | None = None

    def covers(self, allocation: Allocation) -> bool:
        """Whether the plan's weights are rounded so."""
        return self.only is None or dict(self.only) == dict(allocation)

    def key_of(self, allocation: Allocation) -> str:
        """Under which the plan's weights are kept."""
        return plan_weights_key(self.key, allocation)

    def of(self, allocation: Allocation, placement: Placement) -> WeightBank:
        """The bank with the plan's weights, from the run directory or rounded now."""
        key = self.key_of(allocation)
        arrays: Arrays | None = self.store.get_arrays(PLAN_WEIGHTS, key)
        if arrays is None:
            arrays = self._kept(key, placement, self.round(placement))
        return self.bank.changed(dict(arrays))

    def prepare(self, plans: Mapping[str, Placement], is_late: Callable[[], bool]) -> None:
        """Rounds the plans of these keys that are not kept, at once where that gains something, until it `is_late`."""
        missing = {key: placement for key, placement in plans.items() if self.store.get_arrays(PLAN_WEIGHTS, key) is None}
        if self.several is None or not missing or is_late():
            return
        for (key, placement), arrays in zip(missing.items(), self.several(tuple(missing.values())), strict=True):
            self._kept(key, placement, arrays)
            if is_late():
                return

    def _kept(self, key: str, placement: Placement, rounded: Arrays) -> Arrays:
        schemes = placement.all_schemes
        apart = self.bank.rounded((layer, schemes[layer.name]) for layer in self.graph.layers if layer.weight and layer.name in schemes)
        arrays = {**apart, **rounded}
        self.store.put_arrays(PLAN_WEIGHTS, key, arrays)
        return arrays

    def forget(self, allocations: Iterable[Allocation]) -> None:
        """Removes what is kept of these plans."""
        for allocation in allocations:
            self.store.forget(PLAN_WEIGHTS, self.key_of(allocation))
