"""`quantkit pick`: another promise or other bounds for a network that was measured, without the network, the data, or torch.

The drop of a plan that was measured is judged as the search judges it. Of others the predicted loss is translated: into a divergence by the
ratio of both over what was measured, and into a drop by the rate that the search learns from the same plans, with a margin for both.
So what is picked rests on measurements or says that it is predicted; `quantkit verify RUN --data` closes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.allocation import Plan, undominated
from quantkit.allocation.prediction.predictor import MeasuredPlan, Predictor, explain_shortage, front_report, read_predictor
from quantkit.allocation.search import Measured, Space, Trial
from quantkit.core.errors import RequestError
from quantkit.core.metric import Budget
from quantkit.core.run_files import PICKED, PLAN_WEIGHTS, plan_weights_key
from quantkit.core.spec import Allocation, parse_allocation
from quantkit.core.statistics import NORMAL, PRIOR_WIDTH, UNKNOWN_RATE, Expectation, asked_for, looked_at, noise
from quantkit.core.store import Run, fingerprint, stage_name, write_atomically
from quantkit.runs.device_table import latency_of
from quantkit.settings.bounds import Bounds


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """The plan, its drop (`measured` or predicted, None where unknown), whether it will probably keep the promise."""

    run: Path
    plan: Plan
    drop: float | None
    measured: bool
    kept: bool
    max_drop: float | None
    unit: str
    uses: Mapping[str, float]
    front: Mapping[str, Any]
    notes: tuple[str, ...]
    goal: str

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {
            "run": str(self.run), "kept": self.kept, "drop": self.drop, "drop_is": "measured" if self.measured else "predicted",
            "budget": {"max_drop": self.max_drop, "unit": self.unit}, "plan": self.plan.to_json(), "uses": dict(self.uses),
            "front": dict(self.front), "notes": list(self.notes),
        }  # fmt: skip


def pick(folder: Path, budget: Budget | None, bounds: Bounds, minimize: str | None = None, device: str | None = None) -> Picked:
    """The plan that a stored run would answer with, written to picked.json, where export and verify look first.

    With a `device` of `quantkit profile --import`, latency is that device's. Raises OutputError for a folder without tables, RequestError
    for a promise where no drop was ever measured, and for a device that the run does not know.
    """
    predictor, kept = read_predictor(folder)
    predictor = predictor if device is None else _on(folder, predictor, device)
    judging = kept["judging"]
    goal = minimize or kept["minimize"]
    looks = find_measured_plans(folder, judging["key"])
    if budget is not None and not looks:
        got = f"a promise, and no drop that was measured in {folder}"
        raise RequestError(got, "a run whose plans were evaluated", "`quantkit measure` it again, or pick by --max-bytes")
    space = _space(folder, predictor, goal, bounds)
    foresight = Foresight.of(space, looks, judging)
    points = None if budget is None else budget.points(looks[0][1]["float"])
    trials, foreseen = _judged(space, looks, foresight, points)
    found = space.judged(tuple(trials))
    plan, own = found.nearest.plan, _own_weights(folder, kept["plan"], found.nearest.plan)
    seen = plan.allocation not in foreseen and own is not None
    notes = [explain_shortage(space)] if space.shortage else []
    if found.best is None and not space.shortage:
        notes.append("No plan is likely to keep the promise; this is the nearest. A larger --max-drop relaxes it.")
    if not seen:
        notes.append("Its drop is predicted and was never measured: `quantkit verify RUN --data DATA` measures it.")
    if own is None:
        notes.append("Its weights are rounded apart, not for this plan as others' were; `quantkit allocate` with this promise does that.")
    if device is not None:
        notes.append(f"Latency is that of {device}, predicted from times of a few files there.")
    report = front_report(predictor, space, looks, judging["near"])
    _write(folder, plan, predictor, {**kept["plan"], **({} if own is None else {"weights": own})})
    drop = found.nearest.measured.drop if looks else None
    uses, kept_it = predictor.used(plan.allocation), found.best is not None
    return Picked(folder, plan, drop, seen, kept_it, points, judging["unit"], uses, report, tuple(notes), goal)


def _on(folder: Path, predictor: Predictor, device: str) -> Predictor:
    """The predictor with the latency of a device."""
    latency = latency_of(folder, predictor, device)
    floats = latency.total({group.name: max(group.schemes, key=lambda scheme: scheme.precision) for group in predictor.groups})
    return replace(predictor, resources={**predictor.resources, "latency": latency}, floats={**predictor.floats, "latency": floats})


def _space(folder: Path, predictor: Predictor, goal: str, bounds: Bounds) -> Space:
    """A coarse front under these bounds, and what of the stored one is within them: both together in a second."""
    space = predictor.space(goal, bounds, quick=True)
    if space.shortage:
        return space
    try:
        stored = [parse_allocation(row["allocation"]) for row in json.loads((folder / "front.json").read_text(encoding="utf-8"))["plans"]]
    except (OSError, ValueError, KeyError):
        stored = []
    known = [plan for plan in map(space.plan, stored) if space.excess(plan) == 0]
    return replace(space, front=undominated([*space.front, *known]))


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a predicted loss says about a drop: divergence = `ratio` · loss, and what the search expects of a divergence."""

    ratio: float
    expectation: Expectation
    near: float
    noise: float
    search_items: int
    gate_items: int
    confidence: float
    is_strict: bool

    @classmethod
    def of(cls, space: Space, looks: Sequence[MeasuredPlan], judging: Mapping[str, Any]) -> Foresight:
        """Fitted on what was measured near the float network."""
        near = judging["near"]
        close = [(space.plan(allocation).predicted_loss, look) for allocation, look in looks if look["divergence"] <= near]
        drops, divergences = (np.array([look[key] for _, look in close]) for key in ("drop", "divergence"))
        noises = np.array([noise(looked_at(look, judging["search_items"])) for _, look in close])
        losses = sum(loss for loss, _ in close)
        ratio = float(divergences.sum()) / losses if losses > 0 else 1.0
        told = Expectation.fit(drops, noises, divergences)
        typical = float(noises.mean()) if len(noises) else 0.0
        strict = judging.get("is_strict", True)  # tables of an older version do not say
        return cls(ratio, told, near, typical, judging["search_items"], judging["gate_items"], judging["confidence"], strict)

    def measured(self, look: Mapping[str, float], points: float | None) -> Measured:
        """As the search judges it."""
        told = self.expectation if look["divergence"] <= self.near else UNKNOWN_RATE
        if points is None:
            return Measured(look["drop"], True, look)
        seen = looked_at(look, self.search_items), look["divergence"], self.gate_items, points
        return Measured(look["drop"], told.chance_kept(*seen) >= self._asked(told.attainable(*seen)), look)

    def foreseen(self, loss: float, points: float | None) -> Measured:
        """Of a plan that was not measured."""
        divergence = max(self.ratio * loss, 0.0)
        drop = self.expectation.rate * divergence
        width = hypot(PRIOR_WIDTH * drop, self.expectation.error * divergence) if divergence else 0.0
        spread = hypot(width, self.noise * sqrt(self.search_items / self.gate_items)) if divergence else 0.0
        if points is None or spread <= 0:
            return Measured(drop, points is None or drop <= points)
        return Measured(drop, NORMAL.cdf((points - drop) / spread) >= self._asked(NORMAL.cdf(points / spread)))

    def _asked(self, attainable: float) -> float:
        return self.confidence if self.is_strict else asked_for(self.confidence, attainable)


