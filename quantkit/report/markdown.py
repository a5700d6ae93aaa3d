"""The report in Markdown, short enough for a pull request: verdict, comparison, plan, what binds; layers in a fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from quantkit.report.charts import plan_rows
from quantkit.report.format import bound_words, comparison_rows, counted, named, number, verdict_line
from quantkit.report.run_data import MEASURED_ONLY, Evidence
from quantkit.settings.bounds import show_amount, show_drop


def to_markdown(evidence: Evidence) -> str:
    """The whole text, which ends in a line end."""
    result = evidence.result
    parts = [f"## quantkit: {evidence.name}"]
    if result is None:
        parts.append(f"{MEASURED_ONLY}.")
    else:
        parts += [f"**{verdict_line(result)}**", _comparison(result), _plan(evidence), _sentences(evidence)]
    parts += [_front(evidence), _layers(evidence)]
    if result is not None:
        machine = ", ".join(f"{name} {value}" for name, value in result["environment"].items() if value is not None)
        parts.append(f"<sub>{machine} · fingerprint {result['fingerprint'][:12]}</sub>")
    return "\n\n".join(part for part in parts if part) + "\n"


def _comparison(result: Any) -> str:
    latency, size = result["latency"], result["bytes"]
    headings = [f"lost ({result['budget']['unit']})", *(("time", "vs float") if latency else ()), "size", "vs float"]
    rows = []
    for row in comparison_rows(result):
        times = [f"{latency['float_ms'] * row['latency_ratio']:.2f} ms", f"{row['latency_ratio']:.2f}"] if latency else []
        sizes = [show_amount("bytes", size["float"] * row["bytes_ratio"]), f"{row['bytes_ratio']:.2f}"]
        name = f"**{row['name']}**" if row["name"] == "this plan" else row["name"]
        rows.append([name, show_drop(row["drop"]), *times, *sizes])
    return _table(["", *headings], rows)


def _plan(evidence: Evidence) -> str:
    schemes = list(evidence.allocation.values())
    few = min(sorted(set(schemes)), key=schemes.count, default="")
    which = [name for name, scheme in evidence.allocation.items() if scheme == few]
    rare = f" ({few}: {named(which)})" if len(set(schemes)) > 1 else ""
    picked = " This plan was picked after the verdict." if evidence.picked else ""
    return f"Plan: {counted(schemes)}{rare}.{picked}"


def _sentences(evidence: Evidence) -> str:
    result = evidence.result or {}
    ran = result["executed"]
    planned = "Every layer runs as planned" if ran["as_planned"] else f"Not run as planned: {named(ran['mismatches'])}"
    lines = [f"{planned}; {100 * ran['int8_macs']:.1f} % of the multiply-accumulates run in int8.", *evidence.notes]
    lines += [f"{row['name'].replace('_', ' ')}: {bound_words(row)}." for row in result.get("bounds", ())]
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _front(evidence: Evidence) -> str:
    plans = plan_rows(evidence)
    if not plans:
        return ""
    costs = [name for name in ("latency", "bytes", "bops", "average_bits") if name in plans[0]]
    headings = ["", *(name.replace("_", " ") for name in costs), "predicted loss", "measured drop", "groups by scheme"]
    rows = [
        ["**this plan**" if row["mine"] else "", *(show_amount(name, row[name]) for name in costs),
         number(row["loss"]), number(row["drop"]), row["groups"]]
        for row in plans if row["front"] or row["mine"]
    ]  # fmt: skip
    return _folded("The front", _table(headings, rows))


def _layers(evidence: Evidence) -> str:
    if evidence.result is None:
        return ""
    rows = [
        [row["group"], row["scheme"], number(row["sensitivity"]), number(row["latency_ms"]), number(row["bytes"])]
        for row in evidence.result["allocation"]
    ]  # fmt: skip
    return _folded("Layers", _table(["group", "scheme", "sensitivity", "ms", "bytes"], rows))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that cannot end a cell or begin markup of its own."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
