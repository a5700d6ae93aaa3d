"""Runs batches through the float network and observes each activation that a layer reads or writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.calibration.observers import ACTIVATION, Observed, observe, read_range
from quantkit.core.graph import Graph
from quantkit.core.numerics.affine import QParams, choose_qparams, fit_average
from quantkit.core.spec import QuantSpec
from quantkit.data.batch import Batch, of_tokens
from quantkit.network.captured import Captured

SETTLED, NEAR = 0.95, 0.05  # the share of ranges that are within that much of their last width
BY_OUTPUT = "output"  # the observer that reads no histogram: of the others' ranges, what moves the outputs least


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What calibration observed of `items`, by tensor name; `chosen` by what outputs do (observer BY_OUTPUT), by bits of the grids.

    `settled` is after how many items SETTLED of the ranges were within NEAR of what they became; None where that was the last of them.
    """

    seen: Mapping[str, Observed]
    chosen: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    items: int = 0
    settled: int | None = None

    def bounds(self, observer: str, graph: Graph, spec: QuantSpec = ACTIVATION) -> dict[str, tuple[float, float]]:
        """The lowest and highest value of each activation as `observer` reads them for grids of that format.

        Tensors that no further weight reads keep their whole range: clipping the scores themselves costs confidence
        (SqueezeNet: a divergence of 0.9 nats instead of 0.01). So do sigmoids: no value between 0 and 1 is an outlier.
        """
        if observer == BY_OUTPUT:
            return dict(self.chosen[spec.bits])
        sigmoids = {layer.output for layer in graph.layers if layer.kind == "sigmoid"}
        whole = {name for name in self.seen if name in sigmoids or graph.ends(name)}
        return {name: read_range(seen, "minmax" if name in whole else observer, spec) for name, seen in self.seen.items()}

    def qparams(self, observer: str, graph: Graph, spec: QuantSpec = ACTIVATION) -> dict[str, QParams]:
        """`choose_grids` of these bounds."""
        return choose_grids(self.bounds(observer, graph, spec), graph, spec)

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        seen = {name: one.to_json() for name, one in self.seen.items()}
        return {"seen": seen, "chosen": {str(bits): row for bits, row in self.chosen.items()}, "items": self.items, "settled": self.settled}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ranges:
        """The inverse of `to_json`."""
        chosen = {int(bits): {name: (low, high) for name, (low, high) in row.items()} for bits, row in data["chosen"].items()}
        return cls({name: Observed.from_json(row) for name, row in data["seen"].items()}, chosen, data["items"], data["settled"])


def choose_grids(bounds: Mapping[str, tuple[float, float]], graph: Graph, spec: QuantSpec) -> dict[str, QParams]:
    """The activation qparams that fit `bounds`.

    Tensors that only a concatenation reads take its grid: it then copies codes instead of rounding them a second time (SqueezeNet:
    0.04 of the time saved).
    """
    found = {name: choose_qparams(torch.tensor(low), torch.tensor(high), spec) for name, (low, high) in bounds.items()}
    for layer in reversed(graph.layers):  # from the outputs back, so that nested concatenations share one grid
        for name in {graph.source(tensor) for tensor in layer.inputs} if layer.kind == "concat" else ():
            if graph.readers(name) == {layer.node} and _may_take(graph, name, found[name], found[layer.output]):
                found[name] = found[layer.output]
    for layer in graph.layers:
        if layer.kind == "global_pool":
            count = prod(graph.tensor(graph.source(layer.inputs[0])).shape[1:])
            found[layer.output] = fit_average(found[layer.output], found[graph.source(layer.inputs[0])], count)
    return found


def _may_take(graph: Graph, name: str, own: QParams, other: QParams) -> bool:
    """Whether the tensor's activation functions stay absorbed on another grid: what they cut off must have no codes there."""
    functions = next((layer.activation for layer in graph.layers if layer.output == name), ())
    highest = float((other.spec.code_max - other.zero_point) * other.scale)
    clips = [text.split(":")[2] for text in functions if text.startswith("clip:")]
    inside = all(high == "None" or highest <= float(high) for high in clips)
    return not functions or (inside and bool(own.zero_point == other.zero_point))


def observed_tensors(graph: Graph) -> set[str]:
    """The tensors whose ranges a placement may ask for: what layers read (behind movers) and write."""
    return {graph.source(tensor) for layer in graph.layers for tensor in layer.inputs} | {layer.output for layer in graph.layers}


@torch.no_grad()
def calibrate(captured: Captured, batches: Iterable[Batch]) -> Ranges:
    """Run the float network over `batches` and observe every tensor of `observed_tensors`, in memory that does not grow with the data.

    What a network computes of padding is not observed, where a tensor has a row for each token.
    """
    wanted = observed_tensors(captured.graph)
    seen: dict[str, Observed] = {}
    items, snapshots = 0, dict[int, dict[str, Observed]]()

    class Watch(fx.Interpreter):
        counted: Tensor | None = None

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                seen[n.name] = observe(seen.get(n.name), of_tokens(value, self.counted))
            return value

    for batch in batches:
        watch = Watch(captured.module)
        watch.counted = batch.counted
        watch.run(*[batch.inputs[name] for name in captured.graph.inputs])
        items += batch.size
        if items >= 2 * max(snapshots, default=0):  # at least twice as many as at the last, so that there are few
            snapshots[items] = dict(seen)
    return Ranges(seen, items=items, settled=_settled(seen, {count: some for count, some in snapshots.items() if count < items}))


def _settled(seen: Mapping[str, Observed], snapshots: Mapping[int, Mapping[str, Observed]]) -> int | None:
    """The first of `snapshots`, by items, from which on they all had SETTLED of their ranges within NEAR of the last."""
    found = None
    last = {name: read_range(one, "mse") for name, one in seen.items()}
    for count, earlier in sorted(snapshots.items(), reverse=True):
        widths = [(read_range(earlier[name], "mse"), bounds) for name, bounds in last.items()]
        near = [abs((high - low) - (top - bottom)) <= NEAR * (top - bottom) for (low, high), (bottom, top) in widths]
        if sum(near) < SETTLED * len(near):
            break
        found = count
    return found
