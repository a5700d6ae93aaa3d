"""A run directory read back: its plan, and what it takes to write that plan's file again for any target, without the model or data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantkit.calibration import choose_grids
from quantkit.errors import OutputError
from quantkit.export.beside import write_beside
from quantkit.export.float_onnx import read_parameters
from quantkit.export.qdq import emit
from quantkit.graph import Graph
from quantkit.quantization import WeightBank
from quantkit.spec import Scheme, parse_scheme
from quantkit.store import Run, write_atomically
from quantkit.targets import find_target
from quantkit.targets.placement import Adapted, Placement

WEIGHTS = "weights"  # the stage that keeps rounded weights


@dataclass(frozen=True, slots=True, eq=False)
class StoredPlan:
    """What `quantkit allocate` left: the graph, a scheme for each layer, bounds of each activation, rounded weights, the float file."""

    folder: Path
    graph: Graph
    target: str
    schemes: Mapping[str, Scheme]
    bounds: Mapping[str, tuple[float, float]]
    rounded: Mapping[str, NDArray[Any]]
    float_file: Path


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A file written from a stored plan: as which placement, what the target changed of the plan, and what was written beside the file."""

    file: Path
    target: str
    placement: Placement
    notes: tuple[str, ...]
    beside: tuple[Path, ...] = ()


def read_plan(folder: Path) -> StoredPlan:
    """The plan of a run directory. Raises OutputError where there is none, or files that it names are gone."""
    missing = OutputError(f"{folder} holds no plan, or not all of one", "a run directory of `quantkit allocate`", "allocate again")
    try:
        plan = json.loads((folder / "plan.json").read_text())
        graph = Graph.from_json(json.loads((folder / "graph.json").read_text()))
        rounded, float_file = Run(folder).get_arrays(WEIGHTS, plan["weights"]), folder / plan["float_onnx"]
    except (OSError, ValueError, KeyError) as error:
        raise missing from error
    if rounded is None or not float_file.is_file():
        raise missing
    schemes = {name: parse_scheme(scheme) for name, scheme in plan["layers"].items()}
    bounds = {name: (low, high) for name, (low, high) in plan["bounds"].items()}
    return StoredPlan(folder, graph, plan["target"], schemes, bounds, rounded, float_file)


def export_plan(plan: StoredPlan, target: str, output: Path) -> Exported:
    """Write the plan's file for `target` to `output`. What the target cannot run is changed, and said in the notes.

    Raises SchemeError for an unknown target, OutputError where the file cannot be written.
    """
    module = find_target(target)
    adapted = Adapted(plan.schemes, ()) if target == plan.target else module.adapt(plan.graph, plan.schemes)
    placement = module.place(plan.graph, adapted.schemes)
    grids = choose_grids(plan.bounds, plan.graph, module.ACTIVATIONS)
    parameters = read_parameters(plan.float_file, plan.graph)
    bank = WeightBank(plan.graph, parameters, grids, module.product_rows, rounded=plan.rounded)
    with write_atomically(output) as temporary:
        emit(plan.float_file, plan.graph, placement, bank, temporary)
    return Exported(output, target, placement, adapted.notes, write_beside(output, plan.graph, target))
