"""Progress on stderr: bars with the remaining time on a terminal, one line per stage in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from quantkit.cli.exit_codes import results_only
from quantkit.core.progress import Advance, Pace

T = TypeVar("T")
WIDE = 400  # columns where no terminal reads, so that no name in a table is cut


class ConsoleProgress:
    """Draws nested stages; a finished stage leaves a line with its seconds."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """A bar for `name` until the block ends."""
        label = "  " * self._depth + name
        bar = _Bar(self._bars, label, total, unit)
        self._depth += 1
        try:
            yield bar
            self.note(f"{label}  {bar.elapsed_s:.1f} s")
        finally:
            self._depth -= 1
            self._bars.remove_task(bar.task)

    def note(self, text: str) -> None:
        """One line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bar(Pace):
    """A pace that is drawn."""

    def __init__(self, bars: Bars, label: str, total: int | None, unit: str) -> None:
        super().__init__(total)
        self._bars, self.task = bars, bars.add_task(label, total=total, unit=unit, pace=self)

    def __call__(self, steps: int) -> None:
        """Counted and drawn."""
        super().__call__(steps)
        self._bars.update(self.task, completed=self.done)

    def expect(self, left: int) -> None:
        """The bar's end moves."""
        super().expect(left)
        self._bars.update(self.task, total=self.total)


class TimeLeft(ProgressColumn):
    """What is left by the stage's own pace, which `quantkit status` tells too, and not by one of rich's."""

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds."""
        left = task.fields["pace"].seconds_left_now
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="progress.remaining")


@contextmanager
def watch() -> Iterator[ConsoleProgress]:
    """A progress that is drawn on stderr while the block runs."""
    unit = TextColumn("{task.fields[unit]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), unit, TimeElapsedColumn(), TimeLeft())
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
