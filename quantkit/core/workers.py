"""Where independent parts of a stage are computed: in this process, one after the other, or by others (`runs.cluster`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


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