def _judged(
    space: Space, looks: Sequence[MeasuredPlan], foresight: Foresight, points: float | None
) -> tuple[list[Trial], list[Allocation]]:
    """Every measured plan and those of the front that were not, and which of them those are."""
    trials = [Trial(space.plan(allocation), foresight.measured(look, points)) for allocation, look in looks]
    known = [trial.plan.allocation for trial in trials]
    floats = space.plan(space.highest_precision())
    new = [plan for plan in (*space.front, floats) if plan.allocation not in known]
    trials += [Trial(plan, foresight.foreseen(plan.predicted_loss, points)) for plan in new]
    return trials, [plan.allocation for plan in new]


def find_measured_plans(folder: Path, key: str) -> list[MeasuredPlan]:
    """What the journal holds under the key of these tables, each allocation once."""
    found = {}
    for record in Run(folder).records():
        if record["key"] == fingerprint(key, record["allocation"]):
            found[record["key"]] = (parse_allocation(record["allocation"]), record["look"])
    return list(found.values())


def _own_weights(folder: Path, frame: Mapping[str, Any], plan: Plan) -> str | None:
    """The key of the weights that the plan was measured with; None where they were rounded for it and are no longer kept."""
    if not frame.get("rounded"):
        return str(frame["weights"])
    key = plan_weights_key(frame["rounded"], plan.allocation)
    return key if (folder / "stages" / f"{stage_name(PLAN_WEIGHTS, key)}.npz").exists() else None


def _write(folder: Path, plan: Plan, predictor: Predictor, frame: Mapping[str, Any]) -> None:
    layers = {layer: plan.allocation[group.name] for group in predictor.groups for layer in group.layers}
    with write_atomically(folder / PICKED) as temporary:
        temporary.write_text(json.dumps({**frame, "layers": layers}, indent=1))
