"""Measured interactions: every two groups quantized together (CLADO, arXiv 2307.05657). The slow reference.

    C[(i,a), (i,a)] = 2 L(i,a),      C[(i,a), (j,b)] = L(i,a; j,b) − L(i,a) − L(j,b),      predicted loss of an allocation x = ½ x' C x

L is the mean divergence from the float network; CLADO takes the rise of the loss at labels, whose expectation under the network's own
answers this is, and which is far noisier. C = 0 for two schemes of one group. Covers everything of second order, activations too; a
difference of measured numbers, so not positive semi-definite (CLADO projects; here C is as it was measured).
Takes, for each of ITEMS items, one forward pass, for each (group, scheme) what lies behind the group, and for each two of them what
lies behind the later one.
"""

from __future__ import annotations

from quantkit.passes.outputs import divergence
from quantkit.sensitivity.scene import RERUN_PAIRS, Cost, Scene, Scores

ITEMS = 32


def estimate(scene: Scene) -> Scores:
    """Isolated divergences as the table, and C; 0 for fp32; nan where a group cannot take the scheme."""
    ordered = sorted(scene.groups, key=lambda group: -scene.graph.share_behind(group))  # the later of two is the one run again
    batches = scene.batches("measured pairs", scene.items.first(ITEMS), scene.batch_size(RERUN_PAIRS))
    loss = scene.engine.in_pairs(ordered).means(batches, divergence(scene.curvature))
    entries = {}
    for row, value in loss.items():
        places = scene.place(*row[0]), scene.place(*row[-1])
        entries[places] = 2 * value if len(row) == 1 else value - loss[row[:1]] - loss[row[1:]]
    table = scene.table("pairs", lambda group, scheme: loss[((group.name, scheme),)])
    return Scores(table, scene.interactions(entries))


def cost(scene: Scene) -> Cost:
    """The passes above."""
    share, passes, before = scene.graph.share_behind, 1.0, 0
    menus = {group.name: sum(pair[0] == group.name for pair in scene.pairs) for group in scene.groups}
    for group in sorted(scene.groups, key=lambda group: -share(group)):
        passes += share(group) * menus[group.name] * (1 + before)
        before += menus[group.name]
    return Cost(len(scene.items.first(ITEMS)) * passes)
