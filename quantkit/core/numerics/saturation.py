"""Integer sums as processors without VNNI add them: u8×s8 products two by two in 16 bits (VPMADDUBSW), where a sum may saturate.

    lost = Σ over pairs of (clamp(a₀·c₀ + a₁·c₁, −32768, 32767) − (a₀·c₀ + a₁·c₁))

a: unsigned activation codes as they are stored, the zero point not subtracted; c: signed weight codes. Pairs are neighbours in the kernel's
order of products (`product_rows` of a target): from the first on, the last one alone where their number is odd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = -32768, 32767
LARGEST_CODE = 255  # of an activation


def pairs_at_risk(rows: Tensor) -> Tensor:
    """Which neighbours of `rows`, shape [channels, products], can saturate: shape [channels, pairs]."""
    pairs = F.pad(rows.float(), (0, rows.shape[1] % 2)).reshape(len(rows), -1, 2)
    most, least = (LARGEST_CODE * pairs.clamp(**side).sum(dim=2) for side in ({"min": 0}, {"max": 0}))
    return (most > HIGHEST) | (least < LOWEST)


def lost_in_products(codes: Tensor, rows: Tensor) -> Tensor:
    """What saturation takes from the sums of `codes` [..., products] · `rows` [channels, products]: shape [..., channels]."""
    lost = torch.zeros(*codes.shape[:-1], len(rows))
    risk = pairs_at_risk(rows)
    for pair in risk.any(dim=0).nonzero().flatten().tolist():
        channels = risk[:, pair].nonzero().flatten()
        places = slice(2 * pair, 2 * pair + 2)
        total = codes[..., places].float() @ rows[channels, places].float().T
        lost[..., channels] += total.clamp(LOWEST, HIGHEST) - total
    return lost


def lost_in_convolution(
    codes: Tensor, rows: Tensor, kernel: Sequence[int], zero_point: float,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """As `lost_in_products` for a convolution of `codes` [items, channels, …] in one or two dimensions, padded with the zero point.

    `rows` are [output channels, taps · input channels of a group], channels inside.
    """
    if codes.dim() == 3:
        flat = lost_in_convolution(
            codes[:, :, None], rows, (1, *kernel), zero_point, (1, *stride), (0, *padding), (1, *dilation), groups
        )  # fmt: skip
        return flat[:, :, 0]
    items, channels = codes.shape[:2]
    padded = F.pad(codes.float(), (padding[1], padding[1], padding[0], padding[0]), value=zero_point)
    columns = F.unfold(padded, tuple(kernel), tuple(dilation), stride=tuple(stride))  # channels outside, taps inside
    columns = columns.reshape(items, groups, channels // groups, -1, columns.shape[-1]).permute(0, 1, 4, 3, 2).flatten(3)
    parts = zip(columns.unbind(1), rows.reshape(groups, -1, rows.shape[1]), strict=True)
    lost = torch.cat([lost_in_products(part, weight) for part, weight in parts], dim=-1)
    sides = [
        (size - step * (taps - 1) - 1) // stride_ + 1
        for size, taps, step, stride_ in zip(padded.shape[2:], kernel, dilation, stride, strict=True)
    ]
    return lost.movedim(-1, 1).reshape(items, len(rows), *sides)
