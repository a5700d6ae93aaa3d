"""What `quantkit inspect` prints: how much of the network int8 can reach, what schemes would save at most, the groups, what stays float.

Names are never cut: in a narrow terminal they go on in the next line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from quantkit.cli.console import Printed
from quantkit.core.graph import Graph, Group
from quantkit.report.format import named
from quantkit.settings.bounds import show_amount

if TYPE_CHECKING:  # numpy stays out of the command line until a command needs it
    from quantkit.allocation.costs.overview import Overview

FEW = 2  # names of what stays float, unless all are asked for


def show_inspection(graph: Graph, groups: Iterable[Group], found: Overview, behind: Sequence[str], every_name: bool) -> None:
    """First the shares and savings, then the groups with their layers, then the operations that stay float, by reason.

    `behind` are the operators of the user's file that stay behind the network.
    """
    console = Printed()
    ends = [f"Behind the network these stay as they are in the file, in float: {', '.join(behind)}."] if behind else []
    for line in [*summary_lines(found), *ends]:
        console.print(line, markup=False, soft_wrap=True)
    console.print(_savings(found))
    console.print(_groups(graph, groups))
    if found.stays:
        console.print(_stays(found, every_name))


def summary_lines(found: Overview) -> list[str]:
    """How much can run in int8, and what was not counted."""
    share = f"{100 * found.int8_macs / found.macs:.1f} % of {found.macs:,}" if found.macs else "None of no"
    lines = [f"{share} multiply-accumulates can run in int8, in {found.int8_groups} of {found.groups} groups."]
    if found.uncounted:
        lines.append(f"Not counted, as their shapes are not fixed, or as they are recurrent or transposed: {named(found.uncounted)}.")
    return lines


def group_rows(graph: Graph, groups: Iterable[Group]) -> list[dict[str, Any]]:
    """One JSON object a group: `kind` and shapes are those of its first layer, counts are sums; MACs are for one item."""
    rows = []
    for group in groups:
        layers = [graph.layer(name) for name in group.layers]
        rows.append(
            {
                "group": group.name,
                "layers": list(group.layers),
                "kind": layers[0].kind,
                "weight_shape": list(layers[0].weight_shape),
                "output_shape": list(layers[0].output_shape),
                "weights": sum(layer.weight_count for layer in layers),
                "macs": sum(layer.macs for layer in layers),
                "schemes": list(group.schemes),
                "reason": group.reason,
            }
        )
    return rows


def _table(title: str, names: tuple[str, ...], numbers: tuple[str, ...], more: tuple[str, ...] = ()) -> Table:
    table = Table(title=f"\n{title}", box=None, title_justify="left")
    for heading in names:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in more:
        table.add_column(heading, overflow="fold")
    return table


def _savings(found: Overview) -> Table:
    table = _table("What weights and biases take, if every group takes a scheme that can", ("scheme",), ("groups", "bytes", "of float's"))
    whole, *_ = found.schemes.values()
    for scheme, use in found.schemes.items():
        share = f"{use.weight_bytes / whole.weight_bytes:.2f}×" if whole.weight_bytes else "–"
        table.add_row(scheme, str(use.groups), show_amount("bytes", use.weight_bytes), share)
    return table


def _groups(graph: Graph, groups: Iterable[Group]) -> Table:
    table = _table("What can be quantized", ("group", "layers"), ("kind", "weight", "output", "weights", "MACs"), ("schemes",))
    for row in group_rows(graph, groups):
        shapes = ("×".join(map(str, row["weight_shape"])), "×".join(map(str, row["output_shape"])))
        others = [name for name in row["layers"] if name != row["group"]]
        layers = " ".join(row["layers"]) if others else ""
        counts = (f"{row['weights']:,}", f"{row['macs']:,}")
        table.add_row(row["group"], layers, row["kind"], *shapes, *counts, " ".join(row["schemes"]))
    return table


def _stays(found: Overview, every_name: bool) -> Table:
    names = "nodes" if every_name else "nodes (--all names them all)"
    table = _table("What stays float", ("operation",), ("count",), ("reason", names))
    for row in found.stays:
        shown = row.nodes if every_name else row.nodes[:FEW]
        more = len(row.nodes) - len(shown)
        table.add_row(row.operation, str(len(row.nodes)), row.reason, " ".join(shown) + (f" and {more} more" if more else ""))
    return table
