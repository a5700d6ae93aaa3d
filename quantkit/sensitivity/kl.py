"""Isolated divergence: what quantizing one group alone does to the outputs (ZeroQ, arXiv 2001.00281).

    Ω_i(b) = 1/N Σ_n KL( M(x_n) ‖ M_i,b(x_n) )

M_i,b has the weights and the inputs of group i under scheme b, all else in float. Half the squared distance where outputs are no class
scores. Nothing is approximated but that errors of different groups add up.
Takes, for each item (as many as `Context.affordable`), one forward pass and for each (group, scheme) what lies behind the group.
"""

from __future__ import annotations

from quantkit.sensitivity.context import RERUN, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import divergence


def estimate(context: Context) -> Scores:
    """Ω of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    batches = context.batches("isolated divergences", context.affordable(context.reruns), context.batch_size(RERUN))
    means = context.engine.alone(context.groups).means(batches, divergence(context.curvature))
    return Scores(context.table("kl", lambda group, scheme: means[((group.name, scheme),)]))


def cost(context: Context) -> Cost:
    """The passes above."""
    return Cost(len(context.affordable(context.reruns)) * (1 + context.reruns))
