"""What a weight may become: `Grid`, integer codes times the scale of the weight's channel, however few of the codes there are.

Codes are what the int8 kernel multiplies. Under two levels a code is a narrow code times its group's multiplier; under a codebook it is
one of the layer's levels. Neither goes beyond MOST, so that no pair of products can saturate (`affine.PAIR_LIMIT`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quantkit.core.numerics.affine import PAIR_LIMIT, QParams, nearest
from quantkit.core.spec import PerChannel, QuantSpec

MOST = PAIR_LIMIT // 2
BYTES = QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(0))  # what the kernel reads where codes are made of narrower ones


@dataclass(frozen=True, eq=False)  # without slots: `_table` is kept
class Grid:
    """Codes of `qparams`, all of them; or those that are at most `reach` times the weight's own entry of `multipliers` (shape [channels,
    products], integers); or those among `levels` (sorted integers).
    """

    qparams: QParams
    multipliers: Tensor | None = None
    reach: int = 0
    levels: Tensor | None = None

    def nearest(self, steps: Tensor, multipliers: Tensor | None) -> Tensor:
        """The code nearest to each of `steps` (weights over their scales), whose own `multipliers` are given where the grid has them."""
        if self.levels is not None:
            levels, between = (part.to(steps.dtype) for part in self._table)
            return levels[torch.bucketize(steps, between)]
        if multipliers is not None:
            return (steps / multipliers).round().clamp(-self.reach, self.reach) * multipliers
        return nearest(steps, self.qparams.spec)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """The levels and what lies half-way between them, exact in float64 and, of small integers, in float32."""
        levels = torch.empty(0) if self.levels is None else self.levels.double()
        return levels, (levels[1:] + levels[:-1]) / 2
