"""The commands. Each hands down the options that were typed, and shows what comes back.

What needs torch is imported inside the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect as inspection
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer import Argument, Option

from quantkit import __version__
from quantkit.cli import inspect_tables, tables
from quantkit.cli.bench_command import bench
from quantkit.cli.console import ConsoleProgress, print_json, worked
from quantkit.cli.exit_codes import KEPT, NOT_KEPT, exit_code, results_only
from quantkit.cli.flags import Json, Model, takes
from quantkit.cli.gate_command import gate
from quantkit.cli.measure_commands import measure, pick, profile
from quantkit.cli.report_commands import diff, explain, report
from quantkit.cli.run_commands import clean, status
from quantkit.core.environment import describe, has_vnni, usable_targets
from quantkit.core.errors import ConfigError
from quantkit.core.freed_memory import keep_freed_memory
from quantkit.settings.arguments import Arguments, Inspected, Judged, Machine, Pixels, Promise, Written, given, rows
from quantkit.settings.options import Options, numbers

if TYPE_CHECKING:
    from quantkit.pipeline import Inspection
    from quantkit.runs.result import Result

app = typer.Typer(name="quantkit", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

T = TypeVar("T")


@app.callback(invoke_without_command=True)
def start(version: Annotated[bool, Option("--version", help="Print the version and exit.", is_eager=True)] = False) -> None:
    """Mixed-precision quantization under an accuracy promise that is checked on the file that ships."""
    if version:
        print(__version__)
        raise typer.Exit(KEPT)


@app.command()
@takes(Arguments)
def allocate(model: Model, *, as_json: Json = False, **options: Any) -> None:
    """Find the fastest or smallest plan that keeps the promise, write it, and measure that very file.

    quantkit allocate model.pt2 --max-drop 0.5 --data images/ --resize 256 --crop 224
    """

    def job(progress: ConsoleProgress) -> Result:
        from quantkit import pipeline

        return pipeline.allocate(model, given(options), progress)

    _judge(job, as_json)


app.command()(measure)
app.command()(pick)
app.command()(profile)
app.command()(report)
app.command()(explain)
app.command()(diff)
app.command()(gate)
app.command()(bench)
app.command()(status)
app.command()(clean)


@app.command()
@takes(Inspected)
def inspect(
    model: Model, *, every_name: Annotated[bool, Option("--all", help="Name every operation that stays float.")] = False,
    as_json: Json = False, **options: Any,
) -> None:  # fmt: skip
    """Show what can be quantized, in which groups, and what stays float and why.

    quantkit inspect model.pt2 --target tensorrt
    """

    def job(_: ConsoleProgress) -> Inspection:
        from quantkit import pipeline
        from quantkit.settings import request

        return pipeline.inspect(*request.resolve_model(model, given(options)))

    def show(found: Inspection) -> int:
        if as_json:
            rows = inspect_tables.group_rows(found.graph, found.groups)
            unsupported = [asdict(operation) for operation in found.graph.unsupported]
            print_json({"summary": found.overview.to_json(), "groups": rows, "unsupported": unsupported, "behind": list(found.behind)})
        else:
            inspect_tables.show_inspection(found.graph, found.groups, found.overview, found.behind, every_name)
        return KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))


@app.command()
@takes(Promise, Judged, Pixels, Machine, without=("target", "batch_size", "seed"))
def export(
    run: Annotated[Path, Argument(help="The run directory of an allocation.")],
    output: Annotated[Path, Option(help="The ONNX file to write.")],
    target: Annotated[str, Option(help="The runtime that the file is for: ort-cpu, openvino, tensorrt or nbit.")] = "ort-cpu",
    adapt: Annotated[bool, Option("--adapt", help="Change layers that the target cannot run, instead of failing.")] = False,
    check: Annotated[bool, Option("--check", help="Compare ONNX Runtime without optimisations with ONNX's reference.")] = False,
    in_place_of: Annotated[Path | None, Option(help="Your own ONNX file, which the run was made of: write its names and its rest.")] = None,
    *, as_json: Json = False, **options: Any,
) -> None:  # fmt: skip
    """Write the file of a stored plan for any target, and measure it there; exit 1 if a check fails.

    Neither the model nor data is needed. With --data, the loss is measured too.

    quantkit export runs/resnet20-0123abcd --target tensorrt --adapt --output resnet20.trt.onnx
    """

    def show() -> int:
        measured = Options(**_of_machine(options))
        with results_only():
            from quantkit.export.joining import write_in_place
            from quantkit.gating import examine
            from quantkit.runs.in_place import own_file
            from quantkit.runs.stored_plan import export_plan, read_plan
            from quantkit.settings import request
            from quantkit.verification import lint
            from quantkit.verification.reference_check import check_reference
            from quantkit.verification.side_by_side import random_feeds

            plan = read_plan(run)
            asked = request.resolve_check(given(options))
            place = None if in_place_of is None else own_file(plan, in_place_of)  # refused before anything is written
            exported = export_plan(plan, target, output, adapt=adapt)
            linted = lint.lint_file(output, target)
            found = examine.examine_file(
                output, target=target, planned=(plan.graph, exported.placement), float_file=plan.float_file, check=asked,
                threads=measured.threads, batch_size=measured.batch_size, seed=measured.seed,
            )  # fmt: skip
            checked = check_reference(output, random_feeds(output)).to_json() if check else None
            if place is not None:
                write_in_place(output, place, output)
        failures = found.failures(as_planned=True, int8_share=None)
        told = {"notes": list(exported.notes), "beside": [str(path) for path in exported.beside], "reference_check": checked}
        if as_json:
            print_json({**linted.to_json(), **told, "examined": found.to_json(), "failures": failures})
        else:
            for note in [*exported.notes, *(f"also written: {path}" for path in exported.beside)]:
                print(note)
            if checked is not None:
                tables.show_pairs("On random inputs, ONNX Runtime without optimisations against ONNX's reference", checked)
            tables.show_findings(linted.to_json(), [])
            tables.show_examined(found.to_json(), failures)
        return NOT_KEPT if linted.count("error") or failures else KEPT

    raise typer.Exit(exit_code(show))


@app.command()
@takes(Promise, Judged, Pixels, Machine, without=("target",))
def verify(
    file: Annotated[Path, Argument(help="A run directory, or an ONNX file, whoever made it.")],
    float_file: Annotated[Path | None, Option("--float", help="The network before it was quantized; a run has its own.")] = None,
    target: Annotated[str | None, Option(help="The runtime to run it in: default: the plan's own, else ort-cpu.")] = None,
    require_as_planned: Annotated[bool, Option("--require-as-planned", help="Fail if a layer does not run as planned.")] = False,
    require_int8: Annotated[str | None, Option(help="Fail if a smaller share of multiply-accumulates runs in int8, such as 95%.")] = None,
    parity: Annotated[bool, Option("--parity", help="For a run: fail if a layer computes other codes than the simulation.")] = False,
    *, as_json: Json = False, **options: Any,
) -> None:  # fmt: skip
    """Measure a file: what runs in int8, the loss on all of --data, and latency; exit 1 if a requirement is not met.

    quantkit verify model.int8.onnx --float model.onnx --data images/ --max-drop 0.5 --require-int8 95%
    """

    def show() -> int:
        measured = Options(**_of_machine(options))
        share = None if require_int8 is None else numbers("require-int8", require_int8.removesuffix("%"))[0] / 100
        with results_only():
            from quantkit.gating import examine
            from quantkit.settings import request

            found = examine.examine(
                file, target=target, float_file=float_file, check=request.resolve_check(given(options)),
                threads=measured.threads, batch_size=measured.batch_size, seed=measured.seed, parity=parity,
            )  # fmt: skip
        failures = found.failures(as_planned=require_as_planned, int8_share=share)
        if as_json:
            print_json({**found.to_json(), "failures": failures})
        else:
            tables.show_examined(found.to_json(), failures)
        return NOT_KEPT if failures else KEPT

    raise typer.Exit(exit_code(show))


@app.command()
def lint(
    file: Annotated[Path, Argument(help="Any quantized ONNX file.")],
    target: Annotated[str, Option(help="The runtime that it is for: ort-cpu, openvino, tensorrt or nbit.")] = "ort-cpu",
    strict: Annotated[bool, Option("--strict", help="Let warnings fail too.")] = False,
    fix: Annotated[Path | None, Option(help="Write a copy with the mechanical fixes made.")] = None,
    sarif: Annotated[Path | None, Option(help="Write the findings as SARIF.")] = None,
    as_json: Json = False,
) -> None:
    """Report how a runtime will execute a quantized ONNX file, without running it; exit 1 on errors.

    quantkit lint model.onnx --target tensorrt
    """

    def show() -> int:
        from quantkit.core.store import write_atomically
        from quantkit.verification import lint

        linted = lint.lint_file(file, target)
        fixed: list[str] = []
        if fix is not None:
            linted, fixed = lint.fix_file(file, target, fix)
        if sarif is not None:
            with write_atomically(sarif) as temporary:
                temporary.write_text(json.dumps(lint.to_sarif(str(file), linted.findings, lint.RULES[target], __version__), indent=1))
        if as_json:
            print_json({**linted.to_json(), "fixed": fixed})
        else:
            tables.show_findings(linted.to_json(), fixed)
        return NOT_KEPT if linted.count("error") or (strict and linted.count("warning")) else KEPT

    raise typer.Exit(exit_code(show))


@app.command()
def doctor(
    measure: Annotated[
        bool, Option("--measure", help="Run int8 layers on this machine: whether their sums saturate, and how fast they are.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Report what this machine's processor can do, which versions are installed, and which targets are usable.

    quantkit doctor --measure
    """

    def show() -> int:
        told = {**describe(), **{f"target {name}": found for name, found in usable_targets().items()}}
        if measure:
            from quantkit.verification import probe

            ratios = {f"int8 over float, {layer}": round(ratio, 2) for layer, ratio in probe.gains().items()}
            told |= {"int8 sums saturate": probe.saturates(), **ratios}
        if as_json:
            print_json({**told, "vnni": has_vnni()})
            return KEPT
        tables.show_pairs("This machine", told)
        exact = "int8 sums are exact (VNNI): the simulation can equal the file bit for bit"
        close = "no VNNI: other tools' int8 files may saturate 16-bit sums here; the codes that quantkit chooses cannot"
        tables.show_pairs("", {"note": exact if has_vnni() else close})
        return KEPT

    raise typer.Exit(exit_code(show))


