"""How a number is quantized (`QuantSpec`) and how a group is (`Scheme`). Standard library only.

A scheme is composed of two specs and written `w8a8`, `w4a8`, `fp32`, `fp16`, `fp8`, `w4a16`; a name is parsed once, at the edge, by
`parse_scheme`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quantkit.errors import SchemeError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor. Input shape [A, B] → scale shape []."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each slice along `axis`. Input shape [A, B], axis 0 → scale shape [A]."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale for each `size` neighbours along `axis`. Input shape [A, B], axis 1 → scale shape [A, B / size]."""

    axis: int
    size: int

    def fitting(self, length: int) -> PerBlock | None:
        """The largest of `size` and its halves, 16 the least, that divides an axis of that length; None if none does."""
        sizes = [size for size in BLOCK_SIZES if size <= self.size and length % size == 0]
        return PerBlock(self.axis, sizes[0]) if sizes else None


Granularity = PerTensor | PerChannel | PerBlock
BLOCK_SIZES = (128, 64, 32, 16)  # for which TensorRT has weight-only kernels (quantized-types-explicit-quantization.html)


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """An integer format: `bits` wide, signed or not, symmetric (zero_point 0) or not. Its scales are floats of `scale_bits`: 32 or 16."""

    bits: int
    signed: bool
    symmetric: bool
    granularity: Granularity
    scale_bits: int = 32

    @property
    def code_min(self) -> int:
        """Lowest code. Symmetric formats leave the lowest out, so that codes are balanced: [-127, 127]."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def code_max(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A narrow floating-point format: half, which has no scale and is computed with as it is, or E4M3 with scales in half."""

    bits: Literal[16, 8]
    granularity: Granularity | None = None
    scale_bits: int = 16

    @property
    def code_max(self) -> float:
        """The largest finite number."""
        return {16: 65504.0, 8: 448.0}[self.bits]

    @property
    def code_min(self) -> float:
        """The lowest finite number."""
        return -self.code_max

    @property
    def symmetric(self) -> bool:
        """As there is no zero point."""
        return True


Format = QuantSpec | FloatFormat


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one group is quantized; `None` is float32. Weights alone may be narrow: they are then stored so, and computed with in float."""

    name: str
    weights: Format | None
    activations: Format | None

    @property
    def is_float(self) -> bool:
        """Whether its layers compute in floating point, in float32 or half: what they read has no quantizer (that of fp8 has one)."""
        return self.activations is None or self.activations.granularity is None

    @property
    def precision(self) -> tuple[int, int]:
        """What sorts schemes by precision: bits of the activations, then of the weights."""
        return (32 if self.activations is None else self.activations.bits, 32 if self.weights is None else self.weights.bits)


FLOAT = Scheme("fp32", None, None)
HALF = FloatFormat(16)
FLOATING: Mapping[str, Scheme] = {
    "fp16": Scheme("fp16", HALF, HALF),
    "fp8": Scheme("fp8", FloatFormat(8, PerChannel(0)), FloatFormat(8, PerTensor())),
    "w4a16": Scheme("w4a16", QuantSpec(4, signed=True, symmetric=True, granularity=PerBlock(1, 128), scale_bits=16), HALF),
}
_PATTERN = re.compile(r"w([2-8])a(8)")


def parse_scheme(text: str) -> Scheme:
    """`"w4a8"` → weights 4-bit signed symmetric per output channel, activations 8-bit unsigned per tensor.

    Raises SchemeError for anything that is not `fp32`, of FLOATING, or `w<2..8>a8`.
    """
    if text == FLOAT.name:
        return FLOAT
    if text in FLOATING:
        return FLOATING[text]
    found = _PATTERN.fullmatch(text)
    if not found:
        wanted, next_step = f"fp32, {', '.join(FLOATING)}, or w<bits>a8 such as w8a8 or w4a8", "list schemes as --schemes w8a8,w4a8,fp32"
        raise SchemeError(f"unknown scheme {text!r}", wanted, next_step)
    weight_bits, activation_bits = int(found[1]), int(found[2])
    return Scheme(
        text,
        QuantSpec(weight_bits, signed=True, symmetric=True, granularity=PerChannel(0)),
        QuantSpec(activation_bits, signed=False, symmetric=False, granularity=PerTensor()),
    )


def is_float(scheme: str) -> bool:
    """Whether layers under the scheme of that name compute in floating point."""
    return parse_scheme(scheme).is_float
