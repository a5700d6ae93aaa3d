"""What a layer multiplies, as roundings are told of it, and what they make of that: once, however often the layer is rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class LayerMoments:
    """`values` are E[x x'], shape [groups, products, products], products in the order of the kernel; they are not changed."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._made: dict[Callable[[Tensor], Any], Any] = {}

    def once(self, make: Callable[[Tensor], T]) -> T:
        """What `make` makes of the values: of every function the first result."""
        if make not in self._made:
            self._made[make] = make(self.values)
        made: T = self._made[make]
        return made
