"""The charts of layers: what quantizing one does against what it costs, where the time goes, who interacts with whom."""

from __future__ import annotations

import numpy as np

from quantkit.core.spec import Scheme
from quantkit.core.table import Interactions
from quantkit.report.run_data import MEASURED_ONLY, OLD, Evidence
from quantkit.report.vega import Chart, Row, Spec, colour, document, loss_axis, quantity, rounded, shape, tips

MOST = 64  # groups in the heat map: beyond that no cell can be seen, and the page grows with the square
LEAST = 0.25  # correlation at the ends of the colours, so that noise does not look like structure
REST = "outside the layers"


def sensitivity_chart(evidence: Evidence) -> Chart:
    """One mark a group: the loss and the cost under a scheme that the reader chooses, in the colour of the plan's own scheme."""
    reading = (
        "Each mark is a group: its score when it is quantized as chosen below the chart (up), against what it then costs (right), in the "
        "colour and shape of the scheme that the plan gave it. High and left: sensitive and small, so best kept precise; low and "
        "right: where quantizing pays."
    )
    predictor = evidence.predictor
    if predictor is None:
        return Chart("sensitivity", "Sensitivity against cost", reading, None, f"This run holds no tables. {OLD}")
    tables = {name: resource.table for name, resource in predictor.resources.items()}
    rows: list[Row] = []
    for group in evidence.groups:
        for scheme in group.schemes:
            costs = {name: rounded(table.at(group.name, scheme)) for name, table in tables.items()}
            loss = rounded(predictor.loss.at(group.name, scheme))
            rows.append(
                {"group": group.name, "under": scheme, "loss": loss, **costs, "scheme": evidence.allocation.get(group.name, scheme)}
            )
    options = [scheme for scheme in evidence.schemes if any(row["under"] == scheme and row["loss"] for row in rows)]
    if not options:
        return Chart("sensitivity", "Sensitivity against cost", reading, None, "Every group is pinned to float: nothing was scored.")
    start = evidence.usual if evidence.usual in options else options[0]
    against = evidence.goal if evidence.goal in tables else "latency"
    spec: Spec = {
        "width": 760,
        "height": 340,
        "params": [
            {"name": "under", "value": start, "bind": {"input": "select", "options": options, "name": "if quantized as "}},
            {"name": "against", "value": against, "bind": {"input": "select", "options": list(tables), "name": "against "}},
        ],
        "transform": [{"filter": "datum.under === under && isValid(datum.loss)"}, {"calculate": "datum[against]", "as": "cost"}],
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
        "encoding": {
            "x": {**quantity("cost", "cost, as chosen below"), "scale": {"type": "sqrt"}},
            "y": loss_axis("loss", f"score by {predictor.loss.name} ({predictor.loss.unit})", [row["loss"] for row in rows]),
            "color": colour(evidence.schemes),
            "shape": shape(evidence.schemes),
            "tooltip": tips(
                {"group": "group", "scheme": "in the plan", "under": "scored as", "loss": "loss", **{name: name for name in tables}}
            ),
        },
    }
    return Chart("sensitivity", "Sensitivity against cost", reading, document(spec, rows), rows=tuple(rows))


def time_chart(evidence: Evidence) -> Chart:
    """Milliseconds of each layer in the float file and in this plan's, as the runtime's own profile gave them, or as the table predicts."""
    profiled, title = evidence.profile is not None and not evidence.picked, "Where the time goes"
    if profiled:
        reading = (
            "Each pair of bars is a layer, from the network's input down: the median time of its own nodes by the runtime's profile of the "
            f"float file and of this plan's. The last pair, {REST!r}, is the rest of the time of the whole file as it was timed: "
            f"quantizers, conversions of layout, operations that stay float.{_sums(evidence)}"
        )
        rows = _profiled(evidence)
    elif evidence.predictor is not None and evidence.predictor.resources["latency"].table.unit == "ms":
        reading = (
            "Each pair of bars is a group, from the network's input down: its time in float and in this plan by the table of latencies "
            "that plans are chosen by, which is fitted to whole files. Nothing was profiled of this very file: allocate again to store it."
        )
        rows = _predicted(evidence)
    else:
        why = "Latency was modelled, not measured: the target does not run here." if evidence.predictor else f"No layer was timed. {OLD}"
        return Chart("time", title, "", None, why)
    if not rows:
        return Chart("time", title, reading, None, MEASURED_ONLY)
    names = list(dict.fromkeys(row["layer"] for row in rows))
    files = {"domain": ["float file", "this plan"], "range": ["#8c8c8c", "#0072B2"]}
    spec: Spec = {
        "width": 620,
        "height": {"step": 9},
        "mark": "bar",
        "encoding": {
            "y": {"field": "layer", "type": "nominal", "sort": names, "title": None, "axis": {"labelLimit": 260}},
            "yOffset": {"field": "file", "sort": files["domain"]},
            "x": {"field": "ms", "type": "quantitative", "title": "milliseconds", "axis": {"orient": "top"}},
            "color": {"field": "file", "type": "nominal", "title": None, "scale": files},
            "tooltip": tips({"layer": "layer", "file": "file", "ms": "ms", "scheme": "scheme"}),
        },
    }
    return Chart("time", title, reading, document(spec, rows), rows=tuple(rows))


