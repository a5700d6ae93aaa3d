"""A matrix under a scheme: its codes as the runtime reads them, and a layer that computes with them as the runtime does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.errors import SchemeError
from quantkit.core.numerics.affine import CLIP_RATIOS, QParams, choose_qparams, dequantize, fake_quantize_in_call
from quantkit.core.spec import BLOCK_SIZES, FLOAT, PerBlock, QuantSpec, Scheme
from quantkit.export.qdq import FLOAT_SUMS, INTEGER_SUMS
from quantkit.export.storage import in_blocks
from quantkit.quantization.moments import MOST_PRODUCTS
from quantkit.quantization.rounding import ROUNDINGS, Grid, LayerMoments

FEW = 1 << 16  # weights that are rounded together, so that they stay in the processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """`codes` [outputs, blocks, bytes] and `scale` [outputs, blocks], as MatMulNBits reads them."""

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    bits: int
    size: int


def weights_of(scheme: Scheme, inputs: int) -> QuantSpec:
    """The format of a matrix with so many inputs. Raises SchemeError where no block divides them, or the scheme has none."""
    spec = scheme.weights
    if not isinstance(spec, QuantSpec) or not isinstance(spec.granularity, PerBlock):
        raise SchemeError(f"{scheme} in a streamed job", "schemes in blocks, such as w4b32d8, and fp32", "pass --schemes w8b32d8,w4b32d8")
    blocks = spec.granularity.fitting(inputs)
    if blocks is None:
        raise SchemeError(f"{scheme} for a layer of {inputs} inputs", "inputs that blocks of 16 divide", "pass --schemes fp32")
    return replace(spec, granularity=blocks)


def has_blocks(inputs: int) -> bool:
    """Whether blocks of some size divide so many inputs."""
    return PerBlock(1, max(BLOCK_SIZES)).fitting(inputs) is not None


def accuracy_level(scheme: Scheme) -> int:
    """Of MatMulNBits under the scheme."""
    return INTEGER_SUMS if scheme.is_dynamic else FLOAT_SUMS


def round_matrix(weight: Tensor, scheme: Scheme, rounding: str, moments: LayerMoments | None) -> Rounded:
    """`weight` [outputs, inputs] on its grid, by `rounding` with the moments of what it multiplies; to nearest where there are none.

    Scales and codes are those of `WeightBank`, but for what `block_scales` says.
    """
    spec = weights_of(scheme, weight.shape[1])
    assert isinstance(spec.granularity, PerBlock)
    by = ROUNDINGS[rounding if moments is not None else "nearest"]
    step = max(1, FEW // weight.shape[1]) if moments is None else len(weight)
    codes, scales = list[NDArray[np.uint8]](), list[NDArray[np.float32]]()
    for first in range(0, len(weight), step):
        rows = weight[first : first + step]
        scale = block_scales(rows, spec)
        found = by(rows, Grid(QParams(spec, scale, torch.zeros_like(scale))), moments, False)
        codes.append(in_blocks(found.numpy().astype(np.int8), spec.bits, spec.granularity.size))
        scales.append(scale.numpy())
    return Rounded(np.concatenate(codes), np.concatenate(scales), spec.bits, spec.granularity.size)


def block_scales(rows: Tensor, spec: QuantSpec) -> Tensor:
    """The scales that `choose_weight_qparams` gives, [rows, blocks], but where two err as little in float32; in a sixth of its time.

    Blocks stand side by side, a few of them at a time, so that they stay in the processor's cache and every step runs along them.
    """
    assert isinstance(spec.granularity, PerBlock)
    columns = rows.reshape(-1, spec.granularity.size)
    step = max(1, FEW // spec.granularity.size)
    parts = [_least_squares(columns[first : first + step].T.contiguous(), spec) for first in range(0, len(columns), step)]
    return torch.cat(parts).reshape(len(rows), -1)


def _least_squares(columns: Tensor, spec: QuantSpec) -> Tensor:
    """Of each column the multiple of its largest magnitude that errs least."""
    largest = columns.abs().amax(dim=0)
    best, least, steps = torch.ones_like(largest), torch.full_like(largest, torch.inf), torch.empty_like(columns)
    for ratio in CLIP_RATIOS:
        if 1 - ratio > math.sqrt(len(columns)) / (2 * spec.code_max) + 1e-6:  # what it cuts off the largest is more than all errors were
            break
        scale = choose_qparams(-largest * ratio, largest * ratio, spec).scale
        torch.div(columns, scale, out=steps)
        error = steps.round_().clamp_(spec.code_min, spec.code_max).mul_(scale).sub_(columns).square_().sum(dim=0)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def can_use(moments_of: int) -> bool:
    """Whether moments of so many inputs are taken (`second_moments` says why not of more)."""
    return moments_of <= MOST_PRODUCTS


def real(rounded: Rounded) -> Tensor:
    """The matrix [outputs, inputs] that the codes stand for."""
    codes = torch.from_numpy(rounded.codes)
    if rounded.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1)
    whole = codes.reshape(len(codes), -1).float() - (1 << (rounded.bits - 1))
    spec = QuantSpec(rounded.bits, signed=True, symmetric=True, granularity=PerBlock(1, rounded.size))
    scale = torch.from_numpy(rounded.scale)
    return dequantize(whole, QParams(spec, scale, torch.zeros_like(scale)))


class Quantized(nn.Module):
    """A linear layer on the grid of a scheme: what it reads is on its grid of the call, as MatMulNBits has it at that accuracy level."""

    def __init__(self, like: nn.Linear, rounded: Rounded, scheme: Scheme) -> None:
        super().__init__()
        self.weight, self.bias, self.scheme = real(rounded), like.bias, scheme

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's, of inputs [items, tokens, inputs]."""
        spec = self.scheme.activations
        return F.linear(fake_quantize_in_call(x, spec) if isinstance(spec, QuantSpec) else x, self.weight, self.bias)


def is_float(scheme: Scheme) -> bool:
    """Whether the scheme leaves a matrix as it is."""
    return scheme == FLOAT
