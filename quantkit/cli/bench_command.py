"""`quantkit bench`: any ONNX files timed side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from typer import Argument, Option

from quantkit.cli import flags
from quantkit.cli.console import ConsoleProgress, Printed, print_json, worked
from quantkit.cli.exit_codes import KEPT, exit_code
from quantkit.core.environment import describe
from quantkit.core.errors import RequestError

if TYPE_CHECKING:
    from quantkit.verification.side_by_side import Timed

Files = Annotated[list[Path], Argument(help="ONNX files, whoever made them; all are compared with the first.")]
Threads = Annotated[int, Option(min=0, help="Threads of the runtime; 0 is all cores.")]
Batch = Annotated[int, Option(min=1, help="Items in a batch, where the file leaves it open.")]
Runs = Annotated[int | None, Option(min=1, help="Rounds, each of which runs every file once (default: what fits in six seconds).")]
Shapes = Annotated[list[str] | None, Option("--shape", help="NAME=SIDES of an input, such as input_ids=1x128; may be repeated.")]
Plot = Annotated[bool, Option("--plot", help="Draw the time of the operators as bars.")]
BAR = 48  # characters of the longest bar
SHOWN, LEAST_SHARE = 8, 0.01  # kinds of operators that are listed, and of what share of the slowest file's time at least


def bench(
    files: Files, threads: Threads = 1, batch: Batch = 1, runs: Runs = None, shape: Shapes = None, plot: Plot = False,
    as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Time ONNX files side by side: interleaved, the ratio to the first with a 95 % interval, and by which operators the time goes.

    quantkit bench model.onnx model.int8.onnx --threads 1
    """
    sides = dict(_sides(text) for text in shape or ())

    def job(progress: ConsoleProgress) -> tuple[Timed, ...]:
        from quantkit.verification.side_by_side import time_side_by_side

        with tempfile.TemporaryDirectory() as folder, progress.stage("time the files", 2 * len(files), "files") as advance:
            return time_side_by_side(files, threads=threads, batch=batch, runs=runs, sides=sides, folder=Path(folder), advance=advance)

    def show(found: tuple[Timed, ...]) -> int:
        if as_json:
            print_json({"files": [one.to_json() for one in found], "threads": threads, "batch": batch, "environment": describe()})
        else:
            show_timed(found, plot)
        return KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))


def show_timed(found: Sequence[Timed], plot: bool = False) -> None:
    """The files, a row each; then kinds of operators, those first that differ most between the files, as numbers or as bars."""
    console = Printed()
    table = Table("file", box=None)
    for heading in ("bytes", "activations, kB", "ms", "ratio", "95 % interval"):
        table.add_column(heading, justify="right")
    for one in found:
        sizes = f"{one.bytes:,}", f"{one.peak_activation_bytes / 1e3:,.0f}"
        table.add_row(str(one.path), *sizes, f"{one.ms:.3f}", f"{one.ratio:.3f}", f"{one.low:.3f} to {one.high:.3f}")
    console.print(table)
    kinds = {kind for one in found for kind in one.operators}
    times = {kind: [one.operators.get(kind, 0.0) for one in found] for kind in kinds}
    least = LEAST_SHARE * max(sum(one.operators.values()) for one in found)
    listed = sorted((kind for kind in kinds if max(times[kind]) >= least), key=lambda kind: (-_weight(times[kind]), kind))[:SHOWN]
    if plot:
        console.print(f"\n{bars(found, listed)}", markup=False)
        return
    inner = Table("operator, ms (profiled, which adds to each)", box=None)
    for one in found:
        inner.add_column(one.path.name, justify="right")
    for kind in listed:
        inner.add_row(kind, *(f"{value:.3f}" for value in times[kind]))
    console.print()
    console.print(inner)


def bars(found: Sequence[Timed], kinds: Sequence[str]) -> str:
    """Milliseconds of each kind of operator as bars, one below the other for the files, in the order of the table."""
    most = max((one.operators.get(kind, 0.0) for one in found for kind in kinds), default=0.0) or 1.0
    width = max(map(len, kinds), default=0)
    lines = []
    for kind in kinds:
        for place, one in enumerate(found, 1):
            value = one.operators.get(kind, 0.0)
            lines.append(f"{kind if place == 1 else '':<{width}}  {place}  {'█' * round(BAR * value / most)} {value:.3f} ms")
    return "\n".join(lines)


def _weight(values: Sequence[float]) -> float:
    """How far the files differ in it; of one file, what it takes."""
    return max(values) - min(values) if len(values) > 1 else values[0]


def _sides(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sides = text.rpartition("=")
    numbers = sides.lower().split("x")
    if not name or not all(number.isdigit() and int(number) > 0 for number in numbers):
        raise typer.Exit(exit_code(lambda: _refuse(text)))
    return name, tuple(int(number) for number in numbers)


def _refuse(text: str) -> int:
    raise RequestError(f"--shape {text}", "NAME=SIDES such as input_ids=1x128", "name the input as the file does")