def interaction_chart(evidence: Evidence) -> Chart:
    """How the errors of two groups add up, as a correlation, for every pair under one scheme."""
    reading, title = "", "Interactions"
    predictor = evidence.predictor
    if predictor is None:
        return Chart("interactions", title, reading, None, f"This run holds no tables. {OLD}")
    if predictor.interactions is None:
        method = evidence.request["options"]["sensitivity"]
        why = (
            f"Sensitivity {method} scores each group alone and estimates no interactions: "
            "`quantkit allocate --sensitivity augmented` measures them."
        )
        return Chart("interactions", title, reading, None, why)
    scheme = evidence.usual
    names, together, share = _strongest(predictor.interactions, evidence, scheme)
    if scheme is None or len(names) < 2:
        return Chart("interactions", title, reading, None, "Fewer than two groups can be quantized, so nothing interacts.")
    beyond = f" Shown are the {MOST} groups that interact most, of {len(evidence.groups)}." if len(evidence.groups) > MOST else ""
    reading = (
        f"Each cell is a pair of groups, both quantized as {scheme} or what they can take: orange, their errors add up, so that "
        f"both together lose more than each alone; blue, they cancel.{beyond}"
    )
    rows: list[Row] = [
        {"one": one, "other": other, "correlation": rounded(float(share[a, b])), "nats": rounded(float(together[a, b]))}
        for a, one in enumerate(names) for b, other in enumerate(names) if a != b
    ]  # fmt: skip
    most = max(LEAST, max(abs(row["correlation"]) for row in rows))
    axis, step = {"labelLimit": 160, "labelFontSize": 9}, max(11, min(26, 560 // len(names)))
    spec: Spec = {
        "width": {"step": step},
        "height": {"step": step},
        "mark": "rect",
        "encoding": {
            "x": {"field": "one", "type": "nominal", "sort": names, "title": None, "axis": {**axis, "labelAngle": -90}},
            "y": {"field": "other", "type": "nominal", "sort": names, "title": None, "axis": axis},
            "color": {
                "field": "correlation", "type": "quantitative", "title": "correlation of their errors",
                "scale": {"scheme": "blueorange", "domain": [-most, most]},
            },
            "tooltip": tips({"one": "group", "other": "with", "correlation": "correlation", "nats": f"together ({predictor.loss.unit})"}),
        },
    }  # fmt: skip
    return Chart("interactions", title, reading, document(spec, rows))


def _profiled(evidence: Evidence) -> list[Row]:
    """Rows of profile.json, and what is left of the whole file's time."""
    profile, latency = evidence.profile or {}, (evidence.result or {}).get("latency")
    rows: list[Row] = []
    files = (("float", "float file", "float_ms"), ("plan", "this plan", "quantized_ms"))
    for layer in evidence.graph.layers:
        for key, file, _ in files:
            scheme = evidence.scheme_of(layer.name) if key == "plan" else "fp32"
            rows.append({"layer": layer.name, "file": file, "ms": rounded(profile[key].get(layer.name, 0.0)), "scheme": scheme})
    if latency:
        for key, file, whole in files:
            left = latency[whole] - sum(profile[key].values())
            rows.append({"layer": REST, "file": file, "ms": rounded(max(left, 0.0)), "scheme": None})
    return rows


def _sums(evidence: Evidence) -> str:
    """The sum over layers beside the time of the whole file; profiling itself takes time."""
    profile, latency = evidence.profile or {}, (evidence.result or {}).get("latency")
    if not latency:
        return ""
    floats, plans = (
        f"{sum(profile[key].values()):.3g} of {latency[whole]:.3g} ms" for key, whole in (("float", "float_ms"), ("plan", "quantized_ms"))
    )
    return f" Layers add up to {floats} in the float file and {plans} in this plan's; more than the whole is what profiling itself takes."


def _predicted(evidence: Evidence) -> list[Row]:
    table = evidence.predictor.resources["latency"].table if evidence.predictor else None
    if table is None or not evidence.allocation:
        return []
    rows: list[Row] = []
    for group in evidence.groups:
        highest = max(group.schemes, key=lambda scheme: scheme.precision)
        for file, scheme in (("float file", highest), ("this plan", evidence.allocation[group.name])):
            rows.append({"layer": group.name, "file": file, "ms": rounded(table.at(group.name, scheme)), "scheme": scheme})
    return rows


def _strongest(interactions: Interactions, evidence: Evidence, scheme: Scheme | None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The groups that interact most, at most MOST, in the order of the network, with what pairs lose together and as a correlation."""
    rows = {}
    for group in evidence.groups:
        quantized = [name for name in group.schemes if not name.is_float]
        if scheme is not None and quantized:
            rows[group.name] = interactions.index(group.name, scheme if scheme in quantized else quantized[0])
    places = list(rows.values())
    together = interactions.matrix[np.ix_(places, places)]
    own = np.sqrt(np.maximum(np.diag(together), 0.0))
    share = np.divide(together, np.outer(own, own), out=np.zeros_like(together), where=np.outer(own, own) > 0)
    share = np.clip(share, -1.0, 1.0)
    strength = (np.abs(together) - np.diag(np.diag(np.abs(together)))).sum(axis=1)
    kept = sorted(np.argsort(-strength, kind="stable")[:MOST].tolist())
    return [list(rows)[place] for place in kept], together[np.ix_(kept, kept)], share[np.ix_(kept, kept)]
