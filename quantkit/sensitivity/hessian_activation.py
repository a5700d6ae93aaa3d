"""Hessian traces of weights and activations times their perturbations (HAWQ-V2, arXiv 1911.03852, with its activation part).

    Ω_i(b) = ½ · [ Tr(H_W) / n_W · ‖ΔW‖² + Σ_x Tr(H_x) / n_x · E‖Δx‖² ]   (taylor.py)

H_x is the Hessian of one item's loss with respect to what a layer reads, a mean over items: activations of different items do not mix,
so the whole is never formed. Traces of all weights and all activations by the same probes (Hutchinson), which see all cross terms as
noise: at these counts traces come out negative, and on SqueezeNet the order of the groups is chance. `fisher` has the steadier ones.
Takes, for each of ITEMS items, one forward and one backward pass and at most MOST_PROBES products.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.sensitivity.context import SECOND_ORDER, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import task_loss
from quantkit.sensitivity.passes.recorded import edge_names
from quantkit.sensitivity.passes.trace import Trial
from quantkit.sensitivity.taylor import second_order

ITEMS = 8
MOST_PROBES = 10
TOLERANCE = 0.05  # relative change of the mean traces at which probing stops


def estimate(context: Context) -> Scores:
    """Ω of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    errors = context.engine.input_errors(context.groups)
    sizes: dict[str, int] = {}
    with context.engine.differentiable(context.weights, twice=True) as named:

        def trials() -> Iterator[Trial]:
            for batch in context.batches("Hessian traces", context.items.first(ITEMS), context.batch_size(SECOND_ORDER)):
                recorded = context.engine.record(batch)
                errors.add(recorded.sites)
                edges = {name: x for site in recorded.sites for name, x in zip(edge_names(site.layer), site.inputs, strict=True)}
                sizes.update({name: x[0].numel() for name, x in edges.items()})
                yield Trial(batch.size, task_loss(context.curvature, recorded.outputs, context.labels(batch)), {**named, **edges})

        found = context.engine.traces(trials(), probes=MOST_PROBES, tolerance=TOLERANCE, seed=context.seed)
    return Scores(second_order(context, "hessian_activation", found, errors, sizes))


def cost(context: Context) -> Cost:
    """The passes above."""
    items = len(context.items.first(ITEMS))
    return Cost(items, items, items * MOST_PROBES)
