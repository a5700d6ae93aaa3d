"""The charts of plans: the front, predictions against measurements, baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.report.format import comparison_rows, counted
from quantkit.report.run_data import MEASURED_ONLY, OLD, Evidence
from quantkit.report.vega import ALERT, SHORT, TINY, UNITS, Chart, Row, Spec, decades, document, loss_axis, quantity, rounded, tips

WIDTH, HEIGHT = 430, 300
PLAN_TIPS = {
    "label": "plan", "latency": "latency, ms (predicted)", "bytes": "bytes (predicted)", "loss": "predicted loss",
    "divergence": "measured divergence", "drop": "measured drop", "groups": "groups by scheme",
}  # fmt: skip
MARKS = {
    "on the front": ("#0072B2", "circle"), "measured beside it": ("#E69F00", "square"), "this plan": (ALERT, "triangle-up"),
    "held out": ("#009E73", "diamond"),
}  # fmt: skip
KINDS = list(MARKS)[:3]
KIND: Spec = {"field": "kind", "type": "nominal", "title": "plan", "legend": {"orient": "top"}}
COLOUR: Spec = {**KIND, "scale": {"domain": KINDS, "range": [MARKS[kind][0] for kind in KINDS]}}
SHAPE: Spec = {**KIND, "scale": {"domain": KINDS, "range": [MARKS[kind][1] for kind in KINDS]}}


def plan_rows(evidence: Evidence) -> list[Row]:
    """Every plan of front.json once, cheapest first: what it uses, what is predicted and what was measured of it."""
    front = evidence.front or {"plans": [], "measured": []}
    known: dict[tuple[tuple[str, str], ...], Mapping[str, Any]] = {}
    for row in (*front["plans"], *front["measured"]):
        known.setdefault(tuple(sorted(row["allocation"].items())), row)
    ahead = {tuple(sorted(row["allocation"].items())) for row in front["plans"]}
    ordered = sorted(known.items(), key=lambda item: (item[1]["uses"].get(evidence.goal, 0.0), item[1]["predicted_loss"]))
    found = []
    for place, (key, row) in enumerate(ordered, 1):
        look, mine = row["measured"] or {}, row["allocation"] == dict(evidence.allocation)
        kind = "this plan" if mine else "on the front" if key in ahead else "measured beside it"
        measured = {name: rounded(look.get(name)) for name in ("drop", "low", "high", "divergence")}
        found.append(
            {
                "id": place, "label": f"plan {place}", "kind": kind, "mine": mine, "front": key in ahead,
                **{name: rounded(value) for name, value in row["uses"].items()}, "loss": rounded(row["predicted_loss"]), **measured,
                "distance": rounded(row["distance"]), "groups": counted(list(row["allocation"].values())),
                "schemes": [row["allocation"].get(group.name) for group in evidence.groups],
            }
        )  # fmt: skip
    return found


def front_chart(evidence: Evidence, plans: list[Row]) -> Chart:
    """Predicted loss against cost, and measured drop against cost, side by side; a click chooses a plan in both."""
    reading = (
        "Each mark is a plan. Left: what is predicted, with the front as a line; right: what was measured on the search split, with 95 % "
        "intervals and the promise as a dashed line. Lower and further left is better. Hover for a plan in short; click it, or use the "
        "buttons below, for its layers and schemes."
    )
    if not plans:
        return Chart("front", "The front", reading, None, OLD)
    x = quantity(evidence.goal, f"{UNITS[evidence.goal]}, predicted")
    shared: Spec = {"x": x, "color": COLOUR, "shape": SHAPE, "tooltip": tips(PLAN_TIPS)}
    ring: Spec = {
        "mark": {"type": "point", "size": 320, "strokeWidth": 2, "color": ALERT, "filled": False},
        "transform": [{"filter": "datum.id === chosen"}],
    }
    loss_unit = evidence.front["unit"]["loss"] if evidence.front else ""
    loss = loss_axis("loss", f"predicted loss ({loss_unit})", [row["loss"] for row in plans])
    marks: Spec = {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "cursor": "pointer"}}
    predicted: list[Spec] = [
        {"transform": [{"filter": "datum.front"}], "mark": {"type": "line", "color": "#0072B2"}, "encoding": {"x": x, "y": loss}},
        {**marks, "encoding": {**shared, "y": loss}},
        {**ring, "encoding": {"x": x, "y": loss}},
    ]
    budget, unit = _budget(evidence)
    drop = quantity("drop", f"measured drop ({unit})")
    whole: Spec = {"filter": "isValid(datum.drop)"}
    measured: list[Spec] = [
        {
            "transform": [whole], "mark": {"type": "rule", "opacity": 0.45},
            "encoding": {"x": x, "y": {**drop, "field": "low"}, "y2": {"field": "high"}},
        },
        {**marks, "transform": [whole], "encoding": {**shared, "y": drop}},
        {**ring, "encoding": {"x": x, "y": drop}, "transform": [whole, *ring["transform"]]},
    ]  # fmt: skip
    if budget is not None:
        line = {"mark": {"type": "rule", "strokeDash": [5, 4], "color": ALERT}, "data": {"values": [{"budget": budget}]}}
        measured.append({**line, "encoding": {"y": {"field": "budget", "type": "quantitative"}}})
    start = next((row["id"] for row in plans if row["mine"]), plans[0]["id"])
    panels = [{"width": WIDTH, "height": HEIGHT, "layer": layers} for layers in (predicted, measured)]
    spec = document({"params": [{"name": "chosen", "value": start}], "hconcat": panels}, marks_of(plans))
    return Chart("front", "The front", reading, spec)


def prediction_chart(evidence: Evidence, plans: list[Row]) -> Chart:
    """Predicted loss against measured divergence, and predicted latency against measured, each with the line on which both agree."""
    reading = (
        "Each mark is a plan. On the line, prediction and measurement agree; the order along it is what a search needs. Left: the loss "
        "predicted from the tables against the divergence of the outputs that was measured. Right: milliseconds predicted against "
        "measured, of held-out plans, and of this plan's file."
    )
    losses = [
        {"label": row["label"], "predicted": row["loss"], "measured": row["divergence"], "kind": row["kind"]}
        for row in plans if row["divergence"] and row["divergence"] > 0 and row["loss"] > 0
    ]  # fmt: skip
    times: list[Row] = [
        {"label": f"tested plan {place}", "predicted": rounded(one), "measured": rounded(other), "kind": "held out"}
        for place, (one, other) in enumerate((evidence.fit or {}).get("tested", ()), 1)
    ]
    times += _own_time(evidence)
    panels = []
    for rows, unit, log in ((losses, evidence.predictor.loss.unit if evidence.predictor else "", True), (times, "ms", False)):
        if rows:
            panels.append(_against(rows, unit, log=log))
    if not panels:
        return Chart("prediction", "Predicted against measured", reading, None, f"No plan was both predicted and measured. {OLD}")
    said = _absent_half(losses, times)
    spec = document({"hconcat": panels, "resolve": {"scale": {"color": "independent", "shape": "independent"}}}, [])
    numbers = tuple({"what": what, **row} for what, found in (("loss", losses), ("latency", times)) for row in found)
    return Chart("prediction", "Predicted against measured", f"{reading}{said}", spec, rows=numbers)


def baseline_chart(evidence: Evidence) -> Chart:
    """This plan beside the float network and the baselines: drop, time and bytes."""
    reading = (
        "Bars to the left are better. Drop is in the metric's unit; time and bytes are shares of the float file's, measured side by side."
    )
    if evidence.result is None:
        return Chart("baselines", "Baselines", reading, None, MEASURED_ONLY)
    unit = evidence.result["budget"]["unit"]
    measures = {"drop": f"drop ({unit})", "latency_ratio": "time, relative to float", "bytes_ratio": "bytes, relative to float"}
    rows = [
        {"name": row["name"], "measure": title, "value": rounded(row[key]), "mine": row["name"] == "this plan"}
        for row in comparison_rows(evidence.result) for key, title in measures.items() if row[key] is not None
    ]  # fmt: skip
    names = [row["name"] for row in comparison_rows(evidence.result)]
    spec: Spec = {
        "facet": {"column": {"field": "measure", "type": "nominal", "title": None, "sort": list(measures.values())}},
        "spec": {
            "width": 210,
            "height": {"step": 26},
            "encoding": {
                "y": {"field": "name", "type": "nominal", "title": None, "sort": names, "axis": {"labelLimit": 260}},
                "x": {"field": "value", "type": "quantitative", "title": None},
            },
            "layer": [
                {
                    "mark": {"type": "bar", "height": 16},
                    "encoding": {
                        "color": {"condition": {"test": "datum.mine", "value": "#0072B2"}, "value": "#8c8c8c"},
                        "tooltip": tips({"name": "file", "measure": "measure", "value": "value"}),
                    },
                },
                {
                    "transform": [{"calculate": "max(datum.value, 0)", "as": "end"}],
                    "mark": {"type": "text", "align": "left", "dx": 4},
                    "encoding": {"x": {"field": "end", "type": "quantitative"}, "text": {"field": "value", "format": ".2f"}},
                },
            ],
        },
        "resolve": {"scale": {"x": "independent"}},
    }
    return Chart("baselines", "Baselines", reading, document(spec, rows), rows=tuple(rows))


def marks_of(plans: list[Row]) -> list[Row]:
    """The rows without what no mark shows."""
    return [{key: value for key, value in row.items() if key != "schemes"} for row in plans]


def _own_time(evidence: Evidence) -> list[Row]:
    """This plan's predicted and measured milliseconds, where its latency is in them."""
    latency = (evidence.result or {}).get("latency")
    if not latency or evidence.predictor is None or evidence.picked or evidence.predictor.resources["latency"].table.unit != "ms":
        return []
    predicted = evidence.predictor.used(evidence.allocation)["latency"]
    return [{"label": "this plan", "predicted": rounded(predicted), "measured": rounded(latency["quantized_ms"]), "kind": "this plan"}]


