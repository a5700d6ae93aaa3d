"""Damage of Gaussian noise: E_N of sensitivity-guided search (arXiv 2302.01382; its text could not be had, so this is our wording).

    E_i(b) = 1/(N·R) Σ_n,r KL( M(x_n) ‖ M with noise on group i )

The noise is as large as the rounding errors of scheme b: each output channel of a weight has the standard deviation of ΔW there, each
item of an input that of Δx. So it differs from `kl` in the errors' direction alone, which here knows nothing of the data. The paper's
noise is on weights, of a size it may choose, and judged by the metric; half the squared distance stands in where outputs are no scores.
Takes, for each item (as many as `Context.affordable`), one forward pass and for each (group, scheme) REPEATS times what lies behind the
group.
"""

from __future__ import annotations

from quantkit.sensitivity.context import RERUN, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import divergence

REPEATS = 2


def estimate(context: Context) -> Scores:
    """E of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    batches = context.batches("noise", context.affordable(REPEATS * context.reruns), context.batch_size(RERUN))
    means = context.engine.noisy(context.groups, REPEATS, context.seed).means(batches, divergence(context.curvature))
    return Scores(context.table("noise", lambda group, scheme: means[((group.name, scheme),)]))


def cost(context: Context) -> Cost:
    """The passes above."""
    return Cost(len(context.affordable(REPEATS * context.reruns)) * (1 + REPEATS * context.reruns))
