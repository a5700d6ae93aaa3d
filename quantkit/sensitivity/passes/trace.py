"""What traces are asked of, and what is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Trial(NamedTuple):
    """One batch: how many items it has, the mean loss over them, and the tensors whose blocks of its Hessian are asked about."""

    items: int
    loss: Tensor
    leaves: Mapping[str, Tensor]


class Trace(NamedTuple):
    """An estimated trace and the standard error of it that the draw of the probes causes; the items count as given."""

    trace: float
    standard_error: float


class SquaredGradients(NamedTuple):
    """E‖∂ℓ/∂·‖² over items and draws, by the names of weights and of edges (`recorded.edge_names`), and the draws' standard error.

    `sizes`: numbers in one item's edge.
    """

    traces: dict[str, Trace]
    sizes: dict[str, int]
