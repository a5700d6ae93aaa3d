"""Two-level scales: groups of input channels have small integer multipliers, and narrow code × multiplier is an int8 code.

One float scale a channel stays, so the ordinary int8 kernel runs. For each channel: every group's own step of least error, then of a row
of scales the one under which whole multiples of it serve the groups best. The multipliers are not kept apart from the codes: the least
integer that divides a group's codes and leaves narrow ones gives them back (`export/storage.py`).

Tried on three networks: at equal bytes w4g16a8 diverges from float by 0.88 to 0.93 times what lies between w4a8 and w5a8, but by 1.16 to
1.26 times what lies between c4a8 and c5a8 (codebook.py), so no default offers it. Errors weighed by the inputs' energy gave no better
multipliers once the codes are rounded by GPTQ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.core.numerics.affine import CLIP_RATIOS, QParams
from quantkit.quantization.rounding.grid import BYTES, MOST, Grid

MOST_MULTIPLIER = 15  # four bits in the file
SCALES = 24  # tried for each channel


def multiplier_limit(bits: int) -> int:
    """The largest multiplier of narrow codes of that width."""
    return min(MOST_MULTIPLIER, MOST // ((1 << (bits - 1)) - 1))


def fit_two_level(rows: Tensor, groups: Tensor, bits: int) -> Grid:
    """Scales and multipliers for `rows` (shape [channels, products]); `groups` says which group each product is of."""
    reach, most = (1 << (bits - 1)) - 1, multiplier_limit(bits)
    rows, shape = rows.detach().float(), (len(rows), int(groups.max()) + 1)

    def errors(steps: Tensor) -> Tensor:
        each = steps[:, groups]
        error = (rows - (rows / each).round().clamp(-reach, reach) * each).square()
        return torch.zeros(shape, device=rows.device).index_add_(1, groups, error)

    peak = torch.zeros(shape, device=rows.device).scatter_reduce_(1, groups.expand_as(rows), rows.abs(), "amax")
    tiny = torch.finfo(torch.float32).tiny
    own, least = peak, torch.full(shape, torch.inf, device=rows.device)
    for ratio in CLIP_RATIOS:
        steps = (peak * ratio / reach).clamp(min=tiny)
        error = errors(steps)
        own, least = torch.where(error < least, steps, own), torch.minimum(error, least)
    largest = own.amax(dim=1, keepdim=True)
    scale, multipliers = largest / most, torch.ones_like(own)
    total = torch.full_like(largest, torch.inf)
    for parts in torch.linspace(1, most, SCALES if shape[1] > 1 else 1).tolist():
        tried = (largest / parts).clamp(min=tiny)
        whole = (own / tried).round().clamp(1, most)
        error = errors(whole * tried).sum(dim=1, keepdim=True)
        better = error < total
        scale, multipliers, total = torch.where(better, tried, scale), torch.where(better, whole, multipliers), torch.minimum(error, total)
    scale = scale.squeeze(1)
    scale = torch.where(scale > tiny, scale, torch.ones_like(scale))  # a channel of zeros
    return Grid(QParams(BYTES, scale, torch.zeros_like(scale)), multipliers[:, groups], reach)
