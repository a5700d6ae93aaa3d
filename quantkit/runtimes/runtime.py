"""What the runtime of a target must be able to do (`Runtime`); a module of this folder is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from quantkit.core.graph import Graph
from quantkit.export.executed_layers import Executed
from quantkit.runtimes.evaluation import Feeds, Session
from quantkit.targets.placement import Placement


@dataclass(frozen=True, slots=True)
class Rival:
    """A baseline: what a user would have got without quantkit. `options` are the runtime's own, `bytes` those of all its files."""

    name: str
    path: Path
    bytes: int
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What runs for a node, and whether it computes with integers."""

    name: str
    integer: bool


class Runtime(Protocol):
    """How every runtime is called. All raise RequestError or ModelError where the runtime is not installed or refuses the file."""

    @property
    def TIMES(self) -> bool:  # noqa: N802 - a module's constant
        """Whether it is the target itself, so that times mean something."""
        ...

    @property
    def SHOWS_CODES(self) -> bool:  # noqa: N802
        """Whether a file that also answers with its codes runs as it would without."""
        ...

    @property
    def SITTING(self) -> Path | None:  # noqa: N802
        """The script that times files in a process of its own (`sitting.py` says how it is called); None where there is none."""
        ...

    def open_file(self, path: Path, *, threads: int, options: Mapping[str, str], example: Feeds | None = None) -> Session:
        """Open `path`; `example` has the only shapes that will be fed, where they are known."""
        ...

    def read_executed(self, path: Path, graph: Graph, placement: Placement, options: Mapping[str, str], folder: Path) -> Executed:
        """The precision in which each layer runs, against the placement."""
        ...

    def kernels(self, path: Path, options: Mapping[str, str], folder: Path) -> dict[str, Kernel]:
        """What runs, by the name of the node that it runs for."""
        ...

    def layer_ms(
        self, path: Path, graph: Graph, feeds: Feeds, *, threads: int, options: Mapping[str, str], runs: int, folder: Path
    ) -> dict[str, float]:
        """Median milliseconds of each layer's own nodes, by layer name."""
        ...

    def write_rivals(self, float_file: Path, feeds: Iterator[Feeds], folder: Path) -> Sequence[Rival]:
        """The baselines that this runtime's users have, made of the same float file and calibration items, one batch a feed."""
        ...
