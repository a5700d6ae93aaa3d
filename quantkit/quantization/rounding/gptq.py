"""Codes of least output error, not of least weight error (GPTQ, Frantar et al., arXiv 2210.17323; OBQ, arXiv 2208.11580).

With H = E[x x'], the uncentred second moment of a layer's inputs, the squared error of its outputs is tr(ΔW H ΔW'). Columns are rounded
one after the other, those of most input energy H_jj first, and each error is spread over the columns that are still to come:

    δ_j = w_j − scale · code_j,     w_k ← w_k − δ_j U_jk / U_jj  (k > j),     U'U = (H + damping)⁻¹, U upper triangular

Behind a ReLU inputs have a large mean, and much of what nearest rounding costs is a shifted mean; H holds the mean, so no correction of
biases is needed behind this. Codes that must not saturate in pairs are held within what the neighbour's code leaves (ours).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.core.numerics.affine import PAIR_LIMIT
from quantkit.quantization.rounding.grid import Grid
from quantkit.quantization.rounding.layer_moments import LayerMoments
from quantkit.quantization.rounding.nearest import round_nearest

DAMPING = 0.01  # of the mean energy, added to every column's
BLOCK = 32  # columns whose errors are spread on the rest together: 16 to 32 took a half of 128's time, with rows side by side in memory


@torch.no_grad()
def round_gptq(rows: Tensor, grid: Grid, moments: LayerMoments | None, paired: bool) -> Tensor:
    """The codes; to nearest where there are no `moments`."""
    if moments is None:
        return round_nearest(rows, grid, moments, paired)
    order, factor = moments.once(_in_order_of_energy)
    groups, products = order.shape
    place = order.argsort(dim=1)

    def columns(values: Tensor) -> Tensor:
        """Of [rows, products or 1] as [groups, products, rows of a group], in order."""
        parts = values.double().reshape(groups, -1, values.shape[1]).mT
        return parts.expand(-1, products, -1) if parts.shape[1] == 1 else parts.gather(1, order[..., None].expand(-1, -1, parts.shape[2]))

    scale = grid.qparams.shaped(grid.qparams.scale, 2)
    rest, scales = columns(rows.detach()).clone(), columns(scale.expand(len(rows), scale.shape[1] if scale.dim() else 1))
    multipliers = columns(grid.multipliers) if grid.multipliers is not None else None
    limits = _Limits(rest, order, place) if paired else None
    codes = torch.empty_like(rest)
    for start in range(0, products, BLOCK):
        stop = min(start + BLOCK, products)
        errors = torch.empty_like(rest[:, start:stop])
        for column in range(start, stop):
            value, step = rest[:, column], scales[:, column]
            code = grid.nearest(value / step, multipliers[:, column] if multipliers is not None else None)
            code = code if limits is None else limits.within(column, code)
            codes[:, column], errors[:, column - start] = code, value - code * step
            error = errors[:, column - start, None]
            rest[:, column + 1 : stop].baddbmm_(factor[:, column, column + 1 : stop, None], error, alpha=-1)
        rest[:, stop:].baddbmm_(factor[:, start:stop, stop:].mT, errors, alpha=-1)
    return codes.mT.gather(2, place[:, None, :].expand(-1, codes.shape[2], -1)).reshape(rows.shape).float()


class _Limits:
    """Between which codes each column may be, so that no pair saturates with what its neighbour in the kernel has become."""

    def __init__(self, like: Tensor, order: Tensor, place: Tensor) -> None:
        neighbour = order ^ 1  # a last column without one is its own, which is then done
        self._partner = place.gather(1, torch.where(neighbour < order.shape[1], neighbour, order))
        self._low, self._high = torch.full_like(like, -torch.inf), torch.full_like(like, torch.inf)

    def within(self, column: int, code: Tensor) -> Tensor:
        """The column's codes as far as they may go, which its neighbour is then held by."""
        code = torch.minimum(torch.maximum(code, self._low[:, column]), self._high[:, column])
        beside = self._partner[:, column, None, None].expand(-1, 1, code.shape[1])
        self._low.scatter_(1, beside, (-PAIR_LIMIT - code)[:, None])
        self._high.scatter_(1, beside, (PAIR_LIMIT - code)[:, None])
        return code


def _in_order_of_energy(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The order of the columns, shape [groups, products], and in it U with U'U = (H + damping)⁻¹, each row over its diagonal's."""
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    channels = torch.arange(len(moments), device=moments.device)[:, None, None]
    damped = moments.double()[channels, order[:, :, None], order[:, None, :]]
    energy = damped.diagonal(dim1=1, dim2=2)
    energy += DAMPING * energy.mean(dim=1, keepdim=True) + torch.finfo(torch.float32).tiny
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return order, factor / factor.diagonal(dim1=1, dim2=2)[..., None]
