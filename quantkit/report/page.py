"""The report of a run as one HTML file that loads nothing else: charts by Vega-Lite, whose code is in the file.

A content security policy in the page forbids every request; what is drawn is also there as tables and words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from quantkit.core.errors import RequestError
from quantkit.core.store import write_atomically
from quantkit.report.charts import baseline_chart, front_chart, plan_rows, prediction_chart
from quantkit.report.format import bound_words, leaves, named, number, verdict_line
from quantkit.report.layers import interaction_chart, sensitivity_chart, time_chart
from quantkit.report.network import network_chart
from quantkit.report.run_data import MEASURED_ONLY, Evidence
from quantkit.report.vega import Chart, Row

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
BUNDLED = "window.vegaEmbed = vegaEmbed;"
SECTIONS = ("front", "sensitivity", "network", "prediction", "time", "interactions", "baselines")


def charts_of(evidence: Evidence) -> dict[str, Chart]:
    """Every chart by name, in the order of the page."""
    plans = plan_rows(evidence)
    found = [
        front_chart(evidence, plans), sensitivity_chart(evidence), network_chart(evidence), prediction_chart(evidence, plans),
        time_chart(evidence), interaction_chart(evidence), baseline_chart(evidence),
    ]  # fmt: skip
    return {chart.name: chart for chart in found}


def write_page(evidence: Evidence, path: Path) -> dict[str, Chart]:
    """Write the page to `path`; its charts. Raises RequestError where the charting library is not installed."""
    library, charts = load_library().javascript_bundle(BUNDLED), charts_of(evidence)
    with write_atomically(path) as temporary:
        temporary.write_text(render(evidence, charts, library), encoding="utf-8")
    return charts


def load_library() -> Any:
    """vl-convert, which holds Vega-Lite and draws without a browser. Raises RequestError where it is not installed."""
    try:
        import vl_convert
    except ImportError as error:
        raise RequestError("vl-convert-python is not installed", "", "pip install 'quantkit[report]', or pass --markdown") from error
    return vl_convert


def render(evidence: Evidence, charts: Mapping[str, Chart], library: str) -> str:
    """The text of the page; `library` is the JavaScript that defines vegaEmbed."""
    title = f"{evidence.name} · quantkit"
    plans = plan_rows(evidence)
    data = {
        "charts": {name: chart.spec for name, chart in charts.items() if chart.spec is not None},
        "numbers": {name: list(chart.rows) for name, chart in charts.items() if chart.rows},
        "plans": plans,
        "groups": [{"group": group.name, "layers": list(group.layers)} for group in evidence.groups],
        "plan": [evidence.allocation.get(group.name) for group in evidence.groups],
        "result": evidence.result,
    }
    sections = [_verdict(evidence)]
    for name in SECTIONS:
        more = _plans(plans, evidence) if name == "front" and plans else ""
        sections.append(_section(charts[name], more))
    sections += [_layers(evidence), _environment(evidence), _numbers(evidence)]
    titles = {"verdict": "Verdict", **{name: charts[name].title for name in SECTIONS}}
    titles |= {"layers": "Layers", "environment": "Environment", "numbers": "All numbers"}
    links = " ".join(f'<a href="#{name}">{escape(told)}</a>' for name, told in titles.items())
    return "\n".join(
        (
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">',
            f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_asset("page.css")}</style></head><body>',
            f'<a class="skip" href="#verdict">Skip to the verdict</a><nav aria-label="Sections">{links}</nav><main>',
            *sections,
            "</main><noscript><p>The charts need JavaScript; the tables do not.</p></noscript>",
            f'<script type="application/json" id="data">{_embedded(data)}</script>',
            f"<script>{_inlined(library)}</script><script>{_inlined(_asset('page.js'))}</script></body></html>",
        )
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "", attributes: Iterable[str] = ()) -> str:
    """An HTML table; numbers stand to the right, and `attributes` are those of the rows, if any."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    marked = list(attributes)
    body = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{_kind(value)}>{_cell(value)}</td>" for value in row)
        body.append(f"<tr{' ' + marked[place] if marked else ''}>{cells}</tr>")
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{told}<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _verdict(evidence: Evidence) -> str:
    """Whether the promise was kept, by how much and with which confidence, and the notes."""
    result = evidence.result
    head = f"<h1>{escape(evidence.name)}</h1>"
    asked = evidence.request["options"]
    said = f"Target {asked['target']}, minimized: {asked['minimize']}, sensitivity {asked['sensitivity']}, search {asked['search']}."
    picked = "<p>A plan was picked later; the charts show it as this plan. The verdict is that of the allocated plan.</p>"
    if result is None:
        return f'<section id="verdict">{head}<p class="verdict">{MEASURED_ONLY}.</p><p>{escape(said)}</p></section>'
    ran, parity = result["executed"], result["simulation"]
    share = f"{100 * ran['int8_macs']:.1f} % of the multiply-accumulates run in int8"
    planned = "The runtime runs every layer as planned" if ran["as_planned"] else f"Not run as planned: {named(ran['mismatches'])}"
    lines = [f"{planned}; {share}.", *evidence.notes]
    lines += [
        f"{row['name'].replace('_', ' ')}: {bound_words(row)}, {'kept' if row['kept'] else 'not kept'}." for row in result.get("bounds", ())
    ]
    lines.append(f"The simulation in torch gives the file's bits on {100 * parity['exact']:.1f} % of {parity.get('items', 'the')} items.")
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    state = "kept" if result["kept"] else "broken"
    return (
        f'<section id="verdict">{head}<p class="verdict {state}">{escape(verdict_line(result))}</p><p>{escape(said)}</p>'
        f"{picked if evidence.picked else ''}<ul>{items}</ul></section>"
    )


