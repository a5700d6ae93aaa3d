"""A plan in torch, block by block, from the codes that lie on the disk: what its file is held against."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from quantkit.core.spec import Allocation
from quantkit.export.outline import Blocks, Part
from quantkit.streaming.passes import Work, swapped
from quantkit.streaming.plans import Choices
from quantkit.streaming.rounding import Quantized, Rounded
from quantkit.streaming.shelf import Shelf, read_slice
from quantkit.streaming.skeleton import call


@torch.no_grad()
def simulate(work: Work, choices: Choices, plan: Allocation, ids: Tensor, mask: Tensor) -> Tensor:
    """The scores [items, tokens, vocabulary] of a few items under the plan."""
    skeleton, parts = work.skeleton, choices.parts(plan)
    schemes = {layer: scheme for name, scheme in plan.items() for layer in choices.groups[name]}
    hidden = skeleton.enter(ids, mask, skeleton.checkpoint.read([f"{skeleton.table}.weight"]).popitem()[1])
    frame = skeleton.frame(mask)

    def under(root: nn.Module, names: dict[str, str]) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for inner, layer in names.items():
            if isinstance(parts[layer], Blocks):
                linear = cast("nn.Linear", root.get_submodule(inner))
                found[inner] = Quantized(linear, read_rounded(work.shelf, parts[layer]), schemes[layer])
        return found

    for number in range(skeleton.blocks):
        block = skeleton.block(number)
        with swapped(block, under(block, {inner: skeleton.name(number, inner) for inner in skeleton.linears})):
            hidden = call(block, hidden, frame)
    with skeleton.tail(), swapped(skeleton.network, under(skeleton.network, {skeleton.head: skeleton.head})):
        return skeleton.leave(hidden, mask)


def read_rounded(shelf: Shelf, part: Part) -> Rounded:
    """A matrix's codes from the disk."""
    assert isinstance(part, Blocks)
    return Rounded(read_slice(shelf.folder, part.codes), read_slice(shelf.folder, part.scale), part.bits, part.size)
