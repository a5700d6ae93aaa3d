"""Terminal output of the commands: the verdict, the file beside its baselines, what runs in which precision, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from quantkit.cli.console import Printed
from quantkit.core.spec import Allocation
from quantkit.report.format import certificate_line, comparison_rows, counted, interval_words, named, verdict_line
from quantkit.settings.bounds import show_amount, show_drop


def show_result(result: Mapping[str, Any], notes: Sequence[str]) -> None:
    """`result` is the object of `--json`; `notes` are the sentences that came with it (what binds, what would relax it)."""
    console = Printed()
    console.print(verdict_line(result), style="bold green" if result["kept"] else "bold red")
    for note in notes:
        console.print(note, markup=False)
    if result["certificate"]:
        console.print(certificate_line(result["certificate"], result["budget"]["unit"]), markup=False)
    console.print(_comparison(result))
    console.print(_schemes(result))
    console.print(_executed(result["executed"]), markup=False)
    for row in result.get("variants", ()):
        console.print(_variant(row), markup=False, soft_wrap=True)
    for label, path in _files(result):
        console.print(f"{label:<12}{path}", markup=False, soft_wrap=True)


def show_front(front: Mapping[str, Any], picked: Allocation | None) -> None:
    """The plans of a front, cheapest first: what they use, what was measured of them; the picked one stands out.

    Measured plans that no other beats in divergence, bytes and latency at once are shown too.
    """
    table = Table("", title="The front", box=None, title_justify="left")
    for heading in ("time", "size", "operations", "bits", "predicted loss", "measured drop", "divergence", "distance to front"):
        table.add_column(heading, justify="right")
    table.add_column("groups by scheme")
    rows = list(front["plans"])
    there = [row["allocation"] for row in rows]
    measured = [row for row in front["measured"] if row["allocation"] not in there]
    rows += [row for row in measured if row["allocation"] == picked or row.get("undominated")]
    for row in sorted(rows, key=lambda row: float(row["predicted_cost"])):
        looked, mine = row["measured"], row["allocation"] == picked
        seen = (show_drop(looked["drop"]), f"{looked['divergence']:.3g}") if looked else ("", "")
        uses = [show_amount(name, row["uses"][name]) for name in ("latency", "bytes", "bops", "average_bits")]
        counts = counted(list(row["allocation"].values()))
        away = "" if row["distance"] is None else f"{row['distance']:.3f}"
        table.add_row("→" if mine else "", *uses, f"{row['predicted_loss']:.3g}", *seen, away, counts, style="bold" if mine else "")
    console = Printed()
    console.print(table)
    volumes = [f"{kind} {value:.3f}" for kind, value in front["hypervolume"].items() if value is not None]
    console.print(f"hypervolume: {', '.join(volumes)}", markup=False)


def show_picked(picked: Mapping[str, Any]) -> None:
    """What was picked, and the front that it was picked from."""
    console = Printed()
    budget = picked["budget"]
    drop = "" if picked["drop"] is None else f"{show_drop(picked['drop'])} {budget['unit']} lost ({picked['drop_is']})"
    allowed = "" if budget["max_drop"] is None else f", at most {budget['max_drop']:.2f} allowed"
    uses = ", ".join(show_amount(name, value) for name, value in picked["uses"].items())
    line = f"{'Picked' if picked['kept'] else 'Nothing fits, the nearest'}: {drop}{allowed}{'; ' if drop else ''}{uses}"
    console.print(line, style="bold green" if picked["kept"] else "bold red", markup=False, soft_wrap=True)
    for note in picked["notes"]:
        console.print(note, markup=False, soft_wrap=True)
    show_front(picked["front"], picked["plan"]["allocation"])


def show_examined(examined: Mapping[str, Any], failures: Sequence[str]) -> None:
    """What was measured of a file, and which requirements are not met."""
    console = Printed()
    ran, verdict, latency = examined["executed"], examined["verdict"], examined["latency"]
    if failures:
        console.print(f"Requirements not met: {'; '.join(failures)}", style="bold red", markup=False, soft_wrap=True)
    told = f"{100 * ran['int8_macs']:.1f} % of the multiply-accumulates of {len(ran['nodes'])} weighted nodes run in int8"
    planned = {None: "", True: "; every layer runs as planned", False: f"; {len(ran['mismatches'])} layers do not run as planned"}
    console.print(told + planned[ran["as_planned"]], markup=False, soft_wrap=True)
    floats = [node["node"] for node in ran["nodes"] if node["precision"] == "float"]
    if floats:
        console.print(f"in float: {named(floats)}", markup=False, soft_wrap=True)
    if verdict:
        console.print(f"{show_drop(verdict['drop'])} lost ({interval_words(verdict)}, {verdict['n']} items)")
    if latency:
        interval = f"{latency['low']:.3f} to {latency['high']:.3f}"
        console.print(f"{latency['ratio']:.3f} of the float file's time ({interval}, threads: {latency['threads']})")
    if examined["session_options"]:
        told = ", ".join(f"{name}={value}" for name, value in examined["session_options"].items())
        console.print(f"session options: {told}", markup=False, soft_wrap=True)
    if examined["saturation"] and any(node["precision"] == "int8" for node in ran["nodes"]):
        console.print(saturation_line(examined["saturation"]), markup=False, soft_wrap=True)
    if examined["parity"]:
        for line in _parity(examined["parity"]):
            console.print(line, markup=False, soft_wrap=True)


def saturation_line(saturation: Mapping[str, Any]) -> str:
    """What the int8 sums give on another processor."""
    risky, here = saturation["layers_at_risk"], saturation["here"]
    if not risky:
        return "Its int8 sums give the same bits on every x86-64 CPU."
    return f"On CPUs without VNNI, {'as' if here else 'unlike'} this one, these {len(risky)} layers may saturate: {named(risky)}."


def _parity(parity: Mapping[str, Any]) -> list[str]:
    """What the simulation and the file agree in."""
    items = f"{parity['items']} {'random ' if parity['random_items'] else ''}items"
    why = " (no --data was given)" if parity["random_items"] else ""
    layers, bits = 100 * parity["layers_exact"], 100 * parity["exact"]
    told = f"{layers:.1f} % of the quantized layers compute the simulation's codes on {items}{why}; the outputs are equal in all bits on "
    return [f"{told}{bits:.1f} %", *parity["notes"]]


def show_findings(linted: Mapping[str, Any], fixed: Sequence[str]) -> None:
    """What was found in a file: rule, place, what happens there, and the fix."""
    console = Printed()
    if fixed:
        console.print(f"fixed: {', '.join(fixed)}; the copy is {linted['file']}", markup=False, soft_wrap=True)
    told = f"{linted['errors']} errors, {linted['warnings']} warnings for {linted['target']}"
    console.print(f"{linted['file']}: {told}", style="bold red" if linted["errors"] else "bold", markup=False, soft_wrap=True)
    for finding in linted["findings"]:
        colour = "red" if finding["severity"] == "error" else "yellow"
        console.print(f"{finding['rule']} {finding['severity']}", style=colour, end="  ")
        console.print(f"{finding['node']} {finding['happens']}. Fix: {finding['fix']}", markup=False, soft_wrap=True)


def show_pairs(title: str, pairs: Mapping[str, object]) -> None:
    """Names and values in two columns."""
    table = Table("", "", title=title, box=None, show_header=False, title_justify="left")
    for name, value in pairs.items():
        table.add_row(name, "not installed" if value is None else str(value))
    Printed().print(table)


def _comparison(result: Mapping[str, Any]) -> Table:
    latency, size, rows = result["latency"], result["bytes"], comparison_rows(result)
    timed = f", {latency['threads']} thread(s), batch {latency['batch']}" if latency else ""
    table = Table("", title=f"\nMeasured on the files{timed}", box=None, title_justify="left", caption_justify="left")
    if latency:
        table.caption = f"time of this plan: {latency['low']:.2f} to {latency['high']:.2f} of the float file's, at 95 % confidence"
    for heading in (f"lost ({result['budget']['unit']})", *(("time", "vs float") if latency else ()), "size", "vs float"):
        table.add_column(heading, justify="right")
    for row in rows:
        times = (f"{latency['float_ms'] * row['latency_ratio']:.2f} ms", f"{row['latency_ratio']:.2f}×") if latency else ()
        sizes = (f"{size['float'] * row['bytes_ratio'] / 1e3:,.0f} kB", f"{row['bytes_ratio']:.2f}×")
        table.add_row(row["name"], show_drop(row["drop"]), *times, *sizes, style="bold" if row is rows[-1] else "")
    return table


def _schemes(result: Mapping[str, Any]) -> Table:
    table = Table("scheme", title="\nThe plan", box=None, title_justify="left")
    table.add_column("groups", justify="right")
    table.add_column("weights in the file", justify="right")
    table.add_column("which", overflow="fold")
    for scheme in sorted({row["scheme"] for row in result["allocation"]}):
        rows = [row for row in result["allocation"] if row["scheme"] == scheme]
        table.add_row(scheme, str(len(rows)), f"{sum(row['bytes'] for row in rows) / 1e3:,.0f} kB", named([row["group"] for row in rows]))
    return table


def _executed(executed: Mapping[str, Any]) -> str:
    share = f"{100 * executed['int8_macs']:.1f} % of the multiply-accumulates run in int8"
    if executed["as_planned"]:
        return f"\nThe runtime runs every layer as planned; {share}.\n"
    return f"\nThe runtime does not run these as planned: {named([str(mismatch) for mismatch in executed['mismatches']])}; {share}.\n"


def _variant(row: Mapping[str, Any]) -> str:
    """Another form of the network: what its file takes of its own float file, and how exact it is."""
    latency, time = row["latency"], ""
    if latency:
        time = f", {latency['ratio']:.2f} of its time ({latency['quantized_ms']:.3g} ms a call)"
    differs = "" if row["exact"] == 1 else f"; {100 * (row['layers_exact'] or 0):.1f} % of its layers compute the simulation's codes"
    planned = "as planned" if row["as_planned"] else "not as planned"
    lengths = [f"{one['latency']['ratio']:.2f} at {one['length']}" for one in row.get("lengths", ()) if one["latency"]]
    mixed = f"; by length {', '.join(lengths)}, together {row['mixed_ratio']:.2f}" if lengths else ""
    whose = "your file's" if row["name"] == "drop-in" else "its float file's"
    return f"{row['name']}.onnx: {row['bytes_ratio']:.2f} of {whose} bytes{time}; it runs {planned}{differs}{mixed}"


def _files(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    files = result["files"]
    pairs = [("file", files["onnx"]), ("float file", files["float_onnx"]), ("session", files["session"]), ("run folder", result["run"])]
    return [(label, path) for label, path in pairs if path is not None]
