"""The diagonal Fisher in each layer's output space (NVIDIA Model Optimizer's AutoQuantize, gradient score).

    S_i(b) = ½ · 1/N Σ_n Σ_e (∂ℓ_n / ∂Y_e · ΔY_e)²,      ΔY = Q_b(layer)(x) − Y

Y is the layer's output before activation functions, ΔY what its quantized weights and inputs make of the same float input; ℓ_n the loss
of one item at its label (drawn from the network where there is no class label, as in outputs.drawn). The original sums over items and
has no ½; here it is a mean in units of the loss. Its clamp at 1e10 and its minimum over more precise formats are left out.
Takes, for each of ITEMS items, one forward and one backward pass, and about one more forward pass for each scheme.
"""

from __future__ import annotations

from quantkit.sensitivity.context import FIRST_ORDER, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import at_labels

ITEMS = 128


def estimate(context: Context) -> Scores:
    """S of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme. Raises DataError for labels that are no class."""
    changes = context.engine.output_changes(context.groups)
    generator, items, sums = context.generator, 0, dict.fromkeys(context.pairs, 0.0)
    owners = {name: group for group in context.groups for name in group.layers}
    with context.engine.differentiable([]):
        for batch in context.batches("Fisher of outputs", context.items.first(ITEMS), context.batch_size(FIRST_ORDER)):
            recorded = context.engine.record(batch)
            cotangents = at_labels(context.curvature, recorded.outputs, context.labels(batch), generator)
            gradients = recorded.gradients(cotangents, [site.output for site in recorded.sites])
            for site, gradient in zip(recorded.sites, gradients, strict=True):
                for scheme in owners[site.layer.name].schemes:
                    moved = changes.of(site.layer, scheme, site.read, site.output.detach())
                    if moved is not None:
                        sums[owners[site.layer.name].name, scheme] += float((gradient * moved).double().square().sum())
            items += batch.size
    return Scores(context.table("fisher_output", lambda group, scheme: 0.5 * sums[group.name, scheme] / items))


def cost(context: Context) -> Cost:
    """The passes above."""
    items = len(context.items.first(ITEMS))
    return Cost(items * len(context.schemes), items)
