"""The commands about a run directory itself: `status` and `clean`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from typer import Argument, Option

from quantkit.cli import flags
from quantkit.cli.console import Printed, print_json
from quantkit.cli.exit_codes import KEPT, exit_code
from quantkit.settings.bounds import show_amount

if TYPE_CHECKING:
    from quantkit.runs.maintenance import Kept, Status
    from quantkit.runs.progress_file import Doing

RunFolder = Annotated[Path, Argument(help="The run directory of `allocate` or `measure`.")]


def status(run: RunFolder, as_json: flags.Json = False) -> None:
    """Report what a run holds, how long it took, what is stale and why, and what the last request would still do if it was asked again.

    While a process works in the run: where that is, and how long it will take by its pace so far.

    quantkit status runs/mine
    """

    def show() -> int:
        from quantkit.runs.maintenance import read_status

        found = read_status(run)
        if as_json:
            print_json(found.to_json())
        else:
            show_status(found)
        return KEPT

    raise typer.Exit(exit_code(show))


def clean(
    run: RunFolder,
    dry_run: Annotated[bool, Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Remove stale stage results and leftovers of killed processes; never what the current result or the last request needs.

    quantkit clean runs/mine --dry-run
    """

    def show() -> int:
        from quantkit.runs.maintenance import clean as remove

        removed = remove(run, dry_run=dry_run)
        freed = sum(row.bytes for row in removed)
        if as_json:
            print_json({"removed": [row.path for row in removed], "bytes": freed, "dry_run": dry_run})
            return KEPT
        console = Printed()
        _show_files(console, "", removed)
        told = f"{'would remove' if dry_run else 'removed'} {len(removed)} files, {show_amount('bytes', freed)}"
        console.print(told, markup=False)
        return KEPT

    raise typer.Exit(exit_code(show))


def show_status(found: Status) -> None:
    """The status as text."""
    console = Printed()
    if found.command is None:
        console.print(f"{found.run}: {show_amount('bytes', found.bytes)}, made by a version that kept no history", markup=False)
    else:
        state = "finished" if found.finished else "was interrupted"
        state = state if found.process is None else f"is running in process {found.process}"
        told = f"{found.run}: {show_amount('bytes', found.bytes)}; request {found.requests}, {found.command} of {found.at}, {state}"
        console.print(told, style="bold", markup=False, soft_wrap=True)
    if found.doing is not None:
        console.print(_doing(found.doing), markup=False, soft_wrap=True)
    if found.changed:
        console.print(f"changed since the previous request: {', '.join(found.changed)}", markup=False, soft_wrap=True)
    _show_files(console, "Kept", found.kept)
    for step, seconds in found.steps.items():
        console.print(f"  {step}  {seconds:.1f} s", markup=False)
    others = f", {found.candidates_of_others} for other requests" if found.candidates_of_others else ""
    console.print(f"candidates measured: {found.candidates}{others}", markup=False)
    _show_files(console, "Stale", [*found.stale, *found.left_over])
    if found.to_do:
        console.print(f"the last request would still compute: {', '.join(found.to_do)}", markup=False, soft_wrap=True)


def _doing(doing: Doing) -> str:
    total = "" if doing.total is None else f" of {doing.total}"
    steps = f", {doing.done}{total} {doing.unit}".rstrip() if doing.done or doing.total else ""
    left = "" if doing.seconds_left is None else f", about {doing.seconds_left:.0f} s left of it"
    return f"now: {doing.stage}{steps}, after {doing.elapsed_s:.0f} s{left}"


def _show_files(console: Printed, title: str, rows: Sequence[Kept]) -> None:
    if not rows:
        return
    table = Table("file", title=title, box=None, title_justify="left")
    for heading in ("size", "took"):
        table.add_column(heading, justify="right")
    reasons = any(row.why for row in rows)
    if reasons:
        table.add_column("reason")
    for row in rows:
        took = "" if row.seconds is None else f"{row.seconds:.1f} s"
        table.add_row(row.path, show_amount("bytes", row.bytes), took, *([", ".join(row.why)] if reasons else []))
    console.print(table)
