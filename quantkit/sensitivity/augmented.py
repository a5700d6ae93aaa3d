"""Hessian trace augmented with inter-layer dependence: the mission's method (arXiv 2306.04879).

The paper's body could not be obtained, only that it augments layer-wise Hessians with information about inter-layer
dependencies and guides a bisection with both. This is therefore our reconstruction:

    M[a, b] = G[a, b]  (a ≠ b),      M[a, a] = max(G[a, a], 2 Ω_a)
    s_i(b)  = ½ M[(i,b), (i,b)] + ½ Σ_{j≠i} max(G[(i,b), (j,b)], 0)

G is the Gram matrix of logit displacements (displacement.py), Ω the term of the trace (gauss_newton.py: the Hessian's by first-order
passes, which is far less noisy than Hutchinson's at the same price); both in nats. The self term takes whichever of the two sees more
damage: the trace looks at the loss close by, the displacement at this very perturbation with its activations. A larger diagonal keeps M
positive semi-definite. s orders the bisection; M is what plans are solved on.
Takes the passes of both.
"""

from __future__ import annotations

import numpy as np

from quantkit.sensitivity import displacement, gauss_newton
from quantkit.sensitivity.scene import Cost, Scene, Scores
from quantkit.table import Interactions, Table


def estimate(scene: Scene) -> Scores:
    """s as the table, M as the interactions."""
    return combine(gauss_newton.estimate(scene).table, displacement.measure_gram(scene), scene)


def combine(traces: Table, gram: Interactions, scene: Scene) -> Scores:
    """The two formulas above, from the table of traces and the Gram matrix of the same (group, scheme) pairs."""
    matrix = gram.matrix.copy()
    own = np.maximum(np.diag(matrix), 2 * np.nan_to_num(traces.values).ravel())
    np.fill_diagonal(matrix, own)
    interactions = Interactions(gram.groups, gram.schemes, matrix)
    groups, schemes = len(gram.groups), len(gram.schemes)
    pairs = np.maximum(gram.matrix.reshape(groups, schemes, groups, schemes), 0.0)
    same_scheme = np.einsum("isjs->ijs", pairs)
    same_scheme[np.arange(groups), np.arange(groups)] = 0.0
    values = displacement.score(interactions, scene).values + 0.5 * same_scheme.sum(axis=1)
    return Scores(Table("augmented", scene.unit, gram.groups, gram.schemes, values), interactions)


def cost(scene: Scene) -> Cost:
    """The passes of both methods."""
    return gauss_newton.cost(scene) + displacement.cost(scene)
