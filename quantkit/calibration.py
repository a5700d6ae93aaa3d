"""Batches through the float network → what was seen on each activation that a layer reads or writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.affine import QParams, choose_qparams
from quantkit.capture import Captured
from quantkit.graph import Graph
from quantkit.observers import ACTIVATION, Observed, observe, read_range


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What calibration saw, by tensor name."""

    seen: Mapping[str, Observed]

    def qparams(self, observer: str, graph: Graph) -> dict[str, QParams]:
        """The activation qparams that `observer` reads from the ranges.

        Tensors that no further weight reads keep their whole range: clipping the scores themselves costs confidence
        (SqueezeNet: a divergence of 0.9 nats instead of 0.01).
        """
        found = {}
        for name, seen in self.seen.items():
            low, high = read_range(seen, "minmax" if graph.ends(name) else observer)
            found[name] = choose_qparams(torch.tensor(low), torch.tensor(high), ACTIVATION)
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {name: seen.to_json() for name, seen in self.seen.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ranges:
        """The inverse of `to_json`."""
        return cls({name: Observed.from_json(row) for name, row in data.items()})


def observed_tensors(graph: Graph) -> set[str]:
    """The tensors whose ranges a placement may ask for: what layers read (behind movers) and write."""
    return {graph.source(tensor) for layer in graph.layers for tensor in layer.inputs} | {layer.output for layer in graph.layers}


@torch.no_grad()
def calibrate(captured: Captured, batches: Iterable[Mapping[str, Tensor]]) -> Ranges:
    """Run the float network over `batches` and observe every tensor of `observed_tensors`, in memory that does not grow with the data."""
    wanted = observed_tensors(captured.graph)
    seen: dict[str, Observed] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                seen[n.name] = observe(seen.get(n.name), value)
            return value

    for batch in batches:
        Watch(captured.module).run(*[batch[name] for name in captured.graph.inputs])
    return Ranges(seen)
