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
from quantkit.settings.options import Arguments

if TYPE_CHECKING:
    from quantkit.gating import Gated

GatedFile = Annotated[Path, Argument(help="A run directory, or an ONNX file, whoever made it.")]
FloatFile = Annotated[Path | None, Option("--float", help="The network before it was quantized; a run has its own.")]
Against = Annotated[Path | None, Option(help="Hold it against this file, the one that is deployed, instead of the float file.")]
LockFile = Annotated[Path | None, Option("--lock", help="The lock file; default: quantkit.lock.json beside the file.")]
MaxLatencyRatio = Annotated[str | None, Option(help="Time of one inference at most, as a share of the other file's: 0.6.")]
GateBytes = Annotated[str | None, Option("--max-bytes", help="Bytes of the file at most: 2MB, or 0.3x of the other file.")]
RequireInt8 = Annotated[str | None, Option(help="Multiply-accumulates that must run in int8, such as 95%.")]
Junit = Annotated[Path | None, Option(help="Write the answer as JUnit XML.")]
Sarif = Annotated[Path | None, Option(help="Write the answer as SARIF.")]
Markdown = Annotated[Path | None, Option(help="Write the answer as Markdown, for a job's summary.")]


def gate(
    file: GatedFile, float_file: FloatFile = None, against: Against = None, lock: LockFile = None,
    max_drop: flags.MaxDrop = None, keep: flags.Keep = None, max_latency_ratio: MaxLatencyRatio = None, max_bytes: GateBytes = None,
    require_int8: RequireInt8 = None, undecided: flags.Undecided = None,
    data: flags.Data = None, metric: flags.Metric = None,
    resize: flags.Resize = None, crop: flags.Crop = None, mean: flags.Mean = None, std: flags.Std = None, scale: flags.Scale = None,
    target: flags.Target = None, threads: flags.Threads = None, batch_size: flags.BatchSize = None, seed: flags.Seed = None,
    junit: Junit = None, sarif: Sarif = None, markdown: Markdown = None, as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Check a file against conditions, by default those of its lock file: exit 0 if it keeps them, 1 if not, 2 for a wrong request.

    quantkit gate model.int8.onnx --float model.onnx --data images/ --max-drop 0.5 --max-latency-ratio 0.6 --require-int8 95%
    """
    arguments = Arguments(
        data=data, metric=metric, resize=resize, crop=crop, mean=mean, std=std, scale=scale, target=target, threads=threads,
        batch_size=batch_size, seed=seed, undecided=undecided,
    )  # fmt: skip
    said_conditions = {
        "max_drop": max_drop, "keep": keep, "max_latency_ratio": max_latency_ratio, "max_bytes": max_bytes, "require_int8": require_int8,
    }  # fmt: skip

    def job(progress: ConsoleProgress) -> Gated:
        from quantkit import gating

        conditions = gating.parse_conditions(said_conditions)
        asked = gating.Asked(
            path=file, conditions=conditions, arguments=arguments, float_file=float_file, against=against, lock=lock
        )  # fmt: skip
        return gating.gate(asked, progress)

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
