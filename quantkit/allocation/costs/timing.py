"""Time whole files side by side, interleaved, so that a drifting machine touches all of them alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.runtimes import Feeds

WARM_UP = 5


class Timed(Protocol):
    """What can be timed: a session of any runtime. `threads` is 1 only if the calling thread itself does the work."""

    @property
    def threads(self) -> int:
        """How many."""
        ...

    def run(self, feeds: Feeds, /) -> object:
        """One inference."""


def interleave(sessions: Sequence[Timed], feeds: Feeds, *, rounds: int, inner: int = 1, settled: bool = False) -> NDArray[np.float64]:
    """Milliseconds of one inference, shape [sessions, rounds]; each round runs every session `inner` times, in turn.

    With `settled` there is one more run, untimed, before those, as the session before has filled the cache.

    The order within a round alternates, so that no session always runs on its neighbour's warm cache. Sessions of one thread are
    timed by what that thread spent on the processor, which a neighbour who takes the core away does not lengthen; others by the wall.
    """
    clock = time.thread_time if all(session.threads == 1 for session in sessions) else time.perf_counter
    for session in sessions:
        for _ in range(WARM_UP):
            session.run(feeds)
    times = np.zeros((len(sessions), rounds))
    for turn in range(rounds):
        order = range(len(sessions)) if turn % 2 == 0 else range(len(sessions) - 1, -1, -1)
        for place in order:
            if settled:
                sessions[place].run(feeds)
            start = clock()
            for _ in range(inner):
                sessions[place].run(feeds)
            times[place, turn] = 1e3 * (clock() - start) / inner
    return times


def rounds_within(session: Timed, feeds: Feeds, seconds: float, least: int = 15, most: int = 300) -> int:
    """How many rounds of this session fit into `seconds`."""
    session.run(feeds)
    start = time.perf_counter()
    session.run(feeds)
    return int(np.clip(seconds / max(time.perf_counter() - start, 1e-6), least, most))
