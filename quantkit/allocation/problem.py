"""One knapsack over options, an option being one (group, scheme) that is possible: all that a solver knows.

Loss and every resource have the same shape: a number for each option taken, and one for each pair of options taken together.
An edge is such a pair term: its cost stands where one option is fp32 and the other is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SLACK = 1e-12  # sums in another order differ by less
Chosen = NDArray[np.intp]  # one option index per group


@dataclass(frozen=True, slots=True, eq=False)
class Crossings:
    """`costs[e]` is paid where exactly one of the groups `ends[e]`, by index, is fp32; ends sorted, none twice."""

    ends: NDArray[np.intp]
    costs: Floats

    def __len__(self) -> int:
        return len(self.costs)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """`linear[a]` for an option, `pair[a, b]` for two options of different groups; symmetric, zero within a group.

    Where `pair` comes of edges, `crossings` says the same of groups, and `floats` which options are fp32.
    """

    linear: Floats
    pair: Floats
    crossings: Crossings
    floats: NDArray[np.bool_]

    @property
    def has_pairs(self) -> bool:
        """Whether there is any pair term."""
        return self.pair.strides != (0, 0)

    def total(self, chosen: Chosen) -> float:
        """The value of one option per group."""
        pairs: Iterable[float] = ()
        if self.crossings:
            floats = self.floats[chosen][self.crossings.ends]
            pairs = self.crossings.costs[floats[:, 0] != floats[:, 1]].tolist()
        elif self.has_pairs:
            pairs = 0.5 * self.pair[chosen][:, chosen].sum(axis=1)
        return math.fsum([*self.linear[chosen].tolist(), *pairs])

    def field(self, chosen: Chosen) -> Floats:
        """What each option would add, the other groups standing as chosen."""
        return np.asarray(self.linear + self.pair[chosen].sum(axis=0)) if self.has_pairs else self.linear


@dataclass(frozen=True, slots=True, eq=False)
class Within:
    """At most so much of a form. An excess is a share of `at_most` and the `offset` that the form leaves out."""

    form: Form
    at_most: float
    offset: float = 0.0

    def holds(self, chosen: Chosen) -> bool:
        """Whether the options are within it."""
        return self.form.total(chosen) <= self.highest

    @property
    def size(self) -> float:
        """What shares are of."""
        return abs(self.at_most + self.offset) or 1.0

    @property
    def highest(self) -> float:
        """The highest value that still counts as within."""
        return self.at_most + SLACK * abs(self.at_most)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """`group[a]`, `scheme[a]` of option a; `isolated[a]` is its loss alone; `loss` is what is minimised, under `limits` and on `cost`.

    `order` is that of the groups as they were given. `matrix` is the whole M behind `loss` where there are interactions.
    """

    groups: tuple[str, ...]
    order: tuple[str, ...]
    group: NDArray[np.intp]
    scheme: tuple[str, ...]
    isolated: Floats
    loss: Form
    cost: Form
    limits: tuple[Within, ...]
    matrix: Floats | None

    def under(self, budget: float) -> tuple[Within, ...]:
        """The limits, and at most `budget` of the cost."""
        return (Within(self.cost, budget), *self.limits)
