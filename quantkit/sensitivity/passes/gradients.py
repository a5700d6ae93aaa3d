"""Squared gradients, item by item, of every weight and of every layer's inputs, from one backward pass a batch and draw.

The gradient of one item with respect to a weight is Σ over positions of (∂ℓ/∂Y) x', Y the layer's output and x what it multiplies there:
so a backward pass to the layers' outputs, all items at once, holds every item's own. Its squared norm is taken from whichever is
smaller, the matrix itself or the positions' inner products (Σ_tt' (∂ℓ/∂Y_t · ∂ℓ/∂Y_t')(x_t · x_t'), Goodfellow, arXiv 1510.01799). The
uses of a weight that is used twice are one gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from quantkit.data.batch import Batch
from quantkit.network.captured import Captured
from quantkit.quantization.moments import columns
from quantkit.sensitivity.passes.curvature import differentiable
from quantkit.sensitivity.passes.float_forward import record
from quantkit.sensitivity.passes.recorded import Recorded, Site, edge_names
from quantkit.sensitivity.passes.trace import SquaredGradients, Trace

MOST_NUMBERS = 1 << 24  # of per-item weight gradients that are held at once

Cotangents = Callable[[Recorded, Batch], Sequence[Sequence[Tensor]]]  # one list of outputs' gradients a draw


def squared_gradients(
    captured: Captured, batches: Iterable[Batch], cotangents: Cotangents, see: Callable[[Sequence[Site]], None] | None = None
) -> SquaredGradients:
    """Of every layer's weight and, if `see` is given (it is shown each batch's sites), of every edge. One forward pass a batch."""
    means: dict[str, list[Tensor]] = {}  # a batch: [items], over draws
    errors: dict[str, float] = {}
    sizes: dict[str, int] = {}
    with differentiable(captured.module, []):
        for batch in batches:
            recorded = record(captured, batch)
            rows = [_of_one_draw(recorded, drawn, see is not None) for drawn in cotangents(recorded, batch)]
            for name in rows[0]:
                values = torch.stack([row[name] for row in rows])
                means.setdefault(name, []).append(values.mean(dim=0))
                if len(rows) > 1:
                    errors[name] = errors.get(name, 0.0) + float((values.var(dim=0) / len(rows)).sum())
            if see:
                see(recorded.sites)
                edges = {name: x for site in recorded.sites for name, x in zip(edge_names(site.layer), site.inputs, strict=True)}
                sizes |= {name: x[0].numel() for name, x in edges.items()}
    traces = {}
    for name, parts in means.items():
        values = torch.cat(parts)
        traces[name] = Trace(float(values.mean()), math.sqrt(errors.get(name, math.nan)) / len(values))
    return SquaredGradients(traces, sizes)


def _of_one_draw(recorded: Recorded, cotangents: Sequence[Tensor], edges: bool) -> dict[str, Tensor]:
    """‖∂ℓ/∂·‖² of each item, float64 on the CPU."""
    inputs = [edge for site in recorded.sites for edge in site.inputs] if edges else []
    names = [name for site in recorded.sites for name in edge_names(site.layer)] if edges else []
    found = recorded.gradients(cotangents, [*(site.output for site in recorded.sites), *inputs])
    uses: dict[str, list[tuple[Site, Tensor]]] = {}
    for site, gradient in zip(recorded.sites, found, strict=False):
        if site.layer.weight:
            uses.setdefault(site.layer.weight, []).append((site, gradient))
    squares = {weight: _squared_norms(parts) for weight, parts in uses.items()}
    of_edges = found[len(recorded.sites) :]
    return squares | {name: _total(gradient.flatten(1).double().square()) for name, gradient in zip(names, of_edges, strict=True)}


def _total(squares: Tensor) -> Tensor:
    return squares.sum(dim=1).cpu()


def _squared_norms(uses: Sequence[tuple[Site, Tensor]]) -> Tensor:
    """‖Σ_uses Σ_positions (∂ℓ/∂Y) x'‖² of each item."""
    site = uses[0][0]
    outputs, products = site.layer.weight_shape[0] // site.layer.groups, site.layer.weight_count // site.layer.weight_shape[0]
    positions = sum(gradient[0].numel() // (products if one.layer.is_table else outputs * site.layer.groups) for one, gradient in uses)
    short = positions * (outputs + products) < outputs * products
    held = site.layer.groups * (positions * products + (2 * positions * positions if short else outputs * products))
    step = max(1, MOST_NUMBERS // held)
    found = []
    for start in range(0, len(site.output), step):
        part = slice(start, start + step)
        x = _joined([_multiplied(one, gradient, part) for one, gradient in uses])
        y = _joined([_by_channel(one, gradient, part) for one, gradient in uses])
        squares = (x.mT @ x) * (y.mT @ y) if short else (y @ x.mT).square()
        found.append(squares.double().sum(dim=(1, 2, 3)).cpu())
    return torch.cat(found)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=-1) if len(parts) > 1 else parts[0]  # of one part a copy would cost as much as the products


def _multiplied(site: Site, gradient: Tensor, part: slice) -> Tensor:
    """What each output multiplies, [items, groups, products, positions]; of a table, what each row is changed by."""
    if site.layer.is_table:
        return gradient[part].flatten(1, -2).mT[:, None].float()
    return columns(site.node, site.layer, site.read[0][part])


def _by_channel(site: Site, gradient: Tensor, part: slice) -> Tensor:
    """∂ℓ/∂Y as [items, groups, channels of a group, positions]; of a table, which row each position is."""
    if site.layer.is_table:
        return F.one_hot(site.read[0][part].flatten(1), site.layer.weight_shape[0]).mT[:, None].float()
    gradient = gradient[part]
    rows = gradient.flatten(2) if site.layer.kind == "conv" else gradient.reshape(len(gradient), -1, gradient.shape[-1]).mT
    return rows.reshape(len(rows), site.layer.groups, -1, rows.shape[-1]).float()
