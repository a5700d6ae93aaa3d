"""What the table shows to be better than the answer, and why it was not chosen; where the float network ships, one such file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantkit.allocation import Plan
from quantkit.allocation.search import SearchResult, Space, Trial
from quantkit.core.spec import FLOAT, Allocation
from quantkit.core.statistics import EVEN
from quantkit.export.onnx_file import remove, saved, size_bytes
from quantkit.runs.outcome import ALTERNATIVE, Refused
from quantkit.runs.result import Baseline
from quantkit.runtimes import Rival
from quantkit.stages.candidates import Candidates
from quantkit.stages.weights import UNIFORM


def find_alternative(space: Space, found: SearchResult, plan: Plan) -> Trial | None:
    """Where the float network is the answer (`plan`): the cheapest measured plan that gains and more likely than not keeps the promise."""
    if not is_all_float(plan.allocation):
        return None
    likely = [trial for trial in found.measured if chance_kept(trial) >= EVEN and not space.excess(trial.plan, trial.measured.figures)]
    gaining = [trial for trial in likely if trial.plan.predicted_cost < plan.predicted_cost and not is_all_float(trial.plan.allocation)]
    return min(gaining, key=lambda trial: trial.plan.predicted_cost, default=None)


def write_alternative(candidates: Candidates, folder: Path, alternative: Trial | None) -> list[Rival]:
    """alternative.onnx in the run directory, as a row of the table; an older one is removed where there is none."""
    path = folder / ALTERNATIVE
    if alternative is None:
        remove(path)
        return []
    with saved(path) as temporary:
        candidates.emit(alternative.plan.allocation, temporary)
    return [Rival("alternative", path, size_bytes(path))]


def refusals(
    rows: Mapping[Baseline, int | None], own: float, minimize: str, budget: float, chances: Mapping[str, tuple[float, float]],
    confidence: float,
) -> tuple[Refused, ...]:
    """Rows that lost no more than `budget` and take less than `own`, the answer's share of float's time or bytes; ours first, best first.

    `rows` hold the items that would decide each; `chances`, by name, how sure the search was of those that it measured.
    """
    better = []
    for row, items in rows.items():
        share = {"latency": row.latency_ratio, "bytes": row.bytes_ratio}.get(minimize)
        if share is not None and share < own and row.drop <= budget:
            chance, asked = chances.get(row.name, (None, confidence))
            better.append(Refused(row.name, minimize, share, row.drop, chance, asked, items))
    return tuple(sorted(better, key=lambda row: (row.chance_kept is None, row.ratio)))


def search_chances(candidates: Candidates, found: SearchResult, alternative: Trial | None) -> dict[str, tuple[float, float]]:
    """How sure the search was that the gate keeps the promise, and how sure it had to be, of its own rows of the table."""
    uniform = candidates.uniform(UNIFORM)
    trials = {f"uniform {UNIFORM}": trial for trial in found.measured if trial.plan.allocation == uniform}
    trials |= {} if alternative is None else {"alternative": alternative}
    return {name: (chance_kept(trial), trial.measured.figures.get("asked", 1.0)) for name, trial in trials.items()}


def chance_kept(trial: Trial) -> float:
    """How sure the search is that the gate keeps the promise with this plan."""
    return trial.measured.figures.get("chance_kept", 0.0)


def is_all_float(allocation: Allocation) -> bool:
    """Whether nothing is quantized."""
    return all(scheme == FLOAT for scheme in allocation.values())
