"""Where the stages of one job work: each result is kept in the run directory under the fingerprint of all that it depends on."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from quantkit.core.environment import describe, processor
from quantkit.core.errors import OutputError
from quantkit.core.progress import Progress
from quantkit.core.sources import code_of
from quantkit.core.store import Run, fingerprint, stage_name
from quantkit.core.workers import Device, Here, ThisMachine, Workers
from quantkit.runs.history import HISTORY, StageUse, changes, read_sessions, request_event, shortened

SCRATCH = ".scratch-"
FILES = "|".join((
    r"quantkit\.lock", "model", "alternative", "(float|captured)-[0-9a-f]{8}", "result", "front", "request", "graph", "session", "tables",
    "plan", "picked", "progress", "(drop-in|decoder|any_length)(-float)?",
))  # fmt: skip
TORN = re.compile(rf"\.({FILES})-[0-9a-f]{{8}}\.(onnx|onnx\.data|json|pt2)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class Kept(Protocol):
    """What can lie in a run directory."""

    def to_json(self) -> Any:
        """A JSON form, finite numbers only."""
        ...


T = TypeVar("T", bound=Kept)


@dataclass(frozen=True, slots=True)
class Plain:
    """JSON data as it is, to be kept."""

    value: Any

    def to_json(self) -> Any:
        """The data."""
        return self.value


class Workbench:
    """`seconds` is how long each stage took in this process; `computed` names those that were not found ready, in order.

    `time_limit_s` counts from here; it ends the search, and no other stage. `workers` compute what stages can divide; this process
    where there are no others. Files are timed on `device`, which is this machine where none is given.
    """

    def __init__(
        self, store: Run, progress: Progress, time_limit_s: float | None = None, workers: Workers | None = None,
        device: Device | None = None,
    ) -> None:  # fmt: skip
        self.store, self.progress, self.workers, self.device = store, progress, workers or Here(), device or ThisMachine(describe())
        self._past: dict[str, StageUse] = {}
        self._begun = False
        self._early: list[dict[str, Any]] = []  # what came before the request could be written: it hangs on the capture
        self._deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []

    def begin(self, command: str, inputs: Mapping[str, str], files: Iterable[str]) -> None:
        """A request as the history keeps it; notes what changed since the one before it, in one line."""
        sessions = read_sessions(self.store)
        self._past = {stage: use for session in sessions for stage, use in session.stages.items()}
        changed = changes(sessions[-1].inputs, inputs) if sessions else []
        if changed:
            self.progress.note(f"changed since the last request of this run: {', '.join(changed)}")
        self._begun = True
        for event in (request_event(command, inputs, files), *self._early):
            self.store.append(event, HISTORY)

    def end(self, kept: bool) -> None:
        """The request came to its end."""
        self.store.append({"event": "done", "kept": kept}, HISTORY)

    @property
    def elsewhere(self) -> dict[str, str]:
        """`timed_on`, the processor of the device, where that is another machine: a part of whatever tells of times, or hangs on them."""
        return {} if self.device.is_here else {"timed_on": processor(self.device.host)}

    @property
    def timed_on(self) -> dict[str, str]:
        """What times depend on, by name."""
        return {"processor": self.device.host["cpu"], "integer instructions": self.device.host["isa"], **self.elsewhere}

    def is_late(self) -> bool:
        """Whether the time limit has passed."""
        return time.monotonic() > self._deadline

    @contextmanager
    def timed(self, stage: str, shown: str | None = None) -> Iterator[None]:
        """Adds to the seconds of `stage`; with `shown`, a progress stage of that name."""
        start = time.perf_counter()
        with self.progress.stage(shown) if shown else nullcontext():
            yield
        seconds = time.perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self._tell({"event": "step", "stage": stage, "seconds": round(seconds, 3)})

    def keep(self, stage: str, depends_on: Mapping[str, Any], compute: Callable[[], T], load: Callable[[Any], T]) -> T:
        """The result of `stage`: read back by `load` if it was kept under the same dependencies, by name, else computed and kept."""
        key, depends_on = stage_key(stage, depends_on, compute), _with_code(depends_on, compute)
        start = time.perf_counter()
        kept = self.store.get(stage, key)
        if kept is None:
            self._say_why(stage, depends_on)
            result = compute()
            self.store.put(stage, key, result.to_json())
        else:
            result = load(kept)
        self._met(stage, key, depends_on, time.perf_counter() - start, made=kept is None)
        return result

    def keep_arrays(
        self, stage: str, depends_on: Mapping[str, Any], compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> Mapping[str, NDArray[Any]]:
        """As `keep`, for a stage that gives arrays by name."""
        key, depends_on = stage_key(stage, depends_on, compute), _with_code(depends_on, compute)
        start = time.perf_counter()
        kept: Mapping[str, NDArray[Any]] | None = self.store.get_arrays(stage, key)
        if kept is None:
            self._say_why(stage, depends_on)
            arrays = compute()
            self.store.put_arrays(stage, key, arrays)
        else:
            arrays = kept
        self._met(stage, key, depends_on, time.perf_counter() - start, made=kept is None)
        return arrays

    def _say_why(self, stage: str, depends_on: Mapping[str, Any]) -> None:
        """Notes for which other input a stage that was there is made again; nothing where it is the first time, or its file is gone."""
        past = self._past.get(stage)
        changed = changes(past.depends_on, _shortened(depends_on)) if past else []
        if changed:
            self.progress.note(f"{stage.replace('_', ' ')} made again: {', '.join(changed)}")

    def _met(self, stage: str, key: str, depends_on: Mapping[str, Any], seconds: float, *, made: bool) -> None:
        self.seconds[stage] = seconds
        if made:
            self.computed.append(stage)
        use = {"file": stage_name(stage, key), "depends_on": _shortened(depends_on), "seconds": round(seconds, 3), "made": made}
        self._tell({"event": "stage", "stage": stage, **use})

    def _tell(self, event: dict[str, Any]) -> None:
        """To the history, once the request that the event belongs to is there."""
        if self._begun:
            self.store.append(event, HISTORY)
        else:
            self._early.append(event)


def stage_key(stage: str, depends_on: Mapping[str, Any], compute: Callable[[], Any]) -> str:
    """Under which a stage's result is kept: what it depends on, and the code of the module that computes it with all that this imports."""
    return fingerprint(stage, *_with_code(depends_on, compute).values())


def _with_code(depends_on: Mapping[str, Any], compute: Callable[[], Any]) -> dict[str, Any]:
    return {**depends_on, "code of this stage": code_of(compute.__module__)}


def _shortened(depends_on: Mapping[str, Any]) -> dict[str, str]:
    return {name: shortened(value) for name, value in depends_on.items()}


@contextmanager
def scratch_folder(store: Run) -> Iterator[Path]:
    """A folder in the run directory for temporary files; gone afterwards, and with it what a killed process left.

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
        raise OutputError(got, "free disk space", "free some space, or choose another --run") from error
