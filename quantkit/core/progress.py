"""How a long stage reports its progress, independent of where it is shown. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Receives stages and notes; the command line draws them, a library call need not."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:
        """A stage of `total` steps (unknown: None); yields `advance(steps)`, steps since the last call."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should see."""
        ...


class Silent:
    """Ignores everything."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:  # noqa: ARG002 - the protocol's
        """A stage that is not shown."""
        return nullcontext(_ignore)

    def note(self, text: str) -> None:
        """Drop it."""


def _ignore(steps: int) -> None:
    del steps
