"""The commands that read a run: `report` for people, `explain` one layer, `diff` two plans. They measure nothing and load no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from quantkit.cli import flags
from quantkit.cli.console import print_json
from quantkit.cli.exit_codes import KEPT, exit_code
from quantkit.cli.report_tables import show_comparison, show_explanation

if TYPE_CHECKING:
    from quantkit.report.run_data import Evidence
    from quantkit.report.vega import Chart

Run = Annotated[Path, Argument(help="The run directory of `allocate` or `measure`.")]


def report(
    run: Run,
    output: Annotated[
        Path | None, Option(help="The file to write (default: report.html in the run directory; Markdown goes to stdout).")
    ] = None,
    markdown: Annotated[bool, Option("--markdown", help="Markdown, short enough for a pull request, instead of the page.")] = False,
    plots: Annotated[Path | None, Option(help="A folder for the charts as SVG and PNG, beside the page.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Write a run as one HTML page that opens offline: verdict, front, layers, predictions, time, interactions, baselines.

    quantkit report runs/mine --output report.html
    """

    def show() -> int:
        from quantkit.report.run_data import read_evidence

        evidence = read_evidence(run)
        if markdown:
            return _write_markdown(evidence, output, plots, as_json)
        from quantkit.report.page import write_page
        from quantkit.report.plots import write_plots

        path = output or run / "report.html"
        charts = write_page(evidence, path)
        written = write_plots(charts, plots) if plots else ()
        told: dict[str, Any] = {
            "file": str(path),
            "bytes": path.stat().st_size,
            "plots": [str(plot) for plot in written],
            "absent": _absent(charts),
        }
        if as_json:
            print_json(told)
        else:
            for name, why in told["absent"].items():
                print(f"no chart {name!r}: {why}")
            for written_to in (told["file"], *told["plots"]):
                print(written_to)
        return KEPT

    raise typer.Exit(exit_code(show))


def explain(
    run: Run,
    layer: Annotated[str, Argument(help="A layer, a group, or an operation that stays float, by its name in `inspect` and the report.")],
    as_json: flags.Json = False,
) -> None:
    """Explain why a layer has its scheme: what each scheme would do, what was tried, what forbids the rest, with whom it interacts.

    quantkit explain runs/mine features.0
    """

    def show() -> int:
        from quantkit.report.explain import explain as explain_layer
        from quantkit.report.run_data import read_evidence

        found = explain_layer(read_evidence(run), layer).to_json()
        if as_json:
            print_json(found)
        else:
            show_explanation(found)
        return KEPT

    raise typer.Exit(exit_code(show))


def diff(
    run: Annotated[Path, Argument(help="The run directory of the plan before.")],
    other: Annotated[Path, Argument(help="The run directory of the plan after.")],
    as_json: flags.Json = False,
) -> None:
    """Compare two plans: what changed and what it did, layer by layer as predicted, and as measured on the files.

    quantkit diff runs/before runs/after
    """

    def show() -> int:
        from quantkit.report.comparison import compare
        from quantkit.report.run_data import read_evidence

        found = compare(read_evidence(run), read_evidence(other)).to_json()
        if as_json:
            print_json(found)
        else:
            show_comparison(found)
        return KEPT

    raise typer.Exit(exit_code(show))


def _write_markdown(evidence: Evidence, output: Path | None, plots: Path | None, as_json: bool) -> int:
    """To `output`, or to standard output; the charts beside it are made only if asked for."""
    from quantkit.core.store import write_atomically
    from quantkit.report.markdown import to_markdown

    text = to_markdown(evidence)
    written: tuple[Path, ...] = ()
    if plots is not None:
        from quantkit.report.page import charts_of
        from quantkit.report.plots import write_plots

        written = write_plots(charts_of(evidence), plots)
    if output is not None:
        with write_atomically(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"file": None if output is None else str(output), "markdown": text, "plots": [str(plot) for plot in written]})
    else:
        print(text if output is None else output, end="" if output is None else "\n")
    return KEPT


def _absent(charts: dict[str, Chart]) -> dict[str, str]:
    return {name: chart.absent for name, chart in charts.items() if chart.spec is None}
