"""Isolated divergence: what quantizing one group alone does to the outputs (ZeroQ, arXiv 2001.00281).

    Ω_i(b) = 1/N Σ_n KL( M(x_n) ‖ M_i,b(x_n) )

M_i,b has the weights and the inputs of group i under scheme b, and its outputs where they leave as codes that no layer reads; all else in
float. Half the squared distance where outputs are no class scores. Nothing is approximated but that errors of different groups add up; the
Gram matrix of the same passes (gram.py) is kept beside, by which a certificate tells how far they do not.
Takes, for each item (as many as `Context.affordable`), one forward pass and for each (group, scheme) what lies behind the group.
"""

from __future__ import annotations

from quantkit.sensitivity.context import Context, Cost, Scores
from quantkit.sensitivity.gram import measure


def estimate(context: Context) -> Scores:
    """Ω of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    gram, table = measure(context)
    return Scores(table, gram=gram)


def cost(context: Context) -> Cost:
    """The passes above."""
    return Cost(len(context.affordable(context.reruns)) * (1 + context.reruns))