def _against(rows: list[Row], unit: str, *, log: bool) -> Spec:
    """One panel of measured against predicted."""
    ends = [value for row in rows for value in (row["predicted"], row["measured"])]
    line = [{"predicted": value, "measured": value} for value in (min(ends), max(ends))]
    scale: Spec = {"type": "log"} if log else {"zero": False}
    axis: Spec = {"values": decades(min(ends), max(ends)), "labelExpr": TINY} if log else {"tickCount": 6, "labelExpr": SHORT}
    x, y = (
        {"field": field, "type": "quantitative", "title": f"{field} ({unit})", "scale": scale, "axis": axis}
        for field in ("predicted", "measured")
    )
    kinds = {kind: look for kind, look in MARKS.items() if any(row["kind"] == kind for row in rows)}
    colours = {**KIND, "scale": {"domain": list(kinds), "range": [look[0] for look in kinds.values()]}}
    shapes = {**KIND, "scale": {"domain": list(kinds), "range": [look[1] for look in kinds.values()]}}
    mark = {"type": "point", "filled": True, "size": 80, "opacity": 1}
    tooltip = tips({"label": "plan", "predicted": "predicted", "measured": "measured"})
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "title": {"text": "loss and divergence" if log else "latency", "anchor": "start", "fontSize": 12},
        "layer": [
            {"data": {"values": line}, "mark": {"type": "line", "strokeDash": [5, 4], "color": "#8c8c8c"}, "encoding": {"x": x, "y": y}},
            {"data": {"values": rows}, "mark": mark, "encoding": {"x": x, "y": y, "color": colours, "shape": shapes, "tooltip": tooltip}},
        ],
    }


def _absent_half(losses: list[Row], times: list[Row]) -> str:
    if not times:
        return " Latency was modelled or not tested in this run, so there is nothing to compare with."
    return "" if losses else " No plan's divergence was measured in this run."


def _budget(evidence: Evidence) -> tuple[float | None, str]:
    """What may be lost, in the metric's unit, and that unit."""
    if evidence.result is not None:
        budget = evidence.result["budget"]
        return float(budget["max_drop"]), str(budget["unit"])
    return None, str(evidence.tables.get("judging", {}).get("unit", ""))
