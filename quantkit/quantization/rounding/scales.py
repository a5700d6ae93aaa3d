"""Scales of least output error, not of least weight error, chosen with the codes that they lead to (ours).

With M = E[x x'], a row w of a weight, rounded to codes c of scale s, costs (s c − w) M (s c − w)'. Multiples of the scale that serves the
weight alone are tried, each with the codes that the rounding makes of it; then the scale that serves the best of these codes best,

    s = (c M w') / (c M c'),

with those codes and with the codes that it leads to in turn. Every row takes what costs least, so that nothing gets worse under M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quantkit.core.numerics.affine import QParams
from quantkit.quantization.rounding import LayerMoments, Rounding
from quantkit.quantization.rounding.grid import Grid

# The first is the grid's own. Twice as many from 0.8 to 1.2: divergence 0.99 of it, a plan of MobileNetV2 in 1.3 times the seconds (c3a8).
RATIOS = (1.0, 0.8, 0.9, 1.1)
MOST_NUMBERS = 1 << 22  # of weights, over all ratios that are tried at once


@torch.no_grad()
def fit_scales(
    rows: Tensor, grid: Grid, moments: LayerMoments, rounding: Rounding, floor: Callable[[QParams], QParams]
) -> tuple[Grid, Tensor]:
    """`grid` with a scale for each of `rows` (shape [channels, products]), and the codes; `moments` are of what the rows multiply.

    `rounding` is given rows that stand several times, those of a group side by side. No scale is less than `floor` allows.
    """
    best = _Best(rows, moments.values.float())
    step = max(1, MOST_NUMBERS // rows.numel())
    for start in range(0, len(RATIOS), step):
        ratios = RATIOS[start : start + step]
        tried = _scaled(grid, torch.cat([grid.qparams.scale[:, None] * ratio for ratio in ratios], dim=1), floor)
        codes = rounding(rows.repeat_interleave(len(ratios), dim=0), tried, moments, False)
        for place in range(len(ratios)):
            best.consider(codes[place :: len(ratios)], tried.qparams.scale[place :: len(ratios)])
    served = _scaled(grid, best.least_squares()[:, None], floor)
    best.consider(best.codes, served.qparams.scale)
    best.consider(rounding(rows, served, moments, False), served.qparams.scale)
    return _scaled(grid, best.scale[:, None], floor), best.codes


def _scaled(grid: Grid, scales: Tensor, floor: Callable[[QParams], QParams]) -> Grid:
    """The grid of rows that stand once for each of their `scales` (shape [channels, times])."""
    times = scales.shape[1]
    zero = grid.qparams.zero_point.repeat_interleave(times)
    multipliers = None if grid.multipliers is None else grid.multipliers.repeat_interleave(times, dim=0)
    return replace(grid, qparams=floor(QParams(grid.qparams.spec, scales.flatten(), zero)), multipliers=multipliers)


class _Best:
    """For each row the codes and the scale of least error so far. In float32: scales that are worth telling apart differ by far more."""

    def __init__(self, rows: Tensor, moments: Tensor) -> None:
        self._rows, self._moments = rows.float(), moments
        self.codes, self.scale = torch.zeros_like(rows), torch.ones_like(rows[:, 0])
        self._error = torch.full_like(self._rows[:, 0], torch.inf)

    def consider(self, codes: Tensor, scale: Tensor) -> None:
        """Take these for every row that they cost less."""
        difference = codes * scale[:, None] - self._rows
        error = self._inner(difference, difference)
        better = error < self._error
        self.codes, self.scale = torch.where(better[:, None], codes, self.codes), torch.where(better, scale, self.scale)
        self._error = torch.where(better, error, self._error)

    def least_squares(self) -> Tensor:
        """The scale that serves each row's codes best; its own where that is none."""
        energy, along = self._inner(self.codes, self.codes), self._inner(self.codes, self._rows)
        tiny = torch.finfo(torch.float32).tiny
        found = along / energy.clamp(min=tiny)
        return torch.where(found > tiny, found, self.scale)

    def _inner(self, one: Tensor, other: Tensor) -> Tensor:
        """one M other' of each row."""
        parts = one.reshape(len(self._moments), -1, one.shape[1]) @ self._moments
        return (parts.reshape(one.shape) * other).sum(dim=1)
