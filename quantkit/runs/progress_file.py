"""progress.json in the run directory while a job works: where it is, for `quantkit status` from elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.core.progress import Advance, Pace, Progress, expect

PROGRESS = "progress.json"
TEMPORARY = ".progress-00000000.json"  # a name that `quantkit clean` knows
EVERY_S = 2.0  # between two writes


@dataclass(frozen=True, slots=True)
class Doing:
    """The stage of a job: `done` of `total` steps (None: nobody knows) of that `unit` after `elapsed_s`.

    `seconds_left` is the estimate that the bar shows (`core.progress.Pace`).
    """

    stage: str
    done: int
    total: int | None
    unit: str
    elapsed_s: float
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


class ProgressFile:
    """Passes everything on to another progress, and writes into the folder what is done, every EVERY_S at most.

    In a `with` block, at whose end the file goes.
    """

    def __init__(self, shown: Progress, folder: Path) -> None:
        self._shown, self._path = shown, folder / PROGRESS
        self._written = -EVERY_S

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """A stage that is shown, and written down as it goes on."""
        with self._shown.stage(name, total, unit) as advance:
            written = _Written(total, advance, lambda pace: self._write(name, unit, pace))
            self._write(name, unit, written)
            yield written

    def note(self, text: str) -> None:
        """One line, passed on."""
        self._shown.note(text)

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(self, *_: object) -> None:
        for path in (self._path, self._path.with_name(TEMPORARY)):
            path.unlink(missing_ok=True)

    def _write(self, name: str, unit: str, pace: Pace) -> None:
        if time.monotonic() - self._written < EVERY_S:
            return
        self._written = time.monotonic()
        doing = Doing(name, pace.done, pace.total, unit, round(pace.elapsed_s, 1), pace.seconds_left)
        temporary = self._path.with_name(TEMPORARY)
        with suppress(OSError):  # a full disk is the stages' business; nothing here is worth waiting for the disk
            temporary.write_text(json.dumps(doing.to_json()))
            temporary.replace(self._path)


class _Written(Pace):
    """A pace that passes on what it is told, and is written."""

    def __init__(self, total: int | None, shown: Advance, write: Callable[[Pace], None]) -> None:
        super().__init__(total)
        self._shown, self._write = shown, write

    def __call__(self, steps: int) -> None:
        """Shown, counted and written."""
        self._shown(steps)
        super().__call__(steps)
        self._write(self)

    def expect(self, left: int) -> None:
        """Passed on."""
        expect(self._shown, left)
        super().expect(left)


def read_progress(folder: Path) -> Doing | None:
    """What was written last; None where nothing was, or not as it is written here."""
    try:
        found: Mapping[str, Any] = json.loads((folder / PROGRESS).read_text())
        return Doing(**found)
    except (OSError, ValueError, TypeError):
        return None
