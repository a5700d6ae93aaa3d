"""What estimators ask of the passes that they share: all of the network that a method needs to know. `sensitivity/passes` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.graph import Graph, Group, Layer, Pair
from quantkit.core.spec import Scheme
from quantkit.core.table import Floats
from quantkit.data.batch import Batch
from quantkit.sensitivity.passes.outputs import Measure, Outputs
from quantkit.sensitivity.passes.recorded import Recorded, Shift, Site
from quantkit.sensitivity.passes.trace import SquaredGradients, Trace, Trial

Loss = Callable[[Batch], Tensor]  # the mean over a batch's items


class Perturbed(Protocol):
    """Runs of the network with something changed; `rows` says what, run by run. Only what lies behind a change is run again."""

    @property
    def rows(self) -> tuple[tuple[Pair, ...], ...]:
        """The pairs that each run changes."""

    def displace(self, batches: Iterable[Batch], measure: Measure) -> Iterator[NDArray[np.floating]]:
        """How far the outputs moved, shape [rows, items, coordinates] for each batch."""

    def means(self, batches: Iterable[Batch], measure: Measure) -> dict[tuple[Pair, ...], float]:
        """By row, the mean of a measure of one coordinate over items, and over the runs that are the same row."""


class InputErrors(Protocol):
    """‖Δx‖² of every (group, scheme, layer, slot), over all recorded runs that were added."""

    def add(self, sites: Iterable[Site]) -> None:
        """See one batch."""

    def mean(self, layer: Layer, slot: int, scheme: Scheme) -> float:
        """Of one item; 0 where the scheme leaves the input alone."""


class OutputChanges(Protocol):
    """How quantizing one layer alone moves its own output."""

    def of(self, layer: Layer, scheme: Scheme, inputs: Iterable[Tensor], output: Tensor) -> Tensor | None:
        """ΔY in the shape of `output`, for these inputs; None where the layer cannot take the scheme, or it is fp32."""


class Engine(Protocol):
    """The float network and its weights under every scheme. Nothing here changes it: what is moved is moved within a pass."""

    @property
    def graph(self) -> Graph:
        """The network's layers and tensors."""

    def parameter(self, name: str) -> Tensor:
        """The float parameter of that name."""

    def outputs(self, batch: Batch) -> Outputs:
        """The float network's outputs, zero at padding."""

    def alone(self, groups: Sequence[Group]) -> Perturbed:
        """Each (group, scheme) quantized alone: its weights, what its layers read, and codes that they give and no layer reads."""

    def in_pairs(self, groups: Sequence[Group]) -> Perturbed:
        """Each alone, and each with every (group, scheme) of the groups after it; the later of two is the one run again."""

    def noisy(self, groups: Sequence[Group], repeats: int, seed: int) -> Perturbed:
        """Each (group, scheme) in float, with Gaussian noise as large as its rounding errors, so many runs each."""

    def weight_changes(self, group: Group, scheme: Scheme) -> dict[str, Tensor]:
        """ΔW = Q(W) − W of all the group's weights that the scheme changes, by parameter name."""

    def squared_error(self, layer: Layer, scheme: Scheme) -> float:
        """‖ΔW‖², times how much of it meets the layer's inputs, where their second moments are known."""

    def input_errors(self, groups: Sequence[Group]) -> InputErrors:
        """To be filled from recorded runs."""

    def output_changes(self, groups: Sequence[Group]) -> OutputChanges:
        """By the target's arithmetic."""

    def differentiable(self, weights: Sequence[str], twice: bool = False) -> AbstractContextManager[dict[str, Tensor]]:
        """Yields these parameters by name, the only ones that require gradients meanwhile; `twice` where second ones will be taken."""

    def record(self, batch: Batch, shift: Shift | None = None) -> Recorded:
        """A run that gradients can be taken of, within `differentiable`; a shift moves a layer's result and is a constant to gradients."""

    def squared_gradients(
        self,
        batches: Iterable[Batch],
        cotangents: Callable[[Recorded, Batch], Sequence[Sequence[Tensor]]],
        see: Callable[[Sequence[Site]], None] | None = None,
    ) -> SquaredGradients:
        """Item by item, of every weight and, with `see` (which is shown each batch's sites), of every edge; one cotangent list a draw."""

    def hutchinson(
        self, loss: Loss, batches: Iterable[Batch], weights: Sequence[str], *, probes: int, tolerance: float, seed: int
    ) -> dict[str, Trace]:
        """The trace of each weight's block of the Hessian; a batch is done after `probes`, or when one more changes little.

        Raises DataError for a loss that is not finite, ModelError for one that no gradient reaches.
        """

    def traces(self, trials: Iterable[Trial], *, probes: int, tolerance: float, seed: int) -> dict[str, Trace]:
        """As `hutchinson`, of any tensors that the losses depend on, within `differentiable`."""

    def quadratic_forms(self, loss: Loss, batches: Iterable[Batch], directions: Sequence[Mapping[str, Tensor]]) -> Floats:
        """δ_a' H δ_b of every two directions in the weights, shape [directions, directions]."""