def _section(chart: Chart, more: str) -> str:
    """A chart, or in words why there is none."""
    head = f'<section id="{chart.name}"><h2>{escape(chart.title)}</h2>'
    if chart.spec is None:
        return f'{head}<p class="absent">{escape(chart.absent)}</p></section>'
    numbers = f'<details data-numbers="{chart.name}"><summary>The numbers of this chart</summary></details>' if chart.rows else ""
    drawn = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(chart.title)}"><div id="chart-{chart.name}"></div></div>'
    return f"{head}<figure>{drawn}<figcaption>{escape(chart.reading)}</figcaption></figure>{numbers}{more}</section>"


def _plans(plans: Sequence[Row], evidence: Evidence) -> str:
    """Each plan with a button that does what a click in the chart does, and the place where its table appears."""
    costs = [name for name in ("latency", "bytes", "bops", "average_bits") if name in plans[0]]
    headings = (
        "",
        "plan",
        *(name.replace("_", " ") for name in costs),
        "predicted loss",
        "measured drop",
        "divergence",
        "groups by scheme",
    )
    rows = [
        (_Html(f'<button type="button" data-plan="{row["id"]}" aria-pressed="false">plan {row["id"]}</button>'), row["kind"],
         *(row[name] for name in costs), row["loss"], row["drop"], row["divergence"], row["groups"])
        for row in plans
    ]  # fmt: skip
    told = f"All plans, cheapest in {evidence.goal.replace('_', ' ')} first"
    return f'{table(headings, rows, caption=told)}<div id="plan" aria-live="polite"></div>'


def _layers(evidence: Evidence) -> str:
    """A row for each group: its scheme, what it costs, and its score under every scheme."""
    loss = evidence.predictor.loss if evidence.predictor else None
    schemes = evidence.schemes if loss else ()
    chosen = {row["group"]: row for row in (evidence.result or {}).get("allocation", ())}
    headings = ("group", "layers", "reason for the group", "scheme", "ms", "bytes", *(f"score in {scheme}" for scheme in schemes))
    rows, attributes = [], []
    for group in evidence.groups:
        row = chosen.get(group.name, {})
        losses = [loss.at(group.name, scheme) if loss and scheme in group.schemes else None for scheme in schemes]
        layers = "" if group.layers == (group.name,) else " ".join(group.layers)
        rows.append(
            (group.name, layers, group.reason, evidence.allocation.get(group.name, "–"), row.get("latency_ms"), row.get("bytes"), *losses)
        )
        attributes.append(f'data-layers="{escape(" ".join(group.layers))}" tabindex="-1"')
    said = "<p><code>quantkit explain RUN LAYER</code> explains why a layer has its scheme.</p>"
    return f'<section id="layers"><h2>Layers</h2>{said}{table(headings, rows, attributes=attributes)}</section>'


def _environment(evidence: Evidence) -> str:
    """Machine, request, data, and time by stage."""
    result = evidence.result or {}
    data = [
        (name, part["items"], part["fingerprint"]) for name, part in evidence.request["data"].items()
    ]  # fmt: skip
    parts = [
        table(("what", "value"), result.get("environment", {}).items(), caption="Machine and versions"),
        table(("option", "value"), leaves(evidence.request["options"]), caption="Request"),
        table(("split", "items", "fingerprint"), data, caption="Data"),
        table(("stage", "seconds"), result.get("seconds", {}).items(), caption="Time by stage"),
    ]
    return f'<section id="environment"><h2>Environment</h2><div class="columns">{"".join(parts)}</div></section>'


def _numbers(evidence: Evidence) -> str:
    """result.json, leaf by leaf, as it is written there."""
    if evidence.result is None:
        return f'<section id="numbers"><h2>All numbers</h2><p class="absent">{MEASURED_ONLY}.</p></section>'
    rows = [(path, _Html(escape(json.dumps(value, ensure_ascii=False)))) for path, value in leaves(evidence.result)]
    told = f"<details><summary>All {len(rows):,} values of result.json</summary>{table(('path', 'value'), rows)}</details>"
    return f'<section id="numbers"><h2>All numbers</h2>{told}</section>'


class _Html(str):
    """Text that is markup already."""

    __slots__ = ()


def _cell(value: Any) -> str:
    return value if isinstance(value, _Html) else escape(number(value))


def _kind(value: Any) -> str:
    return ' class="number"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _embedded(data: Any) -> str:
    """JSON that no markup can be in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _inlined(script: str) -> str:
    """JavaScript that cannot end its own element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return files("quantkit.report").joinpath(name).read_text(encoding="utf-8")
