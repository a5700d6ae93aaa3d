"""Logit displacement: every pairwise interaction at the price of single-group scores.

For each (group, scheme) one forward pass gives u = z_quantized − z, the displacement of the outputs. In the metric F of the output
space (softmax outputs: F = diag(p) − p p', the Gauss–Newton curvature of the divergence to the float model; otherwise F = 1):

    G[a, b] = 1/N Σ_n u_a[n]' F_n u_b[n],      predicted loss of an allocation x = ½ x' G x

G is a Gram matrix, so positive semi-definite; its diagonal / 2 is the damage of a group alone, its off-diagonal what groups add
together. Covers weights and activations, needs no labels and no gradients. (The quadratic form of CLADO, arXiv 2307.05657,
without its measured pairs; the Gram form is ours.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.data import bind
from quantkit.graph import Group
from quantkit.passes.perturbed import Displacements, displace
from quantkit.sensitivity.scene import Scene, Scores
from quantkit.spec import FLOAT
from quantkit.table import Interactions, Table

MOST_ITEMS = 256
MOST_MACS = 8e11  # of all perturbed passes together, half of each being re-used: about a minute on two cores
BATCH = 16  # one batch of all activations is held at a time


def displacement(scene: Scene) -> Scores:
    """Half the Gram diagonal as the table, and the whole Gram matrix as interactions."""
    interactions = measure_gram(scene)
    return Scores(score(interactions, scene.groups), interactions)


def measure_gram(scene: Scene) -> Interactions:
    """One perturbed pass for each (group, scheme) over as many calibration items as MOST_MACS allows."""
    graph = scene.captured.graph
    pairs = sum(scheme != FLOAT.name for group in scene.groups for scheme in group.schemes)
    per_item = max(1, pairs * sum(layer.macs for layer in graph.layers)) / 2
    items = scene.items.first(int(min(MOST_ITEMS, max(BATCH, MOST_MACS // per_item))))
    batches = ({n: t.to(scene.device) for n, t in bind(b.inputs, graph.inputs).items()} for b in items.batches(graph.batch or BATCH))
    with scene.progress.stage("displacements", len(items), "items") as advance:
        found = displace(scene.captured, scene.groups, scene.target, scene.bank, batches, advance)
    return gram(found, scene.groups, scene.schemes, scene.curvature)


def gram(displacements: Displacements, groups: Sequence[Group], schemes: Sequence[str], curvature: str) -> Interactions:
    """The Gram matrix over all (group, scheme), fp32 rows zero. `curvature` is "softmax" or "identity"."""
    whitened = _whiten(displacements, curvature)
    items = whitened.shape[1]
    rows = whitened.reshape(len(displacements.pairs), -1).astype(np.float64)
    inner = rows @ rows.T / items
    names = tuple(group.name for group in groups)
    places = [names.index(group) * len(schemes) + list(schemes).index(scheme) for group, scheme in displacements.pairs]
    matrix = np.zeros((len(names) * len(schemes),) * 2)
    matrix[np.ix_(places, places)] = inner
    return Interactions(names, tuple(schemes), matrix)


def score(interactions: Interactions, groups: Sequence[Group]) -> Table:
    """Half the diagonal: the predicted damage of each group alone; nan where a group cannot take the scheme."""
    values = 0.5 * np.diag(interactions.matrix).reshape(len(interactions.groups), len(interactions.schemes)).copy()
    for row, group in enumerate(groups):
        for column, scheme in enumerate(interactions.schemes):
            if scheme not in group.schemes:
                values[row, column] = np.nan
    return Table("displacement", "nats", interactions.groups, interactions.schemes, values)


def _whiten(displacements: Displacements, curvature: str) -> NDArray[np.float32]:
    """√F u, so that inner products are plain: for softmax √p · (u − p·u)."""
    values = displacements.values
    if curvature == "identity":
        return values
    shifted = displacements.reference - displacements.reference.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    mean = np.einsum("nc,knc->kn", probabilities, values)
    return np.sqrt(probabilities)[None] * (values - mean[:, :, None])
