"""`Table`: one float for each (group, scheme), a sensitivity or a cost; `Interactions`: one for each pair of them.

A scheme that a group cannot take is `nan` in both, never a sentinel number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.spec import Allocation, Scheme, parse_schemes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """`values[i, k]` belongs to `groups[i]` under `schemes[k]`; shape [groups, schemes]."""

    name: str
    unit: str
    groups: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    values: Floats

    def __post_init__(self) -> None:
        wanted = (len(self.groups), len(self.schemes))
        if self.values.shape != wanted:
            raise ValueError(f"table {self.name!r} has values of shape {self.values.shape}, wanted {wanted}")

    def at(self, group: str, scheme: Scheme) -> float:
        """The value of one (group, scheme)."""
        return float(self.values[self.groups.index(group), self.schemes.index(scheme)])

    def total(self, allocation: Allocation) -> float:
        """The sum over one scheme per group."""
        return sum(self.at(group, scheme) for group, scheme in allocation.items())

    def to_json(self) -> dict[str, Any]:
        """A JSON form; `nan` becomes null."""
        rows = [[None if np.isnan(v) else float(v) for v in row] for row in self.values]
        return {"name": self.name, "unit": self.unit, "groups": list(self.groups), "schemes": list(self.schemes), "values": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """The inverse of `to_json`."""
        values = _floats(data["values"], (len(data["groups"]), len(data["schemes"])))
        return cls(data["name"], data["unit"], tuple(data["groups"]), parse_schemes(data["schemes"]), values)


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """`matrix[a, b]` for pairs of (group, scheme), row-major over [groups, schemes]; symmetric.

    Predicted loss of an allocation with indicator x is ½ x' matrix x. Rows of impossible pairs are zero.
    """

    groups: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    matrix: Floats

    def __post_init__(self) -> None:
        size = len(self.groups) * len(self.schemes)
        if self.matrix.shape != (size, size):
            raise ValueError(f"interactions have shape {self.matrix.shape}, wanted {(size, size)}")

    def index(self, group: str, scheme: Scheme) -> int:
        """The row of one (group, scheme)."""
        return self.groups.index(group) * len(self.schemes) + self.schemes.index(scheme)

    def predicted(self, allocation: Allocation) -> float:
        """½ x' matrix x for one scheme per group."""
        rows = [self.index(group, scheme) for group, scheme in allocation.items()]
        return 0.5 * float(self.matrix[np.ix_(rows, rows)].sum())

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"groups": list(self.groups), "schemes": list(self.schemes), "matrix": self.matrix.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Interactions:
        """The inverse of `to_json`."""
        size = len(data["groups"]) * len(data["schemes"])
        return cls(tuple(data["groups"]), parse_schemes(data["schemes"]), _floats(data["matrix"], (size, size)))


def _floats(rows: Sequence[Sequence[float | None]], shape: tuple[int, int]) -> Floats:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64).reshape(shape)
