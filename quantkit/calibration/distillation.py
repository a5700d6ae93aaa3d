"""Items made of nothing but the network: inputs under which its batch norms see what they saw in training.

ZeroQ, Cai et al., arXiv 2001.00281, equation 3. For every batch norm, found in the graph, with stored mean μ and variance σ², and the mean
m and variance v of what it reads now, the loss is, averaged over its channels and then over all batch norms,

    ((m − μ) / σ)² + (√v / σ − 1)²

in units of the stored deviation, so that all channels count alike (ZeroQ's own has none). A batch starts as Gaussian noise and is moved by
Adam. Tried: a class that the network is to answer, drawn for each item (DeepInversion, Yin et al., arXiv 1912.08795). The network was then
surer of the items than of real ones, and codebooks of 3 bits that change 5 % of ResNet20's real answers changed 0.0 to 0.8 % of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from quantkit.network.folding import BATCH_NORM

STEPS = 60  # of Adam, for each batch
RATE = 0.1  # at first; it falls to 0 along a cosine
BATCH = 64  # items whose statistics are taken together


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """What a batch norm reads (`source`, a node's name), and the mean and deviation of each channel that it has stored."""

    source: str
    mean: Tensor
    deviation: Tensor


def find_norms(module: fx.GraphModule) -> list[Norm]:
    """The batch norms of an unfolded network, in the order in which they run."""
    found = []
    state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    for node in module.graph.find_nodes(op="call_function", target=BATCH_NORM):
        source, *_, mean, variance = cast("tuple[fx.Node, ...]", node.args[:5])
        middle, square = (state[str(one.target)].detach().float() for one in (mean, variance))
        found.append(Norm(source.name, middle, (square + float(cast("float", node.args[6]))).sqrt()))
    return found


def distill(
    module: fx.GraphModule, shape: tuple[int, ...], count: int, *, seed: int, advance: Callable[[int], None], steps: int = STEPS
) -> Tensor:
    """`count` items of `shape` for a network of one input and its batch norms; `advance(items · steps)` after each step of a batch."""
    norms = find_norms(module)
    device = norms[0].mean.device
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        items = torch.randn(size, *shape, generator=generator).to(device).requires_grad_()
        optimizer = torch.optim.Adam([items], lr=RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            with torch.enable_grad():
                _mismatch(module, norms, items).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance(size)
        found.append(items.detach())
    return torch.cat(found)


def statistics_apart(module: fx.GraphModule, items: Tensor) -> float:
    """The loss of these items: how far their statistics are from the stored ones, in stored deviations, squared."""
    with torch.no_grad():
        return float(_mismatch(module, find_norms(module), items))


def _mismatch(module: fx.GraphModule, norms: list[Norm], items: Tensor) -> Tensor:
    """The loss of a batch."""
    losses: list[Tensor] = []

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            for norm in (norm for norm in norms if norm.source == n.name):
                rows = cast("Tensor", value).transpose(0, 1).flatten(1)
                deviation = rows.var(dim=1, unbiased=False).add(1e-12).sqrt()
                apart = ((rows.mean(dim=1) - norm.mean) / norm.deviation).square() + (deviation / norm.deviation - 1).square()
                losses.append(apart.mean())
            return value

    Watch(module).run(items)
    return torch.stack(losses).mean()
