"""How long a plan of 500 groups × 5 schemes takes under interactions, and how far from the proven bound it may be; prints one JSON object.

OMP_NUM_THREADS=1 python tools/bench_solvers.py; seconds are one thread's own processor time. Interactions are a Gram
matrix of random displacements that share directions; `rank` is in how many dimensions they lie, and the bound is the looser the fewer.
"""

from __future__ import annotations

import itertools
import json
import time
from statistics import median

import numpy as np

from quantkit.allocation import Edge, solve
from quantkit.core.graph import Group
from quantkit.core.spec import parse_schemes
from quantkit.core.table import Interactions, Table

SCHEMES = parse_schemes(("fp32", "w8a8", "w6a8", "w4a8", "w2a8"))
GROUPS = 500
REPEATS = 3  # the middle one counts: other guests of the host make one in ten twice as long


def solve_all() -> list[dict[str, float]]:
    """Every case: its seconds, the loss, the gap."""
    cases = itertools.product((64, 1000), (False, True), (0.1, 0.3))
    return [{"rank": rank, "edges": crossings, "budget": share, **solved(rank, crossings, share)} for rank, crossings, share in cases]


def main() -> None:
    rows = solve_all()
    print(json.dumps({"solve.500x5.seconds": max(row["seconds"] for row in rows), "rows": rows}, indent=1))


def solved(rank: int, crossings: bool, share: float) -> dict[str, float]:
    random = np.random.default_rng(0)
    names = tuple(f"g{place:03}" for place in range(GROUPS))
    size = random.lognormal(0, 1.2, (GROUPS, 1)) * np.array([0, 1 / 16, 1 / 4, 1, 4])
    common = random.normal(size=(GROUPS, 1, rank)) + 0.3 * random.normal(size=rank)
    moved = size[:, :, None] * (common + 0.7 * random.normal(size=(GROUPS, 5, rank))) / np.sqrt(rank)
    flat = moved.reshape(-1, rank)
    matrix = flat @ flat.T
    loss = Table("loss", "nats", names, SCHEMES, 0.5 * np.diag(matrix).reshape(GROUPS, 5))
    bytes_ = random.lognormal(0, 1, (GROUPS, 1)) * np.array([32, 8, 6, 4, 2.0]) * random.uniform(0.95, 1.05, (GROUPS, 5))
    cost = Table("bytes", "bytes", names, SCHEMES, bytes_)
    edges = [Edge(a, b, float(random.uniform(0, 1))) for a, b in itertools.pairwise(names)] if crossings else []
    groups = [Group(name, (name,), SCHEMES, "") for name in names]
    low, high = bytes_.min(axis=1).sum(), bytes_.max(axis=1).sum()
    budget = float(low + share * (high - low))
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        plan = solve(loss, cost, budget, groups=groups, edges=edges, interactions=Interactions(names, SCHEMES, matrix))
        took.append(time.process_time() - start)
        assert plan is not None and plan.predicted_cost <= budget
    return {"seconds": round(median(took), 2), "loss": plan.predicted_loss, "gap": plan.gap}


if __name__ == "__main__":
    main()
