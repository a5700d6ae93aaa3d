"""How a long stage reports its progress, independent of where it is shown. Standard library only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Receives stages and notes; the command line draws them, a library call need not."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """A stage of `total` steps (unknown: None); yields `advance(steps)`, steps since the last call.

        Where `advance` has a method `expect(left)`, it is told how many steps are likely still to come whenever that is known better; one
        without keeps the first total.
        """
        ...

    def note(self, text: str) -> None:
        """One line that the user should see."""
        ...


def expect(advance: Advance, left: int) -> None:
    """So many steps are likely still to come, whatever the total was; nothing where the progress takes no such word."""
    told = getattr(advance, "expect", None)
    if told is not None:
        told(left)


class Pace:
    """An `advance` that counts, and says how many seconds are left by the pace of the later half of what is done.

    The later half, as the first steps of a stage also read, compile and warm up what the others find ready.
    """

    def __init__(self, total: int | None) -> None:
        self.total, self.done = total, 0
        self._begun = time.monotonic()
        self._told = deque([(0.0, 0)])  # seconds since it began, and what was done; only the first is in the earlier half

    def __call__(self, steps: int) -> None:
        """So many steps more are done."""
        self.done += steps
        self._told.append((self.elapsed_s, self.done))
        while len(self._told) > 2 and 2 * self._told[1][1] <= self.done:
            self._told.popleft()

    def expect(self, left: int) -> None:
        """So many are likely still to come."""
        self.total = self.done + left

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._begun

    @property
    def seconds_left(self) -> float | None:
        """As of the last step; None where nothing is done yet or nobody knows the end."""
        (start_s, start), (end_s, end) = self._told[0], self._told[-1]
        return None if self.total is None or end <= start else (end_s - start_s) / (end - start) * max(self.total - self.done, 0)

    @property
    def seconds_left_now(self) -> float | None:
        """The same less what passed since that step."""
        left = self.seconds_left
        return None if left is None else max(left - (self.elapsed_s - self._told[-1][0]), 0.0)


class Silent:
    """Ignores everything."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:  # noqa: ARG002 - the protocol's
        """A stage that is not shown."""
        return nullcontext(_ignore)

    def note(self, text: str) -> None:
        """Drop it."""


def _ignore(steps: int) -> None:
    del steps
