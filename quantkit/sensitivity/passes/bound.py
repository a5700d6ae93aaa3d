"""All passes, bound to one captured network: what `sensitivity.engine` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.core.graph import Graph, Group, Layer
from quantkit.core.spec import Scheme
from quantkit.core.table import Floats
from quantkit.core.workers import Here, Workers
from quantkit.data.batch import Batch
from quantkit.network.captured import Captured
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity.passes import changes, curvature, float_forward, gradients, perturbed
from quantkit.sensitivity.passes.outputs import Outputs, unpadded
from quantkit.sensitivity.passes.recorded import Recorded, Shift, Site
from quantkit.sensitivity.passes.spread import Spread, spread
from quantkit.sensitivity.passes.trace import SquaredGradients, Trace, Trial


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """The float network, and its weights under every scheme of `target`; `workers` take what can be computed apart."""

    captured: Captured
    target: ModuleType
    bank: WeightBank
    workers: Workers = field(default_factory=Here)

    @property
    def graph(self) -> Graph:
        """Of the network."""
        return self.captured.graph

    def parameter(self, name: str) -> Tensor:
        """The float parameter of that name."""
        return self.bank.parameter(name).detach()

    def outputs(self, batch: Batch) -> Outputs:
        """The float network's, zero at padding; inputs go in by name, however they were exported."""
        found = fx.Interpreter(self.captured.module).run(*[batch.inputs[name] for name in self.graph.inputs])
        return unpadded(tuple(pytree.tree_leaves(found)), batch.counted)

    def alone(self, groups: Sequence[Group]) -> Spread:
        """As `perturbed.alone`, by the workers."""
        return spread(self.captured, groups, self.target, self.bank, self.workers)

    def in_pairs(self, groups: Sequence[Group]) -> perturbed.Perturbed:
        """As `perturbed.in_pairs`."""
        return perturbed.in_pairs(self.captured, groups, self.target, self.bank)

    def noisy(self, groups: Sequence[Group], repeats: int, seed: int) -> perturbed.Perturbed:
        """As `perturbed.noisy`."""
        return perturbed.noisy(self.captured, groups, self.bank, repeats, seed)

    def weight_changes(self, group: Group, scheme: Scheme) -> dict[str, Tensor]:
        """As `changes.weight_changes`."""
        return changes.weight_changes(self.graph, self.bank, group, scheme)

    def squared_error(self, layer: Layer, scheme: Scheme) -> float:
        """As `WeightBank.squared_error`."""
        return self.bank.squared_error(layer, scheme)

    def input_errors(self, groups: Sequence[Group]) -> changes.InputErrors:
        """As `changes.InputErrors`."""
        return changes.InputErrors(self.bank, groups)

    def output_changes(self, groups: Sequence[Group]) -> changes.OutputChanges:
        """As `changes.OutputChanges`."""
        return changes.OutputChanges(self.captured, groups, self.target, self.bank)

    @contextmanager
    def differentiable(self, weights: Sequence[str], twice: bool = False) -> Iterator[dict[str, Tensor]]:
        """As `curvature.differentiable`; with `twice`, by kernels that have second derivatives."""
        with ExitStack() as stack:
            if twice:
                stack.enter_context(curvature.second_order_kernels())
            yield stack.enter_context(curvature.differentiable(self.captured.module, weights))

    def record(self, batch: Batch, shift: Shift | None = None) -> Recorded:
        """As `float_forward.record`."""
        return float_forward.record(self.captured, batch, shift)

    def squared_gradients(
        self, batches: Iterable[Batch], cotangents: gradients.Cotangents, see: Callable[[Sequence[Site]], None] | None = None
    ) -> SquaredGradients:
        """As `gradients.squared_gradients`."""
        return gradients.squared_gradients(self.captured, batches, cotangents, see)

    def hutchinson(
        self, loss: Callable[[Batch], Tensor], batches: Iterable[Batch], weights: Sequence[str], *, probes: int, tolerance: float, seed: int
    ) -> dict[str, Trace]:
        """As `curvature.hutchinson`."""
        return curvature.hutchinson(self.captured.module, loss, batches, weights, probes=probes, tolerance=tolerance, seed=seed)

    def traces(self, trials: Iterable[Trial], *, probes: int, tolerance: float, seed: int) -> dict[str, Trace]:
        """As `curvature.traces`."""
        return curvature.traces(trials, probes=probes, tolerance=tolerance, seed=seed)

    def quadratic_forms(
        self, loss: Callable[[Batch], Tensor], batches: Iterable[Batch], directions: Sequence[Mapping[str, Tensor]]
    ) -> Floats:
        """As `curvature.quadratic_forms`."""
        return curvature.quadratic_forms(self.captured.module, loss, batches, directions)
