"""How a long stage says how far it is, without knowing who listens. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Hears of stages and of things worth a line; the command line draws it, a library call need not."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:
        """A stage of `total` steps (unknown: None); yields `advance(steps)`, steps since the last call."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should see."""
        ...


class Silent:
    """Hears everything, says nothing."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:  # noqa: ARG002 - the protocol's
        """A stage that nobody watches."""
        return nullcontext(_ignore)

    def note(self, text: str) -> None:
        """Drop it."""


def _ignore(steps: int) -> None:
    del steps
