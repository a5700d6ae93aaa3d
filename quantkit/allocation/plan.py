"""`Plan`: one scheme per group with what it is predicted to lose and to cost; `Edge`: what a change of precision costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Edge:
    """`cost` is paid when exactly one of the two groups is fp32: data that flows between them changes precision."""

    producer: str
    consumer: str
    cost: float


@dataclass(frozen=True, slots=True)
class Plan:
    """An allocation in the units of the tables it was predicted from.

    `gap` is the relative distance to the proven bound on the loss: 0 is a proven optimum, nan is no proof.
    """

    allocation: Mapping[str, str]
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
        return cls(dict(data["allocation"]), data["predicted_loss"], data["predicted_cost"], gap)
