"""A proven lower bound on ½ x'Mx within the limits, so that the gap of a heuristic answer is known.

Let C = M − D with D diagonal and C positive semi-definite. As x_a² = x_a for whole x, ½ x'Mx = ½ x'Cx + ½ d'x, which is convex; for any z
    ½ x'Mx  ≥  f(z) + ∇f(z)'(x − z)  ≥  f(z) − ∇f(z)'z + min_y ∇f(z)'y,   f(z) = ½ z'Cz + ½ d'z,
where y runs over the fractional allocations within the limits: a linear program. The z that makes the bound greatest is sought by
simplicial decomposition (von Hohenbalken 1977): the least f over the hull of the answers so far, again and again.
D is a multiple of M's diagonal, the greatest that a Cholesky factorisation shows to leave C semi-definite; of the identity where M is not.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cholesky

from quantkit.allocation.highs import Solution, minimise
from quantkit.allocation.problem import Floats
from quantkit.allocation.program import Program

_CUTS = 12  # linear programs; a bound that is nearly as good as it can be comes long before
_ENOUGH = 1e-4
_STEPS = 300
_SMALL, _MARGIN = 200, 1e-9
_SHARES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, -1e-6)  # a factorisation that fails does so early


def relax(program: Program) -> Solution | None:
    """The bound under interactions and the fractional allocation behind it; None where not even a fractional one is within the limits."""
    problem = program.problem
    assert problem.matrix is not None
    size = len(problem.scheme)
    d = _diagonal(problem.matrix)
    convex = _less(problem.matrix, d)
    corners: list[Floats] = []
    images: list[Floats] = []
    gradient, bound, x = np.zeros(program.width), -np.inf, np.zeros(size)
    gradient[:size] = 0.5 * np.diag(problem.matrix)
    none = np.zeros(program.width, dtype=bool)
    for _ in range(_CUTS):
        solution = minimise(gradient, program.rows, none)
        if solution is None:
            return None
        corner = np.clip(solution.x[:size], 0.0, 1.0)
        if corners:
            value = 0.5 * float(x @ convex @ x) + 0.5 * float(d @ x)
            bound = max(bound, value + solution.bound - float(gradient[:size] @ x))
            if value - bound <= _ENOUGH * abs(value):
                break
        corners.append(corner)
        images.append(convex @ corner)
        shares = _least_in_hull(np.stack(corners), np.stack(images), d)
        x = shares @ np.stack(corners)
        gradient[:size] = shares @ np.stack(images) + 0.5 * d
    return Solution(x, bound)


def _least_in_hull(corners: Floats, images: Floats, d: Floats) -> Floats:
    """The shares of the corners, at least 0 and of sum 1, of least f, nearly: pairwise steps. Any shares give a bound."""
    gram, linear = corners @ images.T, 0.5 * (corners @ d)
    shares = np.full(len(linear), 1 / len(linear))
    for _ in range(_STEPS):
        slopes = gram @ shares + linear
        up, down = int(slopes.argmin()), int(np.where(shares > 0, slopes, -np.inf).argmax())
        if slopes[down] - slopes[up] <= 1e-12 * abs(slopes[down]):
            break
        curvature = gram[up, up] + gram[down, down] - 2 * gram[up, down]
        wanted = (slopes[down] - slopes[up]) / curvature if curvature > 0 else np.inf
        step = min(float(wanted), float(shares[down]))
        shares[up], shares[down] = shares[up] + step, shares[down] - step
    return np.asarray(shares)


def _diagonal(matrix: Floats) -> Floats:
    """The d above: a multiple of M's diagonal, or, where M is not semi-definite, the same for all."""
    used = np.flatnonzero(matrix.any(axis=1))
    full = np.zeros(len(matrix))
    if len(used):
        inner = matrix[np.ix_(used, used)]
        largest = max(float(inner.max()), -float(inner.min()))
        weights = np.maximum(np.diag(inner), 1e-3 * largest)
        roots = np.sqrt(weights)
        share = _share(inner / roots[:, None] / roots, lowest=-1e-5)
        if share is None:
            weights = np.full(len(used), largest)
            share = _share(inner / weights[0], lowest=-np.inf)
        full[used] = (share or 0.0) * weights
    return full


def _share(matrix: Floats, lowest: float) -> float | None:
    """The t: of a small matrix its least eigenvalue, of a large one the best of a few that a factorisation accepts; None below `lowest`."""
    if len(matrix) < _SMALL:
        least = float(np.linalg.eigvalsh(matrix)[0]) - _MARGIN
        return least if least >= lowest else None
    share = next((share for share in _SHARES if _is_definite(matrix, share)), -0.01)
    while share >= lowest and not _is_definite(matrix, share):
        share *= 4
    return share if share >= lowest else None


def _is_definite(matrix: Floats, shift: float) -> bool:
    try:  # in place, which for LAPACK means by columns: of a symmetric matrix the transpose is as good
        cholesky(_less(matrix, shift).T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return False
    return True


def _less(matrix: Floats, d: Floats | float) -> Floats:
    """matrix − D, the diagonal matrix of `d`."""
    found: Floats = matrix.copy()
    found.flat[:: len(matrix) + 1] -= d
    return np.asarray(found)
