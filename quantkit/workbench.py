"""Where the stages of one job work: each result is kept in the run directory under the fingerprint of all that it depends on."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from quantkit.errors import OutputError
from quantkit.progress import Progress
from quantkit.store import Run, fingerprint

SCRATCH = ".scratch-"
FILES = "model|(float|captured)-[0-9a-f]{8}|result|front|request|graph|session|tables|plan|picked"
TORN = re.compile(rf"\.({FILES})-[0-9a-f]{{8}}\.(onnx|json|pt2)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class Kept(Protocol):
    """What can lie in a run directory."""

    def to_json(self) -> Any:
        """A JSON form, finite numbers only."""
        ...


T = TypeVar("T", bound=Kept)


class Workbench:
    """`seconds` tells how long each stage took in this process; `computed` names those that were not found ready, in order.

    `time_limit_s` counts from here; it ends the search, and no other stage.
    """

    def __init__(self, store: Run, progress: Progress, time_limit_s: float | None = None) -> None:
        self.store, self.progress = store, progress
        self._deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []

    def is_late(self) -> bool:
        """Whether the time limit has passed."""
        return time.monotonic() > self._deadline

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

    def keep_arrays(
        self, stage: str, depends_on: tuple[Any, ...], compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> Mapping[str, NDArray[Any]]:
        """As `keep`, for a stage that gives arrays by name."""
        key = fingerprint(stage, *depends_on)
        start = time.perf_counter()
        arrays: Mapping[str, NDArray[Any]] | None = self.store.get_arrays(stage, key)
        if arrays is None:
            arrays = compute()
            self.store.put_arrays(stage, key, arrays)
            self.computed.append(stage)
        self.seconds[stage] = time.perf_counter() - start
        return arrays


@contextmanager
def scratch_folder(store: Run) -> Iterator[Path]:
    """A folder in the run directory for files that are looked at once; gone afterwards, and with it what a killed process left.

    Raises OutputError where the disk is full, whoever wrote.
    """
    for left in store.folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left)
    for left in store.folder.glob(".*"):
        if TORN.fullmatch(left.name):
            left.unlink()
    try:
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=SCRATCH) as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in FULL:
            raise
        got = f"cannot write into {store.folder}: {os.strerror(error.errno)}"
        raise OutputError(got, "a disk with room", "make room, or choose another --run") from error
