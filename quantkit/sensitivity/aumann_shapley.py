"""Aumann–Shapley shares: each layer's part of the damage of quantizing everything (arXiv 2607.12266; NVIDIA Model Optimizer).

    y_i(t) = y_i + t · δ_i,   δ_i = Q_b(y_i) − y_i   for all layers at once
    φ_i(b) = mean_k ⟨ ∂D / ∂y_i(t_k), δ_i ⟩,   t_k = (k + ½) / K,   K = STEPS

D is the divergence from the float network, which has no gradient at the float network: hence the path. y_i is a layer's output before
activation functions, δ_i what its quantized weights and inputs make of what it reads there on the path, a constant to gradients.
Σ_i φ_i is then D of the network with every group under b, up to the steps and to what δ would change along the path. A layer that
cannot take b stays float. Shares may be negative: errors that undo others'. The coverage link of the paper is not applied.
Takes, for each of ITEMS items, one forward pass, and for each scheme STEPS backward and, with the quantized layers, twice as many
forward passes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from quantkit.core.graph import Layer
from quantkit.core.spec import FLOAT, Scheme
from quantkit.sensitivity.context import FIRST_ORDER, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import pull_back

ITEMS = 64
STEPS = 2


def estimate(context: Context) -> Scores:
    """φ of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    changes = context.engine.output_changes(context.groups)
    owners = {name: group.name for group in context.groups for name in group.layers}
    sums, items = dict.fromkeys(context.pairs, 0.0), 0

    def shift(share: float, scheme: Scheme, layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        moved = changes.of(layer, scheme, inputs, output)
        return None if moved is None else share * moved

    with context.engine.differentiable([]):
        for batch in context.batches("Aumann–Shapley", context.items.first(ITEMS), context.batch_size(FIRST_ORDER)):
            with torch.no_grad():
                unmoved = context.engine.outputs(batch)
            for scheme in (name for name in context.schemes if name != FLOAT):
                for step in range(STEPS):
                    share = (step + 0.5) / STEPS
                    recorded = context.engine.record(batch, partial(shift, share, scheme))
                    sites = [site for site in recorded.sites if site.shift is not None]
                    pulled = pull_back(context.curvature, unmoved, tuple(output.detach() for output in recorded.outputs))
                    for site, gradient in zip(sites, recorded.gradients(pulled, [site.output for site in sites]), strict=True):
                        assert site.shift is not None
                        sums[owners[site.layer.name], scheme] += float((gradient * site.shift).double().sum()) / share / STEPS
            items += batch.size
    return Scores(context.table("aumann_shapley", lambda group, scheme: sums[group.name, scheme] / items))


def cost(context: Context) -> Cost:
    """The passes above."""
    items, runs = len(context.items.first(ITEMS)), STEPS * sum(name != FLOAT for name in context.schemes)
    return Cost(items * (1 + 2 * runs), items * runs)
