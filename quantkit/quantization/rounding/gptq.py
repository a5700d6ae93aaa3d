"""Codes of least output error, not of least weight error (GPTQ, Frantar et al., arXiv 2210.17323; OBQ, arXiv 2208.11580).

With H = E[x x'], the uncentred second moment of a layer's inputs, the squared error of its outputs is tr(ΔW H ΔW'). Columns are rounded
one after the other, those of most input energy H_jj first, and each error is spread over the columns that are still to come:

    δ_j = (w_j − scale · code_j) / U_jj,     w_k ← w_k − δ_j U_jk  (k > j),     U'U = (H + damping)⁻¹, U upper triangular

Behind a ReLU inputs have a large mean, and much of what nearest rounding costs is a shifted mean; H holds the mean, so no correction of
biases is needed behind this. Codes that must not saturate in pairs are held within what the neighbour's code leaves (ours).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.core.numerics.affine import PAIR_LIMIT
from quantkit.quantization.rounding.grid import Grid
from quantkit.quantization.rounding.nearest import round_nearest

DAMPING = 0.01  # of the mean energy, added to every column's
BLOCK = 128  # columns whose errors are spread on the rest together


@torch.no_grad()
def round_gptq(rows: Tensor, grid: Grid, moments: Tensor | None, paired: bool) -> Tensor:
    """The codes; to nearest where there are no `moments`."""
    if moments is None:
        return round_nearest(rows, grid, moments, paired)
    groups, products, _ = moments.shape
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)
    channels = torch.arange(groups, device=rows.device)[:, None]
    factor = _inverse_factor(moments.double()[channels[..., None], order[:, :, None], order[:, None, :]])
    ordered = order[:, None, :].expand(-1, len(rows) // groups, -1)

    def in_order(values: Tensor) -> Tensor:
        return values.double().reshape(groups, -1, products).gather(2, ordered)

    rest, qparams = in_order(rows.detach()), grid.qparams
    scales = in_order(qparams.shaped(qparams.scale, 2).expand_as(rows))
    multipliers = in_order(grid.multipliers) if grid.multipliers is not None else None
    low, high = torch.full_like(rest, qparams.spec.code_min), torch.full_like(rest, qparams.spec.code_max)
    partner = _partners(order, place) if paired else None
    codes = torch.empty_like(rest)
    for start in range(0, products, BLOCK):
        stop = min(start + BLOCK, products)
        errors = torch.empty_like(rest[:, :, start:stop])
        for column in range(start, stop):
            value, scale = rest[:, :, column], scales[:, :, column]
            code = grid.nearest(value / scale, multipliers[:, :, column] if multipliers is not None else None)
            code = torch.minimum(torch.maximum(code, low[:, :, column]), high[:, :, column])
            error = (value - code * scale) / factor[:, column, column, None]
            rest[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, column, None, column + 1 : stop]
            codes[:, :, column], errors[:, :, column - start] = code, error
            if partner is not None:
                beside = partner[:, column, None, None].expand(-1, code.shape[1], 1)
                low.scatter_(2, beside, torch.maximum(low.gather(2, beside), (-PAIR_LIMIT - code)[:, :, None]))
                high.scatter_(2, beside, torch.minimum(high.gather(2, beside), (PAIR_LIMIT - code)[:, :, None]))
        rest[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return codes.gather(2, place[:, None, :].expand_as(codes)).reshape(rows.shape).float()


def _partners(order: Tensor, place: Tensor) -> Tensor:
    """Where, in `order`, the kernel's neighbour of each column stands; a last column without one is its own, which is then done."""
    neighbour = order ^ 1
    return place.gather(1, torch.where(neighbour < order.shape[1], neighbour, order))


def _inverse_factor(moments: Tensor) -> Tensor:
    """U, upper triangular, with U'U = (H + damping)⁻¹."""
    energy = moments.diagonal(dim1=1, dim2=2)
    energy += DAMPING * energy.mean(dim=1, keepdim=True) + torch.finfo(torch.float32).tiny
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    return factor
