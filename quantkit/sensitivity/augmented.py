"""Hessian trace augmented with inter-layer dependence: the method (arXiv 2306.04879).

The paper's body could not be obtained, only that it augments layer-wise Hessians with information about inter-layer
dependencies and guides a bisection with both. This is therefore our reconstruction:

    M[a, b] = λ G[a, b]  (a ≠ b),      M[a, a] = max(2 D_a, 2 Ω_a, λ G[a, a])
    s_i(b)  = ½ M[(i,b), (i,b)] + ½ Σ_{j≠i} max(λ G[(i,b), (j,b)], 0)

G is the Gram matrix of logit displacements and D the isolated divergences of the same passes (gram.py), Ω the term of the trace
(gauss_newton.py: the Hessian's by first-order passes, which is far less noisy than Hutchinson's at the same price); all in nats. The self
term takes whichever sees more damage: the trace looks at the loss close by, the divergence at this very perturbation with its activations.
λ = SHARE: whole, the matrix is exploited by a solver, which finds the pairs whose errors seem to undo each other on the few items it is
from. Over three runs (ResNet-20 twice, ResNet-44 once) fronts on the search split were alike under 0, ¼ and ½, and clearly worse under 1.
M is positive semi-definite: λG and a diagonal. s orders the bisection; M is what plans are solved on.
Takes the passes of both.
"""

from __future__ import annotations

import numpy as np

from quantkit.core.table import Interactions, Table
from quantkit.sensitivity import displacement, gauss_newton
from quantkit.sensitivity.context import Context, Cost, Scores
from quantkit.sensitivity.gram import measure

SHARE = 0.25


def estimate(context: Context) -> Scores:
    """s as the table, M as the interactions."""
    gram, isolated = measure(context)
    return combine(gauss_newton.estimate(context).table, gram, isolated, context)


def combine(traces: Table, gram: Interactions, isolated: Table, context: Context, share: float = SHARE) -> Scores:
    """The two formulas above, from the tables of traces and of divergences and the Gram matrix of the same (group, scheme) pairs."""
    matrix = share * gram.matrix
    own = [np.diag(matrix), *(2 * np.nan_to_num(table.values).ravel() for table in (traces, isolated))]
    interactions = Interactions(gram.groups, gram.schemes, matrix.copy())
    np.fill_diagonal(interactions.matrix, np.maximum.reduce(own))
    groups, schemes = len(gram.groups), len(gram.schemes)
    pairs = np.maximum(matrix.reshape(groups, schemes, groups, schemes), 0.0)
    same_scheme = np.einsum("isjs->ijs", pairs)
    same_scheme[np.arange(groups), np.arange(groups)] = 0.0
    values = displacement.score(interactions, context).values + 0.5 * same_scheme.sum(axis=1)
    return Scores(Table("augmented", context.unit, gram.groups, gram.schemes, values), interactions)


def cost(context: Context) -> Cost:
    """The passes of both methods."""
    return gauss_newton.cost(context) + displacement.cost(context)
