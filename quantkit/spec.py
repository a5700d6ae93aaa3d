"""How a number is quantized (`QuantSpec`) and how a group is (`Scheme`). Standard library only.

A scheme is composed of two specs and written `w8a8`, `w4a8`, `fp32`; a name is parsed once, at the edge, by `parse_scheme`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantkit.errors import SchemeError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor. Input shape [A, B] → scale shape []."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each slice along `axis`. Input shape [A, B], axis 0 → scale shape [A]."""

    axis: int


Granularity = PerTensor | PerChannel


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """An integer format: `bits` wide, signed or not, symmetric (zero_point 0) or not."""

    bits: int
    signed: bool
    symmetric: bool
    granularity: Granularity

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
class Scheme:
    """How one group is quantized; `None` is float32. Weights alone may be narrow: they are then stored so, and computed with in float."""

    name: str
    weights: QuantSpec | None
    activations: QuantSpec | None

    @property
    def is_float(self) -> bool:
        """Whether its layers compute in floating point."""
        return self.activations is None

    @property
    def precision(self) -> tuple[int, int]:
        """What sorts schemes by precision: bits of the activations, then of the weights."""
        return (32 if self.activations is None else self.activations.bits, 32 if self.weights is None else self.weights.bits)


FLOAT = Scheme("fp32", None, None)
_PATTERN = re.compile(r"w([2-8])a(8)")


def parse_scheme(text: str) -> Scheme:
    """`"w4a8"` → weights 4-bit signed symmetric per output channel, activations 8-bit unsigned per tensor.

    Raises SchemeError for anything that is not `fp32` or `w<2..8>a8`.
    """
    if text == FLOAT.name:
        return FLOAT
    found = _PATTERN.fullmatch(text)
    if not found:
        wanted, next_step = "fp32, or w<bits>a8 such as w8a8 or w4a8", "list schemes as --schemes w8a8,w4a8,fp32"
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
