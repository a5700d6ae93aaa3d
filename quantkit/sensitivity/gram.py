"""The Gram matrix of output displacements, and the divergences of the same passes: what several methods are made of.

For each (group, scheme) one forward pass gives u = z_quantized − z, the displacement of the outputs. In the metric F of the output space
(outputs.py) G[a, b] = 1/N Σ_n u_a[n]' F_n u_b[n]: its diagonal is twice the damage of a group alone to second order, its off-diagonal what
groups add together. Wide outputs are sketched, which keeps all this in expectation.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from quantkit.core.table import Floats, Interactions, Table
from quantkit.sensitivity.context import RERUN, Context
from quantkit.sensitivity.passes.outputs import beside, divergence, whitened


def measure(context: Context) -> tuple[Interactions, Table]:
    """G over all (group, scheme), fp32 and impossible pairs zero; and from the same passes the isolated divergences (kl.py)."""
    perturbed = context.engine.alone(context.groups)
    batches = context.batches("displacements", context.affordable(context.reruns), context.batch_size(RERUN, len(perturbed.rows)))
    measure = beside(divergence(context.curvature), whitened(context.curvature, context.seed))
    found, isolated = gram(perturbed.displace(batches, measure))
    places = [context.place(*pair) for (pair,) in perturbed.rows]
    entries = {(row, column): float(found[a, b]) for a, row in enumerate(places) for b, column in enumerate(places)}
    alone_ = {pair: float(value) for (pair,), value in zip(perturbed.rows, isolated, strict=True)}
    return context.interactions(entries), context.table("kl", lambda group, scheme: alone_[group.name, scheme])


def gram(displaced: Iterable[NDArray[np.floating]]) -> tuple[Floats, Floats]:
    """Of [rows, items, coordinates] a batch, means over items, in float64: inner products of all but the first coordinate, and that."""
    total, first, items = np.zeros((0, 0)), np.zeros(0), 0
    for batch in displaced:
        rows = batch[:, :, 1:].reshape(len(batch), batch.shape[1] * (batch.shape[2] - 1)).astype(np.float64)
        total = rows @ rows.T + (total if items else 0.0)
        first = batch[:, :, 0].sum(axis=1, dtype=np.float64) + (first if items else 0.0)
        items += batch.shape[1]
    return np.asarray(total / max(items, 1), np.float64), np.asarray(first / max(items, 1), np.float64)
