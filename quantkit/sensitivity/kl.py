"""Isolated divergence: what quantizing one group alone does to the outputs (ZeroQ, arXiv 2001.00281).

    Ω_i(b) = 1/N Σ_n KL( M(x_n) ‖ M_i,b(x_n) )

M_i,b has the weights and the inputs of group i under scheme b, all else in float. Half the squared distance where outputs are no class
scores. Nothing is approximated but that errors of different groups add up.
Takes, for each item (as many as `Scene.affordable`), one forward pass and for each (group, scheme) what lies behind the group.
"""

from __future__ import annotations

from quantkit.passes.outputs import divergence
from quantkit.sensitivity.scene import RERUN, Cost, Scene, Scores


def estimate(scene: Scene) -> Scores:
    """Ω of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    batches = scene.batches("isolated divergences", scene.affordable(scene.reruns), scene.batch_size(RERUN))
    means = scene.engine.alone(scene.groups).means(batches, divergence(scene.curvature))
    return Scores(scene.table("kl", lambda group, scheme: means[((group.name, scheme),)]))


def cost(scene: Scene) -> Cost:
    """The passes above."""
    return Cost(len(scene.affordable(scene.reruns)) * (1 + scene.reruns))
