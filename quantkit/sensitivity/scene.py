"""What an estimator gets (`Scene`) and what it gives (`Scores`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch

from quantkit.capture import Captured
from quantkit.data import Subset
from quantkit.graph import Group
from quantkit.progress import Progress
from quantkit.quantization import WeightBank
from quantkit.table import Interactions, Table


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """The captured network, its groups, and the calibration items that may be looked at.

    `curvature` is the metric of the output space: "softmax" for class scores, "identity" otherwise. `labelled` says whether the items'
    labels mean anything here; a network that is compared with itself goes by its own answers.
    """

    captured: Captured
    groups: tuple[Group, ...]
    schemes: tuple[str, ...]
    target: ModuleType
    bank: WeightBank
    items: Subset
    curvature: Literal["softmax", "identity"]
    labelled: bool
    seed: int
    device: torch.device
    progress: Progress

    @property
    def unit(self) -> str:
        """What the damage to the outputs is measured in."""
        return {"softmax": "nats", "identity": "half squared distance"}[self.curvature]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One number for each (group, scheme), and all pairs of them where the method gives them."""

    table: Table
    interactions: Interactions | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"table": self.table.to_json(), "interactions": self.interactions.to_json() if self.interactions else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scores:
        """The inverse of `to_json`."""
        pairs = data["interactions"]
        return cls(Table.from_json(data["table"]), Interactions.from_json(pairs) if pairs else None)
