"""Rounding to nearest, ties to even: code = clamp(rint(w / scale))."""

from __future__ import annotations

from torch import Tensor

from quantkit.affine import QParams, quantize, separate_pairs


def round_nearest(rows: Tensor, qparams: QParams, moments: Tensor | None, paired: bool) -> Tensor:  # noqa: ARG001 - the protocol's
    """The nearest codes; with `paired`, pairs that could saturate are pulled apart."""
    codes = quantize(rows, qparams)
    return separate_pairs(codes) if paired else codes
