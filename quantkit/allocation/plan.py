"""What goes into a solver beside the tables (`Edge`, `Resource`, `Limit`), and what comes out (`Plan`, `Shortage`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.allocation.problem import SLACK
from quantkit.core.spec import Allocation, parse_allocation
from quantkit.core.table import Table


@dataclass(frozen=True, slots=True)
class Edge:
    """`cost` is paid when exactly one of the two groups is fp32: data that flows between them changes precision."""

    producer: str
    consumer: str
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """What a plan uses of one thing: the table's sum, the edges that it pays, and `offset` whatever it is; all in the table's unit."""

    table: Table
    edges: tuple[Edge, ...] = ()
    offset: float = 0.0

    @property
    def name(self) -> str:
        """What it is."""
        return self.table.name

    def total(self, allocation: Allocation) -> float:
        """What an allocation uses of it."""
        floats = {group: scheme.reads_float for group, scheme in allocation.items()}
        paid = (edge.cost for edge in self.edges if floats[edge.producer] != floats[edge.consumer])
        return math.fsum([self.offset, *(self.table.at(group, scheme) for group, scheme in allocation.items()), *paid])

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        edges = [[edge.producer, edge.consumer, edge.cost] for edge in self.edges]
        return {"table": self.table.to_json(), "edges": edges, "offset": self.offset}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Resource:
        """The inverse of `to_json`."""
        return cls(Table.from_json(data["table"]), tuple(Edge(*row) for row in data["edges"]), data["offset"])


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """At most so much of a resource, in its unit."""

    resource: Resource
    at_most: float

    def excess(self, used: float) -> float:
        """By which share of the limit `used` is above it; 0 within it, up to rounding."""
        over = used - self.at_most
        return over / (abs(self.at_most) or 1.0) if over > SLACK * abs(self.at_most) else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """An allocation in the units of the tables it was predicted from.

    `gap` is the relative distance to the proven bound on the loss: 0 is a proven optimum, nan is no proof.
    """

    allocation: Allocation
    predicted_loss: float
    predicted_cost: float
    gap: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """A JSON form; `nan` becomes null."""
        return {
            "allocation": dict(self.allocation),
            "predicted_loss": self.predicted_loss,
            "predicted_cost": self.predicted_cost,
            "gap": None if math.isnan(self.gap) else self.gap,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        gap = math.nan if data["gap"] is None else data["gap"]
        return cls(parse_allocation(data["allocation"]), data["predicted_loss"], data["predicted_cost"], gap)


@dataclass(frozen=True, slots=True)
class Binding:
    """A limit that cannot be met: the nearest plan uses `needed`, and no plan at all less than `least`."""

    name: str
    unit: str
    at_most: float
    needed: float
    least: float


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why there is no plan: the limits that bind, and the plan that comes nearest to all of them."""

    binding: tuple[Binding, ...]
    nearest: Plan