@app.command()
@takes(Written)
def demo(*, as_json: Json = False, **options: Any) -> None:
    """Train a small network on handwritten digits and quantize it.

    quantkit demo --run runs/digits
    """

    def job(progress: ConsoleProgress) -> Result:
        from quantkit import pipeline
        from quantkit.cli import demo
        from quantkit.settings import request

        return pipeline.run(request.resolve(demo.build(progress), given(options)), progress)

    _judge(job, as_json)


def _of_machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that say how files are measured."""
    return {name: value for name, value in options.items() if name in rows(Machine)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, or that of the process; the exit code."""
    keep_freed_memory()
    command = typer.main.get_command(app)
    try:
        command.main(args=None if argv is None else list(argv), prog_name="quantkit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return KEPT


def recipe_main(recipe: Callable[[], object], argv: Sequence[str] | None = None) -> int:
    """`quantkit allocate` on the file that defines `recipe`, with the options in `argv`, or the process's; the exit code.

    Ends a recipe file: `if __name__ == "__main__": raise SystemExit(quantkit.recipe_main(recipe))`.
    """

    return exit_code(lambda: main(["allocate", _file_of(recipe), *(sys.argv[1:] if argv is None else argv)]))


def _file_of(recipe: Callable[[], object]) -> str:
    path = inspection.getsourcefile(recipe) if inspection.isfunction(recipe) else None
    if path is None:
        raise ConfigError(f"{recipe!r} is defined in no file", "the function recipe() of a recipe file", "put it into a .py file")
    return path


def _judge(job: Callable[[ConsoleProgress], Result], as_json: bool) -> None:
    """Run the job, show its result, and exit with the verdict."""

    def show(result: Result) -> int:
        if as_json:
            print_json(result.to_json())
        else:
            tables.show_result(result.to_json(), result.notes)
        return KEPT if result.kept else NOT_KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))
