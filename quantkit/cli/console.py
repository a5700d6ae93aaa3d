"""Progress on stderr: bars with the remaining time on a terminal, one line per stage in a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from quantkit.cli.exit_codes import results_only

T = TypeVar("T")
WIDE = 400  # columns where no terminal reads, so that no name in a table is cut


class ConsoleProgress:
    """Draws nested stages; a finished stage leaves a line with its seconds."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """A bar for `name` until the block ends."""
        label = "  " * self._depth + name
        task = self._bars.add_task(label, total=total, unit=unit)
        started = time.monotonic()
        self._depth += 1
        try:
            yield lambda steps: self._bars.advance(task, steps)
            self.note(f"{label}  {time.monotonic() - started:.1f} s")
        finally:
            self._depth -= 1
            self._bars.remove_task(task)

    def note(self, text: str) -> None:
        """One line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def watch() -> Iterator[ConsoleProgress]:
    """A progress that is drawn on stderr while the block runs."""
    unit = TextColumn("{task.fields[unit]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), unit, TimeElapsedColumn(), TimeRemainingColumn())
    bars = Bars(*columns, console=Console(file=sys.stderr), transient=True)
    with bars if bars.console.is_terminal else nullcontext():
        yield ConsoleProgress(bars)


def worked(job: Callable[[ConsoleProgress], T]) -> T:
    """Run the job with its progress drawn; what libraries print is kept off standard output."""
    with results_only(), watch() as progress:
        return job(progress)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))


class Printed(Console):
    """Standard output, for people. A closed pipe raises BrokenPipeError: rich would exit with 1, which means "not kept" here."""

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDE)

    def on_broken_pipe(self) -> None:
        """Left to `exit_codes.exit_code`."""
        raise BrokenPipeError
