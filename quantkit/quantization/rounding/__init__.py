"""Roundings: which code each weight gets, once its grid is chosen. One file each, dispatched from one literal.

nearest.py   each weight by itself
gptq.py      one after the other, each making up for the errors of those before it
adaround.py  up or down, all learned together

Which codes there are for it to take, a `Grid` says (grid.py): all of so many bits, or those of one of these.
two_level.py   narrow codes times a small integer for each group of input channels
codebook.py    a table of int8 levels

scales.py      which multiple of the scale, with the codes that come of it, serves a layer's outputs best
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from quantkit.quantization.rounding.adaround import round_adaround
from quantkit.quantization.rounding.codebook import fit_codebook
from quantkit.quantization.rounding.gptq import round_gptq
from quantkit.quantization.rounding.grid import Grid
from quantkit.quantization.rounding.layer_moments import LayerMoments
from quantkit.quantization.rounding.nearest import round_nearest
from quantkit.quantization.rounding.two_level import fit_two_level


class Rounding(Protocol):
    """How every rounding is called."""

    def __call__(self, rows: Tensor, grid: Grid, moments: LayerMoments | None, paired: bool) -> Tensor:
        """Codes, float32 integers, of `rows` (shape [channels, products in the kernel's order]).

        `moments` are those of what the products are made with, or None where they are unknown. With `paired`, no two
        neighbours may saturate (`affine.separate_pairs`).
        """


ROUNDINGS: Mapping[str, Rounding] = {"gptq": round_gptq, "adaround": round_adaround, "nearest": round_nearest}
QUICKER: Mapping[Rounding, Rounding] = {round_adaround: round_gptq}  # by which scales are tried, where the rounding itself takes long
BLIND = frozenset({"nearest"})  # those that read no moments, so that none need be gathered

__all__ = ["BLIND", "QUICKER", "ROUNDINGS", "Grid", "LayerMoments", "Rounding", "fit_codebook", "fit_two_level"]
