"""The commands `measure`, which makes the tables of a run directory, and `pick`, which chooses a plan from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from quantkit.cli import flags, tables
from quantkit.cli.console import ConsoleProgress, print_json, worked
from quantkit.cli.exit_codes import KEPT, NOT_KEPT, exit_code
from quantkit.cli.plot import draw_front
from quantkit.settings.arguments import Arguments, Limits, Promise, given, rows
from quantkit.settings.bounds import BOUNDS, parse_bounds
from quantkit.settings.options import Options

if TYPE_CHECKING:
    from quantkit.pipeline import Measurement

UNMEASURED = ("max_drop", "keep", "time_limit", "undecided", "search", "output", "streamed")  # what only a promise and its search need


@flags.takes(Arguments, without=UNMEASURED)
def measure(model: flags.Model, *, as_json: flags.Json = False, **options: Any) -> None:
    """Measure sensitivities and costs into a run directory, without a promise or a search; `pick` and `allocate` continue from there.

    quantkit measure model.pt2 --data images/ --run runs/mine
    """

    def job(progress: ConsoleProgress) -> Measurement:
        from quantkit import pipeline
        from quantkit.settings import request

        return pipeline.measure(request.resolve(model, given(options), promised=False), progress)

    def show(measured: Measurement) -> int:
        if as_json:
            print_json({"run": str(measured.run), "front": measured.front, "seconds": measured.seconds})
        else:
            tables.show_front(measured.front, None)
            print(f"run folder  {measured.run}")
        return KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))


@flags.takes(Promise, Limits)
def pick(
    run: Annotated[Path, Argument(help="The run directory of `measure` or `allocate`.")],
    *, minimize: Annotated[str | None, Option(help="What to minimize (default: as measured).")] = None,
    latency_of: Annotated[str | None, Option(help="A device of `profile --import`, whose latency counts.")] = None,
    as_json: flags.Json = False, **options: Any,
) -> None:  # fmt: skip
    """Choose another plan from the tables of a run, without the network or data; `export` and `verify` then use it.

    quantkit pick runs/mine --max-drop 0.3 --max-bytes 1MB
    """

    def show() -> int:
        from quantkit.core.metric import parse_budget
        from quantkit.runs.pick import pick as choose

        bounds = parse_bounds({name: options.get(option) for name, option in BOUNDS.items()})
        Options(minimize=minimize or "latency", bounds=bounds)  # checks the words
        promised = {name: options.get(name) for name in rows(Promise)}
        budget = parse_budget(**promised) if any(value is not None for value in promised.values()) else None
        picked = choose(run, budget, bounds, minimize, latency_of)
        if as_json:
            print_json(picked.to_json())
        else:
            tables.show_picked(picked.to_json())
            drawn = draw_front(picked.front, picked.plan.allocation, picked.goal)
            if drawn is not None:
                print(f"\n{drawn}")
        return KEPT if picked.kept else NOT_KEPT

    raise typer.Exit(exit_code(show))


def profile(
    run: Annotated[Path, Argument(help="The run directory of `measure` or `allocate`.")],
    *, export: Annotated[Path | None, Option(help="A folder to be made: files to be timed on another device, and the script.")] = None,
    import_: Annotated[Path | None, Option("--import", help="The times.json that the script wrote there.")] = None,
    name: Annotated[str | None, Option(help="What the device is called (default: as the script was told).")] = None,
    as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Take a run's latencies to another device: ten files to be timed there, and back the table by which `pick --latency-of` chooses.

    quantkit profile runs/mine --export kit/

    quantkit profile runs/mine --import times.json
    """

    def job(progress: ConsoleProgress) -> tuple[str, dict[str, Any]]:
        from quantkit.core.errors import RequestError
        from quantkit.runs.device_kit import FILES, write_kit
        from quantkit.runs.device_table import read_times

        if export is not None and import_ is None:
            with progress.stage("write files", FILES, "files") as advance:
                kit = write_kit(run, export, advance)
            line = f"{kit.files} files in {kit.folder}; there: python time_files.py --name DEVICE; then --import times.json"
            return line, {"kit": str(kit.folder), "files": kit.files}
        if import_ is not None and export is None:
            known, device = read_times(run, import_, name)
            factors = ", ".join(f"{part} {factor:.3g}" for part, factor in device.factors.items())
            error = device.median_error_percent
            line = f"{known}: over this machine's time {factors}; files left out are off by {error:.1f} % (median)"
            return line, {"device": known, "factors": device.factors, "median_error_percent": error}
        got = "neither --export nor --import" if export is None else "both --export and --import"
        raise RequestError(got, "one of them", "pass --export KIT, and --import times.json when the files were timed")

    def show(done: tuple[str, dict[str, Any]]) -> int:
        if as_json:
            print_json(done[1])
        else:
            print(done[0])
        return KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))
