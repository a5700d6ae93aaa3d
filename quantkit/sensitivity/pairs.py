"""Measured interactions: every two groups quantized together (CLADO, arXiv 2307.05657). The slow reference.

    C[(i,a), (i,a)] = 2 L(i,a),      C[(i,a), (j,b)] = L(i,a; j,b) − L(i,a) − L(j,b),      predicted loss of an allocation x = ½ x' C x

L is the mean divergence from the float network; CLADO takes the rise of the loss at labels, whose expectation under the network's own
answers this is, and which is far noisier. C = 0 for two schemes of one group. Covers everything of second order, activations too; a
difference of measured numbers, so not positive semi-definite (CLADO projects; here C is as it was measured).
Takes, for each of ITEMS items, one forward pass, for each (group, scheme) what lies behind the group, and for each two of them what
lies behind the later one.
"""

from __future__ import annotations

from quantkit.sensitivity.context import RERUN_PAIRS, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import divergence

ITEMS = 32


def estimate(context: Context) -> Scores:
    """Isolated divergences as the table, and C; 0 for fp32; nan where a group cannot take the scheme."""
    ordered = sorted(context.groups, key=lambda group: -context.graph.share_behind(group))  # the later of two is the one run again
    batches = context.batches("measured pairs", context.items.first(ITEMS), context.batch_size(RERUN_PAIRS))
    loss = context.engine.in_pairs(ordered).means(batches, divergence(context.curvature))
    entries = {}
    for row, value in loss.items():
        places = context.place(*row[0]), context.place(*row[-1])
        entries[places] = 2 * value if len(row) == 1 else value - loss[row[:1]] - loss[row[1:]]
    table = context.table("pairs", lambda group, scheme: loss[((group.name, scheme),)])
    return Scores(table, context.interactions(entries))


def cost(context: Context) -> Cost:
    """The passes above."""
    share, passes, before = context.graph.share_behind, 1.0, 0
    menus = {group.name: sum(pair[0] == group.name for pair in context.pairs) for group in context.groups}
    for group in sorted(context.groups, key=lambda group: -share(group)):
        passes += share(group) * menus[group.name] * (1 + before)
        before += menus[group.name]
    return Cost(len(context.items.first(ITEMS)) * passes)
