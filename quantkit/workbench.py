"""Where the stages of one job work: each result is kept in the run directory under the fingerprint of all that it depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

from quantkit.progress import Progress
from quantkit.store import Run, fingerprint


class Kept(Protocol):
    """What can lie in a run directory."""

    def to_json(self) -> Any:
        """A JSON form, finite numbers only."""
        ...


T = TypeVar("T", bound=Kept)


class Workbench:
    """`seconds` tells how long each stage took in this process; `computed` names those that were not found ready, in order."""

    def __init__(self, store: Run, progress: Progress) -> None:
        self.store, self.progress = store, progress
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []

    @contextmanager
    def timed(self, stage: str, shown: str | None = None) -> Iterator[None]:
        """Adds to the seconds of `stage`; with `shown`, a progress stage of that name."""
        start = time.perf_counter()
        with self.progress.stage(shown) if shown else nullcontext():
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def keep(self, stage: str, depends_on: tuple[Any, ...], compute: Callable[[], T], load: Callable[[Any], T]) -> T:
        """The result of `stage`: read back by `load` if it was kept under the same dependencies, else computed and kept."""
        key = fingerprint(stage, *depends_on)
        start = time.perf_counter()
        kept = self.store.get(stage, key)
        if kept is None:
            result = compute()
            self.store.put(stage, key, result.to_json())
            self.computed.append(stage)
        else:
            result = load(kept)
        self.seconds[stage] = time.perf_counter() - start
        return result
