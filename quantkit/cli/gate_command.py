"""`quantkit gate`: check a file, or that of a run, against conditions, and write reports for CI services."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from quantkit import __version__
from quantkit.cli import flags
from quantkit.cli.console import ConsoleProgress, Printed, print_json, worked
from quantkit.cli.exit_codes import KEPT, NOT_KEPT, exit_code
from quantkit.settings.arguments import Gating

if TYPE_CHECKING:
    from quantkit.gating import Gated

GatedFile = Annotated[Path, Argument(help="A run directory, or an ONNX file, whoever made it.")]
FloatFile = Annotated[Path | None, Option("--float", help="The network before it was quantized; a run has its own.")]
Against = Annotated[Path | None, Option(help="Hold it against this file, the one that is deployed, instead of the float file.")]
LockFile = Annotated[Path | None, Option("--lock", help="The lock file; default: quantkit.lock.json beside the file.")]
Junit = Annotated[Path | None, Option(help="Write the answer as JUnit XML.")]
Sarif = Annotated[Path | None, Option(help="Write the answer as SARIF.")]
Markdown = Annotated[Path | None, Option(help="Write the answer as Markdown, for a job's summary.")]


@flags.takes(Gating)
def gate(
    file: GatedFile, float_file: FloatFile = None, against: Against = None, lock: LockFile = None,
    *, junit: Junit = None, sarif: Sarif = None, markdown: Markdown = None, as_json: flags.Json = False, **options: Any,
) -> None:  # fmt: skip
    """Check a file against conditions, by default those of its lock file: exit 0 if it keeps them, 1 if not, 2 for a wrong request.

    quantkit gate model.int8.onnx --float model.onnx --data images/ --max-drop 0.5 --max-latency-ratio 0.6 --require-int8 95%
    """

    def job(progress: ConsoleProgress) -> Gated:
        from quantkit import gating

        return gating.gate(gating.ask(file, options, float_file=float_file, against=against, lock=lock), progress)

    def show(gated: Gated) -> int:
        from quantkit import gating

        told = gated.to_json()
        reports: list[tuple[Path | None, Callable[[], str]]] = [
            (junit, lambda: gating.to_junit(told)),
            (sarif, lambda: json.dumps(gating.to_sarif(told, __version__), indent=1)),
            (markdown, lambda: gating.to_markdown(told)),
        ]
        for path, text in reports:
            if path is not None:
                _write(path, text())
        if as_json:
            print_json(told)
        else:
            show_gated(told)
        return KEPT if gated.kept else NOT_KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))


def show_gated(gated: Mapping[str, Any]) -> None:
    """The findings, one line per condition, and what changed since the lock."""
    console = Printed()
    against = f" against {gated['reference']}" if gated["reference"] else ""
    told = f"{'Kept' if gated['kept'] else 'Not kept'}: {gated['file']}{against}"
    console.print(told, style="bold green" if gated["kept"] else "bold red", markup=False, soft_wrap=True)
    for row in gated["findings"]:
        colour = {"kept": "green", "broken": "red"}.get(row["decision"], "yellow")
        console.print(f"  {row['condition']:<18}", end="", markup=False)
        console.print(row["verdict"], style=colour, markup=False, soft_wrap=True)
        console.print(f"  {'':<18}{row['told']}", markup=False, soft_wrap=True)
    for note in (*gated["changes"], *gated["notes"]):
        console.print(note, markup=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    from quantkit.core.store import write_atomically

    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
