"""Logit displacement: every pairwise interaction at the price of single-group scores.

For each (group, scheme) one forward pass gives u = z_quantized − z, the displacement of the outputs. In the metric F of the output
space (outputs.py):

    G[a, b] = 1/N Σ_n u_a[n]' F_n u_b[n],      predicted loss of an allocation x = ½ x' G x

G is a Gram matrix, so positive semi-definite; its diagonal / 2 is the damage of a group alone, its off-diagonal what groups add
together (gram.py). Covers weights and activations, needs no labels and no gradients. The quadratic form of CLADO, arXiv 2307.05657,
without its measured pairs; the Gram form is ours.
Takes, for each item (as many as `Context.affordable`), one forward pass and for each (group, scheme) what lies behind the group.
"""

from __future__ import annotations

import numpy as np

from quantkit.core.table import Interactions, Table
from quantkit.sensitivity.context import Context, Cost, Scores
from quantkit.sensitivity.gram import measure


def estimate(context: Context) -> Scores:
    """Half the Gram diagonal as the table, and the whole Gram matrix as interactions."""
    interactions, _ = measure(context)
    return Scores(score(interactions, context), interactions)


def score(interactions: Interactions, context: Context) -> Table:
    """Half the diagonal: the predicted damage of each group alone; nan where a group cannot take the scheme."""
    own = 0.5 * np.diag(interactions.matrix)
    return context.table("displacement", lambda group, scheme: float(own[context.place(group.name, scheme)]))


def cost(context: Context) -> Cost:
    """The passes above."""
    return Cost(len(context.affordable(context.reruns)) * (1 + context.reruns))
