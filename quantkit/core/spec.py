"""How a number is quantized (`QuantSpec`) and how a group is (`Scheme`). Standard library only.

A scheme is composed of two specs and written `w8a8`, `w4a8`, `w8d8`, `fp32`, `fp16`, `fp8`, `w4a16`; a name is parsed once, at the edge,
by `parse_scheme`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from quantkit.core.errors import SchemeError


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


@dataclass(frozen=True, slots=True)
class PerGroup:
    """Two levels: one scale for each slice along `axis`, and in it one small integer multiplier for every `size` input channels.

    Input shape [A, B], axis 0 → scale shape [A], multipliers [A, B / width].
    """

    axis: int
    size: int

    def width(self, channels: int) -> int:
        """How many of so many input channels share a multiplier: at most `size`, and all groups alike."""
        return next(width for width in range(min(self.size, channels), 0, -1) if channels % width == 0)


Granularity = PerTensor | PerChannel | PerBlock | PerGroup
BLOCK_SIZES = (128, 64, 32, 16)  # for which TensorRT has weight-only kernels (quantized-types-explicit-quantization.html)


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """An integer format: `bits` wide, signed or not, symmetric (zero_point 0) or not. Its scales are floats of `scale_bits`: 32 or 16.

    With `codebook`, codes are places in a table of int8 levels that each tensor has of its own. `dynamic` activations have no range of
    their own: each call finds it in what it is given.
    """

    bits: int
    signed: bool
    symmetric: bool
    granularity: Granularity
    scale_bits: int = 32
    codebook: bool = False
    dynamic: bool = False

    @property
    def label(self) -> str:
        """What distinguishes formats of weights in a name: `4`, `4b32` (blocks), `4g16` (two levels), `4c` (codebook)."""
        letter = {PerGroup: "g", PerBlock: "b"}.get(type(self.granularity), "")
        size = self.granularity.size if isinstance(self.granularity, PerGroup | PerBlock) else ""
        return f"{self.bits}{letter}{size}{'c' * self.codebook}"

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

    name: str
    bits: int
    granularity: Granularity | None = None
    scale_bits: int = 16

    @property
    def label(self) -> str:
        """What distinguishes it from other formats of weights in a name."""
        return "16" if self.granularity is None else self.name

    @property
    def code_max(self) -> float:
        """The largest finite number."""
        return 65504.0 if self.bits == 16 else 448.0

    @property
    def code_min(self) -> float:
        """The lowest finite number."""
        return -self.code_max

    @property
    def symmetric(self) -> bool:
        """As there is no zero point."""
        return True


Format = QuantSpec | FloatFormat


class Scheme(str):
    """How one group is quantized; `None` is float32. Weights alone may be narrow: they are then stored so, and computed with in float.

    It is its own name, as the members of an enumeration of texts are: tables, files and fingerprints hold it as text, and what it stands
    for is parsed once, where text comes in (`parse_scheme`).
    """

    __slots__ = ("activations", "weights")

    weights: Format | None
    activations: Format | None

    def __new__(cls, name: str, weights: Format | None, activations: Format | None) -> Scheme:  # noqa: D102 - as __init__
        scheme = super().__new__(cls, name)
        object.__setattr__(scheme, "weights", weights)
        object.__setattr__(scheme, "activations", activations)
        return scheme

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self} is frozen: {name} cannot be set")

    def __reduce__(self) -> tuple[type[Scheme], tuple[str, Format | None, Format | None]]:  # for copies and pickles
        return Scheme, (str(self), self.weights, self.activations)

    @property
    def name(self) -> str:
        """The name as plain text."""
        return str(self)

    @property
    def is_float(self) -> bool:
        """Whether its layers compute in floating point, in float32 or half: what they read has no quantizer (that of fp8 has one)."""
        return self.activations is None or self.activations.granularity is None

    @property
    def is_dynamic(self) -> bool:
        """Whether its layers compute in integers on activations that are quantized in each call: they read and give float tensors."""
        return isinstance(self.activations, QuantSpec) and self.activations.dynamic

    @property
    def reads_float(self) -> bool:
        """Whether what its layers read and give is float, so that nothing is converted between them and a float layer."""
        return self.is_float or self.is_dynamic

    @property
    def is_stored(self) -> bool:
        """Whether its layers compute in float32 with weights that lie narrower in the file."""
        return self.activations is None and self.weights is not None

    @property
    def has_blocks(self) -> bool:
        """Whether weights have a scale for each few of them along a row."""
        return self.weights is not None and isinstance(self.weights.granularity, PerBlock)

    @property
    def precision(self) -> tuple[int, int, int, bool]:
        """What sorts schemes by precision: bits of the activations, then of the weights, then a codebook before two levels before one.

        Blocks count as two levels. Last, activations whose range is that of the call before those of a fixed one.
        """
        weights = self.weights
        form = 0
        if isinstance(weights, QuantSpec):
            form = 2 if weights.codebook else int(isinstance(weights.granularity, PerGroup | PerBlock))
        bits = [32 if spec is None else spec.bits for spec in (self.activations, weights)]
        return (bits[0], bits[1], form, self.is_dynamic)


Allocation = Mapping[str, Scheme]  # a scheme for each group

FLOAT = Scheme("fp32", None, None)
HALF = FloatFormat("half", 16)
BYTE = QuantSpec(8, signed=False, symmetric=False, granularity=PerTensor())
BYTE_IN_CALL = replace(BYTE, dynamic=True)
FLOATING: Mapping[str, Scheme] = {
    "fp16": Scheme("fp16", HALF, HALF),
    "fp8": Scheme("fp8", FloatFormat("e4m3", 8, PerChannel(0)), FloatFormat("e4m3", 8, PerTensor())),
    "w4a16": Scheme("w4a16", QuantSpec(4, signed=True, symmetric=True, granularity=PerBlock(1, 128), scale_bits=16), HALF),
    "w16a32": Scheme("w16a32", HALF, None),
}
_INT8 = re.compile(r"w([2-8])a8")
_INTEGER = re.compile(r"w([2-8]|16)a(4|16)")
_TWO_LEVEL = re.compile(r"w([2-6])g(16)a8")
_CODEBOOK = re.compile(r"c([2-6])([ad])8")
_DYNAMIC = re.compile(r"w([2-8])d8")
_BLOCKS = re.compile(r"w([48])b(16|32|64|128)(d8|a32)")
_STORED = re.compile(r"w([2-8])a32")
_STORED_CODEBOOK = re.compile(r"c([2-6])a32")


def parse_scheme(text: str) -> Scheme:
    """`"w4a8"` → weights 4-bit signed symmetric per output channel, activations 8-bit unsigned per tensor.

    `w4g16a8` has a multiplier for each 16 input channels, `c4a8` a table of 16 levels; `w8d8` and `c4d8` quantize activations in each call,
    by their own range there; `w4b32d8` and `w4b32a32` have a scale for each 32 weights of a row, and the former one for each 32 activations
    in each call; `w4a4` and `w16a16` have activations of other widths; `w8a32`, `c4a32` and `w16a32` (half) are stored so, and
    compute in float32. Raises SchemeError for anything else that is not `fp32` or of FLOATING.
    """
    if text == FLOAT:
        return FLOAT
    if text in FLOATING:
        return FLOATING[text]
    if found := _INT8.fullmatch(text):
        return Scheme(text, _weights(found, PerChannel(0)), BYTE)
    if found := _INTEGER.fullmatch(text):
        return Scheme(text, _weights(found, PerChannel(0)), replace(BYTE, bits=int(found[2])))
    if found := _TWO_LEVEL.fullmatch(text):
        return Scheme(text, _weights(found, PerGroup(0, int(found[2]))), BYTE)
    if found := _CODEBOOK.fullmatch(text):
        return Scheme(text, _weights(found, PerChannel(0), codebook=True), BYTE if found[2] == "a" else BYTE_IN_CALL)
    if found := _DYNAMIC.fullmatch(text):
        return Scheme(text, _weights(found, PerChannel(0)), BYTE_IN_CALL)
    if found := _BLOCKS.fullmatch(text):
        size = int(found[2])
        in_call = QuantSpec(8, signed=True, symmetric=True, granularity=PerBlock(-1, size), dynamic=True)
        return Scheme(text, _weights(found, PerBlock(1, size)), in_call if found[3] == "d8" else None)
    if found := _STORED.fullmatch(text):
        return Scheme(text, _weights(found, PerChannel(0)), None)
    if found := _STORED_CODEBOOK.fullmatch(text):
        return Scheme(text, _weights(found, PerChannel(0), codebook=True), None)
    wanted = f"fp32, {', '.join(FLOATING)}, or w<bits>a8 such as w8a8 or w4a8, w4a4, w8d8, w4b32d8, w4g16a8, c4a8, w8a32, c4a32"
    raise SchemeError(f"unknown scheme {text!r}", wanted, "list schemes as --schemes w8a8,w4a8,fp32")


def parse_schemes(names: Iterable[str]) -> tuple[Scheme, ...]:
    """The schemes of these names. Raises SchemeError for a name that is none."""
    return tuple(map(parse_scheme, names))


def parse_allocation(names: Mapping[str, str]) -> dict[str, Scheme]:
    """A scheme for each group (or layer), from the schemes' names. Raises SchemeError for a name that is none."""
    return {group: parse_scheme(name) for group, name in names.items()}


def _weights(found: re.Match[str], granularity: Granularity, codebook: bool = False) -> QuantSpec:
    return QuantSpec(int(found[1]), signed=True, symmetric=True, granularity=granularity, codebook=codebook)
