"""Candidates: whatever a plan needs to become a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from quantkit.core.graph import Graph, Group
from quantkit.core.spec import FLOAT, Allocation, Scheme
from quantkit.core.store import fingerprint
from quantkit.export.file_size import promised_bytes
from quantkit.export.onnx_file import remove, size_bytes
from quantkit.export.qdq import Emitted, emit
from quantkit.quantization.weights import WeightBank
from quantkit.runtimes import Feeds, Runtime, Session, find_runtime
from quantkit.runtimes.timing import Timing
from quantkit.stages.plan_weights import PlanWeights
from quantkit.targets.common import uniform
from quantkit.targets.placement import Placement


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Everything a plan needs to become a file; `folder` is for temporary files.

    `key` stands for all that the files follow from, besides the plan. Weights are rounded as the first of `rounded` has it that covers the
    plan, and layer by layer apart (`bank`) where none does.
    """

    float_file: Path
    graph: Graph
    groups: tuple[Group, ...]
    target: ModuleType
    bank: WeightBank
    folder: Path
    key: str
    rounded: tuple[PlanWeights, ...] = ()

    @property
    def apart(self) -> Candidates:
        """The same with all weights rounded apart: files of the same size and time, without the work of rounding for each plan."""
        return replace(self, rounded=())

    def weights_key(self, allocation: Allocation) -> str:
        """Under which the run directory keeps the plan's weights."""
        own = self._own_weights(allocation)
        return self.key if own is None else own.key_of(allocation)

    def weights(self, allocation: Allocation) -> WeightBank:
        """The plan's weights."""
        own = self._own_weights(allocation)
        return self.bank if own is None else own.of(allocation, self.placement(allocation))

    def prepare(self, allocations: Iterable[Allocation], is_late: Callable[[], bool]) -> None:
        """Rounds the weights of several plans at once, where workers can."""
        found: dict[int, tuple[PlanWeights, dict[str, Placement]]] = {}
        for allocation in allocations:
            own = self._own_weights(allocation)
            if own is not None and own.several is not None:
                found.setdefault(id(own), (own, {}))[1][own.key_of(allocation)] = self.placement(allocation)
        for own, plans in found.values():
            own.prepare(plans, is_late)

    def _own_weights(self, allocation: Allocation) -> PlanWeights | None:
        return next((weights for weights in self.rounded if weights.covers(allocation)), None)

    @property
    def runtime(self) -> Runtime:
        """What runs the target's files."""
        return find_runtime(self.target.NAME)

    def open(self, path: Path, *, threads: int, example: Feeds | None = None) -> Session:
        """A file, the float one too, in the target's runtime with the options that it needs."""
        return self.runtime.open_file(path, threads=threads, options=self.target.SESSION_OPTIONS, example=example)

    def timing(self, threads: int, example: Feeds) -> Timing:
        """How such files are timed on one batch."""
        return Timing(self.runtime, self.target.SESSION_OPTIONS, threads, example)

    def placement(self, allocation: Allocation) -> Placement:
        """The target's answer for one scheme per group."""
        layers = {name: allocation[group.name] for group in self.groups for name in group.layers}
        placed: Placement = self.target.place(self.graph, layers)
        return placed

    def uniform(self, scheme: Scheme) -> dict[str, Scheme]:
        """Every group under `scheme`, as far as it can take it."""
        return uniform(self.groups, scheme)

    @contextmanager
    def written(self, allocation: Allocation) -> Iterator[Path]:
        """The plan's file, which lies in the temporary folder under a name of its own while it is used: several may at once."""
        path = self.folder / f"candidate-{fingerprint(self.weights_key(allocation), dict(allocation))[:16]}.onnx"
        try:
            self.emit(allocation, path)
            yield path
        finally:
            remove(path)

    def session(self, allocation: Allocation, *, threads: int, example: Feeds | None = None) -> Session:
        """The plan's file, opened; it lies nowhere then."""
        with self.written(allocation) as path:
            return self.open(path, threads=threads, example=example)

    def size(self, allocation: Allocation) -> int:
        """Bytes of the plan's file."""
        with self.written(allocation) as path:
            return size_bytes(path)

    def promised_bytes(self, allocation: Allocation) -> int | None:
        """What the plan's file will take, by the plan alone; None where the network computes in half, whose Casts are not foreseen."""
        if self.placement(allocation).float32 is not None:
            return None
        plain = self.apart.size({group.name: FLOAT for group in self.groups})
        return promised_bytes(plain, self.graph, self.placement(allocation), self.target.weight_bytes)

    def emit(self, allocation: Allocation, path: Path) -> Emitted:
        """Write the plan's file to `path`; the names of its codes."""
        return emit(self.float_file, self.graph, self.placement(allocation), self.weights(allocation), path)
