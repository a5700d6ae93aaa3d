"""The network laid out from its inputs down, and drawn with the precision of every operation and where precision changes.

Levels are longest paths (networkx' topological generations); on a level, operations stand in the order of the mean place of what they read
(the barycentre of Sugiyama, Tagawa and Toda 1981). An edge over several levels goes down its own column where that is free, else in a
lane beside all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from quantkit.core.graph import Graph
from quantkit.report.run_data import Evidence
from quantkit.report.vega import ALERT, Chart, Row, Spec, document, scheme_colours, tips

COLUMN, LANE, LEVEL = 210.0, 14.0, 27  # pixels
TOOLTIP_FIELDS = ("operation", "kind", "scheme", "group", "weights", "MACs", "why")
KEPT_FLOAT, ENDS = "no 8-bit form", "input or output"
KEPT_COLOUR, END_COLOUR = "#c8b7a6", "#ffffff"


@dataclass(frozen=True, slots=True)
class Node:
    """An operation, or an end of the network: where it stands (pixels across, levels down)."""

    name: str
    kind: str
    x: float
    level: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Nodes by name, and for each edge the points that its line goes by."""

    nodes: Mapping[str, Node]
    edges: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]


def lay_out(graph: Graph) -> Layout:
    """A place for every operation; a line from each one to its readers, movers left out."""
    kinds, links = _links(graph)
    net: Any = nx.DiGraph()
    net.add_nodes_from(kinds)
    net.add_edges_from(links)
    nodes: dict[str, Node] = {}
    behind: dict[str, int] = {}  # operations on the longest way to an output: the trunk stays in the first column
    for name in reversed(list(nx.topological_sort(net))):
        behind[name] = 1 + max((behind[after] for after in net.successors(name)), default=0)
    for level, names in enumerate(nx.topological_generations(net)):
        means = {name: _mean([nodes[before].x for before in net.predecessors(name)]) for name in names}
        row = sorted(names, key=lambda name: (means[name], -behind[name]))
        for place, name in enumerate(row):
            nodes[name] = Node(name, kinds[name], place * COLUMN, level)
    taken = {(node.x, node.level) for node in nodes.values()}
    lanes: list[int] = []  # the level at which each lane is free again
    edges = {}
    for one, other in sorted(links, key=lambda link: (nodes[link[0]].level, nodes[link[1]].level)):
        start, end = nodes[one], nodes[other]
        x = start.x
        if any((x, level) in taken for level in range(start.level + 1, end.level)):
            lane = next((place for place, free in enumerate(lanes) if free <= start.level), len(lanes))
            lanes[lane : lane + 1] = [end.level]
            x = -LANE * (lane + 1.5)
        taken |= {(x, level) for level in range(start.level + 1, end.level)}
        # Sideways only half-way between two levels, where no name stands.
        out, back = start.level + 0.5, end.level - 0.5
        points = ((start.x, start.level), (start.x, out), (x, out), (x, back), (end.x, back), (end.x, end.level))
        edges[one, other] = points if end.x != start.x or x != start.x else (points[0], points[-1])
    return Layout(nodes, edges)


def network_chart(evidence: Evidence) -> Chart:
    """The layout, coloured by the plan's schemes; edges on which precision changes stand out."""
    reading = (
        "The network from its input (top) to its output (bottom); each square is an operation in the colour of its scheme. A thick dashed "
        "line is a boundary: float on one side, integers on the other, so that a quantizer runs there. Hover for sizes; click an operation "
        "for its row in the table of layers."
    )
    layout = lay_out(evidence.graph)
    nodes, edges = _node_rows(evidence, layout), _edge_rows(evidence, layout)
    colours = scheme_colours(evidence.schemes) | {KEPT_FLOAT: KEPT_COLOUR, ENDS: END_COLOUR}
    across = [place for points in layout.edges.values() for place, _ in points] + [node.x for node in layout.nodes.values()]
    low, high, levels = min(across) - 10, max(across) + COLUMN, max(node.level for node in layout.nodes.values()) + 1
    x: Spec = {"field": "x", "type": "quantitative", "axis": None, "scale": {"domain": [low, high], "nice": False, "zero": False}}
    y: Spec = {
        "field": "level",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [levels - 0.5, -0.5], "nice": False, "zero": False},
    }
    crossing = {"test": "datum.boundary"}
    lines: Spec = {
        "data": {"values": edges},
        "mark": {"type": "line", "interpolate": "basis"},
        "encoding": {
            "x": x, "y": y, "detail": {"field": "edge"}, "order": {"field": "step"},
            "color": {"condition": {**crossing, "value": ALERT}, "value": "#9a9a9a"},
            "strokeWidth": {"condition": {**crossing, "value": 2.5}, "value": 1},
            "strokeDash": {"condition": {**crossing, "value": [6, 3]}, "value": [1, 0]},
            "tooltip": tips({"edge": "from → to", "boundary": "precision changes", "ms": "costs, ms"}),
        },
    }  # fmt: skip
    scheme: Spec = {
        "field": "scheme",
        "type": "nominal",
        "title": "scheme",
        "scale": {"domain": list(colours), "range": list(colours.values())},
    }
    marks: Spec = {
        "data": {"values": nodes},
        "mark": {"type": "square", "size": 190, "stroke": "#5a5a5a", "strokeWidth": 1, "opacity": 1, "cursor": "pointer"},
        "encoding": {"x": x, "y": y, "color": scheme, "tooltip": tips({key: key for key in TOOLTIP_FIELDS})},
    }  # fmt: skip
    text = {"type": "text", "align": "left", "dx": 12, "limit": COLUMN - 24, "fontSize": 11}
    names: Spec = {"data": {"values": nodes}, "mark": text, "encoding": {"x": x, "y": y, "text": {"field": "label"}}}
    size = {"width": max(int(high - low), 260), "height": LEVEL * levels}
    spec = document({**size, "layer": [lines, marks, names], "config": {"view": {"stroke": None}}}, [])
    boundaries = sum(row["boundary"] for row in edges if row["step"] == 0)
    return Chart("network", "The network", f"{reading} Here there are {boundaries} boundaries.", spec)


