"""Items that are made of a network alone, where no data was given: known before they are made, by the network and a seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantkit.core.errors import ContractError
from quantkit.data.batch import Item


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """`count` unlabelled items of `shape`, for the network of that digest; `values` (shape [items, …]) is None until they are made.

    An item's digest stands for how it is made, not for its numbers: another processor rounds them otherwise.
    """

    network: str
    name: str
    shape: tuple[int, ...]
    count: int
    seed: int
    values: Tensor | None = None
    code: str = ""  # what made the values

    def __len__(self) -> int:
        return self.count

    def item(self, index: int) -> Item:
        """The item at `index`. Raises ContractError before they are made."""
        if self.values is None:
            raise ContractError("distilled items that are not made yet", "`stages.make_items` before all other stages")
        return Item({self.name: self.values[index]})

    def digest(self, index: int) -> str:
        """A hash of what the items are made of, and the position."""
        return hashlib.sha256(json.dumps([self.describe(), index], sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What they are made of."""
        return {"kind": "distilled", "network": self.network, "shape": list(self.shape), "count": self.count, "seed": self.seed} | (
            {"code": self.code} if self.code else {}
        )
