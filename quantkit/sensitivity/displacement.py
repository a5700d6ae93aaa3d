"""Logit displacement: every pairwise interaction at the price of single-group scores.

For each (group, scheme) one forward pass gives u = z_quantized − z, the displacement of the outputs. In the metric F of the output
space (class scores: F = diag(p) − p p', the Gauss–Newton curvature of the divergence to the float model, a mean over an item's
positions; otherwise F = 1), summed over several outputs:

    G[a, b] = 1/N Σ_n u_a[n]' F_n u_b[n],      predicted loss of an allocation x = ½ x' G x

G is a Gram matrix, so positive semi-definite; its diagonal / 2 is the damage of a group alone, its off-diagonal what groups add
together. Covers weights and activations, needs no labels and no gradients. (The quadratic form of CLADO, arXiv 2307.05657,
without its measured pairs; the Gram form is ours.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantkit.data import Subset
from quantkit.passes.batches import network_batches
from quantkit.passes.perturbed import Difference, Displacements, Outputs, displace
from quantkit.sensitivity.scene import Scene, Scores
from quantkit.spec import FLOAT
from quantkit.table import Interactions, Table

MOST_ITEMS = 256
MOST_MACS = 8e11  # of all perturbed passes together, half of each being re-used: about a minute on two cores
BATCH = 16  # one batch of all activations is held at a time


def estimate(scene: Scene) -> Scores:
    """Half the Gram diagonal as the table, and the whole Gram matrix as interactions."""
    interactions = measure_gram(scene)
    return Scores(score(interactions, scene), interactions)


def measure_gram(scene: Scene) -> Interactions:
    """G over all (group, scheme), fp32 and impossible pairs zero, from one perturbed pass for each over `_affordable` items."""
    items = _affordable(scene)
    with scene.progress.stage("displacements", len(items), "items") as advance:
        batches = (batch.inputs for batch in network_batches(scene.captured.graph, items, BATCH, scene.device))
        found = displace(scene.captured, scene.groups, scene.target, scene.bank, batches, DIFFERENCES[scene.curvature], advance)
    return gram(found, tuple(group.name for group in scene.groups), scene.schemes)


def gram(displacements: Displacements, groups: Sequence[str], schemes: Sequence[str]) -> Interactions:
    """Inner products of all displacements, a mean over items, in float64; zero for pairs that were not displaced."""
    pairs, items, coordinates = displacements.values.shape
    rows = displacements.values.reshape(pairs, items * coordinates).astype(np.float64)
    places = [groups.index(group) * len(schemes) + schemes.index(scheme) for group, scheme in displacements.pairs]
    matrix = np.zeros((len(groups) * len(schemes),) * 2)
    matrix[np.ix_(places, places)] = rows @ rows.T / items
    return Interactions(tuple(groups), tuple(schemes), matrix)


def score(interactions: Interactions, scene: Scene) -> Table:
    """Half the diagonal: the predicted damage of each group alone; nan where a group cannot take the scheme."""
    values = 0.5 * np.diag(interactions.matrix).reshape(len(scene.groups), len(scene.schemes))
    possible = np.array([[scheme in group.schemes for scheme in scene.schemes] for group in scene.groups])
    return Table("displacement", scene.unit, interactions.groups, interactions.schemes, np.where(possible, values, np.nan))


def whiten_scores(unmoved: Outputs, moved: Outputs) -> Tensor:
    """√F u for class scores [items, …, classes], so that inner products are plain: √p · (u − p·u), a mean over an item's positions."""
    parts = []
    for one, other in zip(unmoved, moved, strict=True):
        scores = one.float().reshape(len(one), -1, one.shape[-1])
        u, p = other.float().reshape(scores.shape) - scores, scores.softmax(dim=-1)
        parts.append((p.sqrt() * (u - (p * u).sum(dim=-1, keepdim=True))).flatten(1) / scores.shape[1] ** 0.5)
    return torch.cat(parts, dim=1)


def subtract(unmoved: Outputs, moved: Outputs) -> Tensor:
    """u itself, all outputs in a row."""
    return torch.cat([(other - one).float().reshape(len(one), -1) for one, other in zip(unmoved, moved, strict=True)], dim=1)


DIFFERENCES: dict[str, Difference] = {"softmax": whiten_scores, "identity": subtract}


def _affordable(scene: Scene) -> Subset:
    """As many calibration items as MOST_MACS allows, between one batch and MOST_ITEMS."""
    pairs = sum(scheme != FLOAT.name for group in scene.groups for scheme in group.schemes)
    per_item = max(1, pairs * sum(layer.macs for layer in scene.captured.graph.layers)) / 2
    return scene.items.first(int(min(MOST_ITEMS, max(BATCH, MOST_MACS // per_item))))