def _links(graph: Graph) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The kind of each node by name, and who feeds whom."""
    kinds = {f"input {name}": ENDS for name in graph.inputs} | {layer.name: layer.kind for layer in graph.layers}
    kinds |= {operation.node: operation.operation for operation in graph.unsupported if operation.node not in kinds}
    makers = {name: f"input {name}" for name in graph.inputs} | {operation.node: operation.node for operation in graph.unsupported}
    for layer in graph.layers:
        makers |= {layer.node: layer.name, layer.output: layer.name}
    links: dict[tuple[str, str], None] = {}
    for reader, inputs in [*((layer.name, layer.inputs) for layer in graph.layers), *((one.node, one.inputs) for one in graph.unsupported)]:
        for tensor in inputs:
            maker = makers.get(graph.source(tensor))
            if maker is not None and maker != reader:
                links[maker, reader] = None
    for name in graph.outputs:
        kinds[f"output {name}"] = ENDS
        maker = makers.get(graph.source(name))
        if maker is not None:
            links[maker, f"output {name}"] = None
    return kinds, list(links)


def _node_rows(evidence: Evidence, layout: Layout) -> list[Row]:
    layers = {layer.name: layer for layer in evidence.graph.layers}
    groups = {name: group.name for group in evidence.groups for name in group.layers}
    why = {operation.node: operation.reason for operation in evidence.graph.unsupported}
    rows: list[Row] = []
    for node in layout.nodes.values():
        layer = layers.get(node.name)
        scheme = ENDS if node.kind == ENDS else KEPT_FLOAT if layer is None else evidence.scheme_of(node.name) or "fp32"
        kind = (
            ""
            if node.kind == ENDS
            else node.kind
            if layer is None
            else "+".join((layer.kind, *(one.split(":")[0] for one in layer.activation)))
        )
        row = {"operation": node.name, "label": f"{node.name} · {kind}" if kind else node.name, "kind": kind, "scheme": scheme}
        more = {"group": groups.get(node.name), "weights": layer.weight_count, "MACs": layer.macs} if layer else {}
        rows.append({"x": node.x, "level": node.level, **row, **more, "why": why.get(node.name, "")})
    return rows


def _edge_rows(evidence: Evidence, layout: Layout) -> list[Row]:
    """A row for each point of each edge."""
    groups = {name: group.name for group in evidence.groups for name in group.layers}
    charged = (
        {}
        if evidence.predictor is None
        else {(edge.producer, edge.consumer): edge.cost for edge in evidence.predictor.resources["latency"].edges}
    )
    rows: list[Row] = []
    for (one, other), points in layout.edges.items():
        boundary = _in_float(evidence, one) != _in_float(evidence, other) and not other.startswith("output ")
        cost = charged.get((groups.get(one, ""), groups.get(other, ""))) if boundary else None
        for step, (x, level) in enumerate(points):
            rows.append({"edge": f"{one} → {other}", "step": step, "x": x, "level": level, "boundary": boundary, "ms": cost})
    return rows


def _in_float(evidence: Evidence, name: str) -> bool:
    scheme = evidence.scheme_of(name)
    return scheme is None or scheme.is_float


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
