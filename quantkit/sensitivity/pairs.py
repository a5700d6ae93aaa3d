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
from quantkit.passes.perturbed import displace, in_pairs, mean, share_behind
from quantkit.sensitivity.scene import RERUN_PAIRS, Cost, Scene, Scores

ITEMS = 32


def estimate(scene: Scene) -> Scores:
    """Isolated divergences as the table, and C; 0 for fp32; nan where a group cannot take the scheme."""
    shares = {group.name: share_behind(scene.captured.graph, group) for group in scene.groups}
    ordered = sorted(scene.groups, key=lambda group: -shares[group.name])  # the later of two is the one run again
    perturbed = in_pairs(scene.captured, ordered, scene.target, scene.bank)
    batches = scene.batches("measured pairs", scene.items.first(ITEMS), scene.batch_size(RERUN_PAIRS))
    means = mean(displace(scene.captured, scene.bank, perturbed, batches, divergence(scene.curvature)))
    loss = {row: float(value) for row, value in zip(perturbed.rows, means, strict=True)}
    entries = {}
    for row, value in loss.items():
        places = scene.place(*row[0]), scene.place(*row[-1])
        entries[places] = 2 * value if len(row) == 1 else value - loss[row[:1]] - loss[row[1:]]
    table = scene.table("pairs", lambda group, scheme: loss[((group.name, scheme),)])
    return Scores(table, scene.interactions(entries))


def cost(scene: Scene) -> Cost:
    """The passes above."""
    graph, passes, before = scene.captured.graph, 1.0, 0
    menus = {group.name: sum(pair[0] == group.name for pair in scene.pairs) for group in scene.groups}
    for group in sorted(scene.groups, key=lambda group: -share_behind(graph, group)):
        passes += share_behind(graph, group) * menus[group.name] * (1 + before)
        before += menus[group.name]
    return Cost(len(scene.items.first(ITEMS)) * passes)
