"""Hessian trace times perturbation (HAWQ-V2, arXiv 1911.03852).

    Ω_i(b) = ½ · Tr(H_ii) / n_i · ‖Q_b(W_i) − W_i‖²   (taylor.py)

H_ii is the block of the loss Hessian that belongs to layer i's n_i weights; the ½ of the Taylor expansion puts Ω in units of the loss.
Traces by Hutchinson, one Hessian-vector product a probe for all layers together. Weights only: activations score nothing. A probe of all
blocks at once sees their cross terms as noise, so that it takes many: after ten on eight items of ResNet-20 the order of the groups has a
Spearman correlation of 0.2 with PyHessian's single traces, and some traces are negative; gauss_newton's has 0.9.
Takes, for each of ITEMS items, one forward and one backward pass and at most MOST_PROBES products.
"""

from __future__ import annotations

from quantkit.sensitivity.context import SECOND_ORDER, Context, Cost, Scores
from quantkit.sensitivity.taylor import second_order

ITEMS = 16
MOST_PROBES = 20  # arXiv 2605.25674 recommends 5 to 10, a layer at a time
TOLERANCE = 0.01  # relative change of the mean trace at which probing stops


def estimate(context: Context) -> Scores:
    """Ω of every (group, scheme); 0 for fp32 and for groups without weights; nan where a group cannot take the scheme."""
    batches = context.batches("Hessian traces", context.items.first(ITEMS), context.batch_size(SECOND_ORDER))
    traces = context.engine.hutchinson(context.loss, batches, context.weights, probes=MOST_PROBES, tolerance=TOLERANCE, seed=context.seed)
    return Scores(second_order(context, "hessian", traces))


def cost(context: Context) -> Cost:
    """The passes above."""
    items = len(context.items.first(ITEMS))
    return Cost(items, items, items * MOST_PROBES)
