"""What a weight may become: `Grid`, integer codes times the scale of the weight's channel, however few of the codes there are.

Codes are what the int8 kernel multiplies. Under two levels a code is a narrow code times its group's multiplier; under a codebook it is
one of the layer's levels. Neither goes beyond MOST, so that no pair of products can saturate (`affine.PAIR_LIMIT`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.core.numerics.affine import PAIR_LIMIT, QParams, nearest
from quantkit.core.spec import PerChannel, QuantSpec

MOST = PAIR_LIMIT // 2
BYTES = QuantSpec(8, signed=True, symmetric=True, granularity=PerChannel(0))  # what the kernel reads where codes are made of narrower ones


@dataclass(frozen=True, slots=True, eq=False)
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
            levels = self.levels.to(steps.dtype)
            return levels[torch.bucketize(steps, (levels[1:] + levels[:-1]) / 2)]
        if multipliers is not None:
            return (steps / multipliers).round().clamp(-self.reach, self.reach) * multipliers
        return nearest(steps, self.qparams.spec)
