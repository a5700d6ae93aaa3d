"""All that a run directory holds, read back for reports: what is absent is None, and nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.allocation.prediction.predictor import MeasuredPlan, Predictor, read_predictor
from quantkit.core.errors import OutputError
from quantkit.core.graph import Graph, Group
from quantkit.core.run_files import PICKED, TABLES
from quantkit.core.spec import Allocation, Scheme, parse_allocation, parse_scheme
from quantkit.report.format import certificate_line
from quantkit.runs.pick import find_measured_plans

PLAN, PROFILE = "plan.json", "profile.json"
OLD = "The run was made by an older version of quantkit: allocate again"
MEASURED_ONLY = "The network was measured and nothing was allocated yet: run `quantkit allocate` or `quantkit pick`"


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """`allocation` is the plan in force, a scheme by group: the picked one, else the allocated one; empty where there is none.

    `result` and `notes` are those of `allocate`; `measured_plans` what was measured of plans on the search split; `fit` how well
    latency was predicted; `profile` the milliseconds of each layer in the float file and in the plan's.
    """

    folder: Path
    request: Mapping[str, Any]
    graph: Graph
    groups: tuple[Group, ...]
    allocation: Allocation
    picked: bool
    result: Mapping[str, Any] | None
    notes: tuple[str, ...]
    front: Mapping[str, Any] | None
    predictor: Predictor | None
    tables: Mapping[str, Any]
    measured_plans: tuple[MeasuredPlan, ...]
    fit: Mapping[str, Any] | None
    profile: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The network's name."""
        return str(self.request["model"]["name"])

    @property
    def goal(self) -> str:
        """The minimized resource; the first bounded one where the drop was minimized."""
        said = self.request["options"]["minimize"]
        bounds = self.request["options"].get("bounds") or {}
        return next((name for name, bound in bounds.items() if bound), "latency") if said == "drop" else str(said)

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that is on a menu or in the plan, highest precision first."""
        names = {scheme for group in self.groups for scheme in group.schemes} | set(self.allocation.values())
        return tuple(sorted(names, key=lambda name: name.precision, reverse=True))

    @property
    def usual(self) -> Scheme | None:
        """What to look at groups under where one scheme is to be chosen: the quantized one that most have in the plan, or can take."""
        for names in (list(self.allocation.values()), [scheme for group in self.groups for scheme in group.schemes]):
            quantized = [name for name in names if not name.is_float]
            if quantized:
                return max(dict.fromkeys(quantized), key=quantized.count)
        return None

    def scheme_of(self, layer: str) -> Scheme | None:
        """The scheme of one layer; None where there is no plan."""
        return next((self.allocation.get(group.name) for group in self.groups if layer in group.layers), None)


def read_evidence(folder: Path) -> Evidence:
    """What the run directory holds. Raises OutputError for a folder that is none."""
    request, graph = _json(folder / "request.json"), _json(folder / "graph.json")
    if request is None and (folder / "result.json").exists():
        wanted = "a run of `quantkit allocate` without --streamed, or of `measure`"
        raise OutputError(f"{folder} has a result and no tables", wanted, "read its result.json")
    if request is None or graph is None:
        raise OutputError(f"{folder} is not a run", "a run directory of `quantkit allocate` or `measure`", "pass the printed folder")
    result, front = _json(folder / "result.json"), _json(folder / "front.json")
    predictor, tables = read_predictor(folder) if (folder / TABLES).exists() else (None, {})
    groups = predictor.groups if predictor else _groups_of(folder, result)
    picked = (folder / PICKED).exists()
    plan = _json(folder / (PICKED if picked else PLAN))
    rows = (result or {}).get("allocation", ())
    layers = parse_allocation(plan["layers"] if plan else {name: row["scheme"] for row in rows for name in row["layers"]})
    measured_plans = find_measured_plans(folder, tables["judging"]["key"]) if tables else []
    whole = front is not None and "measured" in front
    return Evidence(
        folder, request, Graph.from_json(graph), groups,
        {group.name: layers[group.layers[0]] for group in groups if group.layers[0] in layers}, picked,
        result, (*(result or {}).get("notes", ()), *_trust(result)), front if whole else None, predictor, tables, tuple(measured_plans),
        tables.get("latency_fit"), _json(folder / PROFILE),
    )  # fmt: skip


def _json(path: Path) -> Any:
    """The document; None where there is none. Raises OutputError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read as JSON", "a run directory as it was written", "allocate again") from error


def _groups_of(folder: Path, result: Mapping[str, Any] | None) -> tuple[Group, ...]:
    """The groups of a run without tables, each with a menu of what it has."""
    if result is None:
        raise OutputError(f"{folder} holds neither tables nor a result", "a run that was finished, or measured", "allocate again")
    return tuple(Group(row["group"], tuple(row["layers"]), (parse_scheme(row["scheme"]),), "") for row in result["allocation"])


def _trust(result: Mapping[str, Any] | None) -> tuple[str, ...]:
    certificate = (result or {}).get("certificate")
    return (certificate_line(certificate, result["budget"]["unit"]),) if result and certificate else ()
