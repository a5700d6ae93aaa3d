"""Where independent parts of a stage are computed: in this process, one after the other, or by others (`runs.cluster`). And where files
are timed: on this machine, or on another (`runs.device_worker`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Task = Callable[[Sequence[Path], Path, Any], Any]


class Workers(Protocol):
    """What computes parts, so many at once."""

    @property
    def count(self) -> int:
        """How many parts are computed at once."""

    def run(self, task: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
        """`task(shared, part)` of every part, in their order. `task` is a function of a module, and changes nothing of what is shared.

        Parts are asked for as there is room for them. Raises ClusterError where the workers are lost.
        """


class Here:
    """This process: one part after the other."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    def run(self, task: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
        """As `Workers.run`."""
        return (task(shared, part) for part in parts)


class Device(Protocol):
    """The machine that files are timed on."""

    @property
    def host(self) -> Mapping[str, Any]:
        """What `environment.describe` says there."""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""

    def run(self, task: Task, files: Sequence[Path], job: Any) -> Any:
        """`task(paths, folder, job)`: the paths of `files` there, and a folder for temporary files. `task` is a function of a module.

        What lies beside a file and is part of it is there, too. Raises ClusterError where the device is lost.
        """


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """This process; `folder` is where temporary files go."""

    host: Mapping[str, Any]
    folder: Path | None = None

    @property
    def is_here(self) -> bool:
        """It is."""
        return True

    def run(self, task: Task, files: Sequence[Path], job: Any) -> Any:
        """As `Device.run`; the files stay where they are."""
        with tempfile.TemporaryDirectory(prefix="quantkit-", dir=self.folder) as folder:
            return task(files, Path(folder), job)
