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


def seconds_left(elapsed_s: float, done: int, total: int | None) -> float | None:
    """What is left by the pace so far; None where nothing is done yet or nobody knows the end."""
    return None if total is None or done <= 0 else elapsed_s / done * max(total - done, 0)


class Silent:
    """Ignores everything."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:  # noqa: ARG002 - the protocol's
        """A stage that is not shown."""
        return nullcontext(_ignore)

    def note(self, text: str) -> None:
        """Drop it."""


def _ignore(steps: int) -> None:
    del steps
