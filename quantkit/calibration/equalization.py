"""Cross-layer equalisation: channels between layers are divided by factors that the weights on both sides take back.

Nagel et al., arXiv 1906.04721, section 4.1; the factor that of SmoothQuant, Xiao et al., arXiv 2211.10438, equation 4, at α = ½. With x
what flows between layers, and f whatever commutes with a positive factor of a channel (`channels`),

    W_made ← W_made / s (rows, and the bias),     W_read ← W_read s (columns)

is the same network. Rows have scales of their own, so they may be divided by anything. What is to be balanced is the tensor, which has one
scale for all channels, against the columns that read it, which share each row's scale:

    s_c = √( max |x_c| / r_c ),     r_c² = mean over outputs o of (|w_oc| / max_c |w_oc|)²

as a multiple of the mean over the channels that share a tensor. Factors are rounded to powers of two, so that the float network computes
the very same bits. Tried on ResNet44, apart: divergence 0.96 (w4a8) and 0.98 (w3a8) of what it is without; α = 0, ¼, ¾ and 1 no better.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from quantkit.calibration.channels import FIXED, Carried, Channels, Use, find_channels
from quantkit.data.batch import Batch, of_tokens
from quantkit.network.capture import capture_again
from quantkit.network.captured import Captured

MOST_BITS = 8  # factors from 2^-8 to 2^8


def equalize(captured: Captured, batches: Iterable[Batch]) -> Captured:
    """The network with equalised channels, captured again under the same names; `captured` is left as it is.

    `batches` show how large each channel becomes. Computes the same, bit for bit, where no number leaves the range of normal floats.
    """
    channels = find_channels(captured.module)
    exponents = choose_exponents(captured.module, channels, largest(captured, channels, batches))
    module = fx.GraphModule(captured.module, copy.deepcopy(captured.module.graph))
    for use in channels.uses:
        for name, value in _rescaled(captured.module, use, exponents).items():
            room, _, own = name.rpartition(".")
            setattr(module.get_submodule(room), own, nn.Parameter(value, requires_grad=False))
    return capture_again(module, captured)


@torch.no_grad()
def largest(captured: Captured, channels: Channels, batches: Iterable[Batch]) -> NDArray[np.float64]:
    """By class, the largest magnitude of any of its channels, 0 where none was seen; padding is left out."""
    found = np.zeros(channels.count)

    class Watch(fx.Interpreter):
        counted: Tensor | None = None

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            carried = channels.tensors.get(n.name)
            if carried is not None:
                np.maximum.at(found, carried.classes, _by_channel(cast("Tensor", value), carried, self.counted))
            return value

    for batch in batches:
        watch = Watch(captured.module)
        watch.counted = batch.counted
        watch.run(*[batch.inputs[name] for name in captured.graph.inputs])
    return found


def choose_exponents(module: fx.GraphModule, channels: Channels, seen: NDArray[np.float64]) -> NDArray[np.int64]:
    """log₂ of each class's factor; 0 for those that are FIXED, never seen or never read."""
    squares, readers = np.zeros(channels.count), np.zeros(channels.count)
    for use in channels.uses:
        if use.read is not None and not _is_depthwise(module, use):
            np.add.at(squares, use.read, _column_energy(module, use))
            np.add.at(readers, use.read, 1)
    free = (seen > 0) & (squares > 0)
    free[FIXED] = False
    wanted = np.zeros(channels.count)
    wanted[free] = np.log2(seen[free] / np.sqrt(squares[free] / readers[free])) / 2
    together = _families(channels)
    for family in np.unique(together[free]):
        members = free & (together == family)
        wanted[members] -= wanted[members].mean()
    return np.clip(np.rint(wanted), -MOST_BITS, MOST_BITS).astype(np.int64)


def _families(channels: Channels) -> NDArray[np.int64]:
    """A number for each class: equal for those of which channels share a tensor, directly or through others."""
    found = np.arange(channels.count)
    is_changing = True
    while is_changing:
        before = found.copy()
        for carried in channels.tensors.values():
            free = carried.classes[carried.classes != FIXED]
            if len(free):
                found[free] = found[free].min()
        is_changing = bool((found != before).any())
    return found


def _rescaled(module: fx.GraphModule, use: Use, exponents: NDArray[np.int64]) -> dict[str, Tensor]:
    """The layer's parameters with what its channels were multiplied by taken back."""
    weight = module.get_parameter(use.weight).detach()
    made = torch.exp2(torch.from_numpy(-exponents[use.made]).float()).to(weight.device)
    found = {use.weight: weight * made.reshape(-1, *[1] * (weight.dim() - 1))}
    if use.read is not None:
        read = torch.exp2(torch.from_numpy(exponents[use.read]).float()).to(weight.device)
        columns = read.reshape(use.groups, 1, -1, *[1] * (weight.dim() - 2))
        found[use.weight] = (found[use.weight].reshape(use.groups, -1, *weight.shape[1:]) * columns).reshape(weight.shape)
    if use.bias is not None:
        found[use.bias] = module.get_parameter(use.bias).detach() * made
    return found


def _column_energy(module: fx.GraphModule, use: Use) -> NDArray[np.float64]:
    """r² of each channel that the layer reads."""
    weight = module.get_parameter(use.weight).detach().double().cpu()
    rows = weight.reshape(use.groups, -1, weight.shape[1], weight[0, 0].numel()).abs()
    shares = rows / rows.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return np.asarray(shares.square().mean(dim=(1, 3)).flatten().numpy(), np.float64)


def _is_depthwise(module: fx.GraphModule, use: Use) -> bool:
    """Whether each row reads a single channel: its scale takes any factor."""
    return use.groups > 1 and module.get_parameter(use.weight).shape[1] == 1


def _by_channel(value: Tensor, carried: Carried, counted: Tensor | None) -> NDArray[np.float64]:
    rows = of_tokens(value, counted) if carried.axis == value.dim() - 1 else value
    axis = carried.axis if rows.dim() == value.dim() else rows.dim() - 1  # items and tokens may have become one axis
    return np.asarray(rows.movedim(axis, 0).flatten(1).abs().amax(dim=1).cpu().numpy(), np.float64)
