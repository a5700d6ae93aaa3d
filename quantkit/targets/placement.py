"""`Placement`: which edges carry a quantizer for one allocation. The simulation and the emitters consume the same answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quantkit.core.spec import QuantSpec, Scheme

Slot = tuple[str, int]
Barrier = Literal["vector", "max"]
Storage = Literal["int8", "int4", "bit_stream", "plain"]


@dataclass(frozen=True, slots=True)
class Adapted:
    """The `schemes` of another target's plan, by layer, as far as this one can run them; `changes` say what became of others and why.

    `notes` are what else is to be known.
    """

    schemes: Mapping[str, Scheme]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Q/DQ go, and what the runtime's kernels make of it.

    `schemes`: the scheme of each quantized layer; a layer that is absent is float. `inputs`: (layer, slot) of activations that
    are quantized on the way in. `outputs`: layers whose output leaves as codes, for every reader. `barriers`: (node, slot) of
    float operations that read dequantized codes and that the runtime would quantize behind our back, and what prevents it.
    `unscaled`: averages of codes that are taken in integer steps and scaled afterwards, so that their sums are exact in any order.
    `float_bias`: layers whose integer product leaves the kernel as float, and only then gets its bias. `storage`: how weight codes
    of so many bits lie in the file; with `made`, so do those of two levels and of codebooks, and the runtime makes INT8 of them, else the
    INT8 codes themselves lie there. `stored`: the scheme of each layer that computes in float32 and whose weight lies narrower in the
    file. `sums`: nodes of float additions that are written as Sum, which no kernel of the runtime takes in. `pools`: max pools that the
    runtime would move behind a quantizer, into a far slower kernel, and what keeps them in front stands behind them. `dynamic`: layers that
    quantize what they read in each call, item by item, and give float. `floating`: layers that compute in floating point with operands of
    a narrower format, which have no quantizer (fp16 in isolation, w4a16). `float32`: None where the network computes in float32; where it
    computes in half, the layers that stay float32.

    In half, a layer computes in half or, if it is named, in float32; a quantizer takes what it reads as it is; every other operation
    computes in half unless all that it reads was made in float32. The network's own inputs count as half.
    """

    schemes: Mapping[str, Scheme]
    inputs: frozenset[Slot]
    outputs: frozenset[str]
    barriers: Mapping[Slot, Barrier]
    unscaled: frozenset[str] = frozenset()
    float_bias: frozenset[str] = frozenset()
    storage: Mapping[int, Storage] = field(default_factory=dict)
    made: bool = True
    stored: Mapping[str, Scheme] = field(default_factory=dict)
    sums: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    dynamic: Mapping[str, Scheme] = field(default_factory=dict)
    floating: Mapping[str, Scheme] = field(default_factory=dict)
    float32: frozenset[str] | None = None

    @property
    def all_schemes(self) -> dict[str, Scheme]:
        """The scheme of every layer that has another than float32, however it computes."""
        return {**self.schemes, **self.dynamic, **self.floating, **self.stored}

    def of_layer(self, name: str) -> tuple[object, ...]:
        """All that it says of how one layer computes; nodes between layers are apart from this."""
        ways = (self.schemes.get(name), self.dynamic.get(name), self.floating.get(name), self.stored.get(name))
        slots = frozenset(slot for layer, slot in self.inputs if layer == name)
        return (*ways, slots, name in self.outputs, name in self.float_bias, None if self.float32 is None else name in self.float32)

    @property
    def int8(self) -> frozenset[str]:
        """The layers that are to run in integers: those with a quantizer, save fp8."""
        return frozenset(name for name, scheme in {**self.schemes, **self.dynamic}.items() if isinstance(scheme.activations, QuantSpec))
