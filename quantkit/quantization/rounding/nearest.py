"""Rounding to nearest, ties to even: code = clamp(rint(w / scale))."""

from __future__ import annotations

from torch import Tensor

from quantkit.core.numerics.affine import separate_pairs
from quantkit.quantization.rounding.grid import Grid
from quantkit.quantization.rounding.layer_moments import LayerMoments


def round_nearest(rows: Tensor, grid: Grid, moments: LayerMoments | None, paired: bool) -> Tensor:  # noqa: ARG001 - the protocol's
    """The nearest codes; with `paired`, pairs that could saturate are pulled apart."""
    scale = grid.qparams.shaped(grid.qparams.scale, rows.dim())
    codes = grid.nearest(rows / scale, grid.multipliers)
    return separate_pairs(codes) if paired else codes
