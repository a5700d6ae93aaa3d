"""A run directory read back: its plan, and what it takes to write that plan's file again for any target, without the model or data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quantkit.calibration.ranges import choose_grids
from quantkit.core.errors import OutputError, SchemeError
from quantkit.core.graph import Graph
from quantkit.core.run_files import PICKED, PLAN, PLAN_WEIGHTS, WEIGHTS
from quantkit.core.spec import Scheme, parse_allocation
from quantkit.core.store import Run
from quantkit.export.companions import write_companions
from quantkit.export.float_onnx import read_parameters
from quantkit.export.onnx_file import remove, saved
from quantkit.export.qdq import Emitted, emit
from quantkit.export.session_file import write_session
from quantkit.loading.archive import read_archive
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.quantization.weights import WeightBank
from quantkit.targets import find_target, other_widths
from quantkit.targets.placement import Adapted, Placement

FILE, PICKED_FILE = "model.onnx", "picked.onnx"
NAMED = 5  # changes that a refusal lists in full


@dataclass(frozen=True, slots=True, eq=False)
class StoredPlan:
    """What `allocate` or `pick` left: the graph, a scheme for each layer, bounds of each activation, rounded weights, the float file.

    `bounds_by_bits` are bounds for activations of other widths than the target's usual one.

    `program` is the captured network; it need not be there to write files.
    """

    folder: Path
    graph: Graph
    target: str
    schemes: Mapping[str, Scheme]
    bounds: Mapping[str, tuple[float, float]]
    rounded: Mapping[str, NDArray[Any]]
    float_file: Path
    program: Path | None = None
    picked: bool = False
    bounds_by_bits: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """What it takes to run a stored plan in torch: the network, the plan's placement and weights, and the names in its file."""

    captured: Captured
    placement: Placement
    bank: WeightBank
    emitted: Emitted


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A file written from a stored plan: as which placement, what to know of it, and what lies beside it."""

    file: Path
    target: str
    placement: Placement
    notes: tuple[str, ...]
    beside: tuple[Path, ...] = ()


def read_plan(folder: Path) -> StoredPlan:
    """The plan of a run directory, the picked one if there is one. Raises OutputError where there is none, or not all of one."""
    picked = (folder / PICKED).exists()
    try:
        plan = json.loads((folder / (PICKED if picked else PLAN)).read_text())
    except (OSError, ValueError) as error:
        raise _missing(folder) from error
    return plan_of(folder, plan, picked=picked)


def plan_of(folder: Path, frame: Mapping[str, Any], *, picked: bool = False) -> StoredPlan:
    """What a run directory holds for the plan whose `layers` stand in `frame`. Raises OutputError where that is not all of a plan."""
    try:
        graph = Graph.from_json(json.loads((folder / "graph.json").read_text()))
        kept = (Run(folder).get_arrays(stage, frame["weights"]) for stage in (PLAN_WEIGHTS, WEIGHTS))
        rounded, float_file = next((arrays for arrays in kept if arrays is not None), None), folder / frame["float_onnx"]
        schemes, bounds = parse_allocation(frame["layers"]), _read_bounds(frame["bounds"])
        by_bits = {int(bits): _read_bounds(row) for bits, row in frame.get("bounds_by_bits", {}).items()}
        program = folder / frame["program"] if "program" in frame else None
    except (OSError, ValueError, KeyError) as error:
        raise _missing(folder) from error
    if rounded is None or not float_file.is_file():
        raise _missing(folder)
    return StoredPlan(folder, graph, frame["target"], schemes, bounds, rounded, float_file, program, picked, by_bits)


def _missing(folder: Path) -> OutputError:
    return OutputError(f"{folder} holds no plan, or not all of one", "a run directory of `quantkit allocate`", "allocate again")


def forget_pick(folder: Path) -> None:
    """What was allocated is the plan again."""
    (folder / PICKED).unlink(missing_ok=True)
    remove(folder / PICKED_FILE)


def plan_file(plan: StoredPlan) -> Path:
    """The plan's file in the run directory; a picked plan's is written now."""
    if not plan.picked:
        return plan.folder / FILE
    return export_plan(plan, plan.target, plan.folder / PICKED_FILE).file


def export_plan(plan: StoredPlan, target: str, output: Path, *, adapt: bool = False) -> Exported:
    """Write the plan's file for `target` to `output`, and beside it what that runtime is built with.

    With `adapt`, what the target cannot run is changed, and the notes list it. Otherwise it raises SchemeError, as it does for an unknown
    target; OutputError where the file cannot be written.
    """
    module = find_target(target)
    adapted = Adapted(plan.schemes) if target == plan.target else module.adapt(plan.graph, plan.schemes)
    if adapted.changes and not adapt:
        more = f"; and {len(adapted.changes) - NAMED} more" if len(adapted.changes) > NAMED else ""
        got = f"{target} cannot run {len(adapted.changes)} layers as planned: {'; '.join(adapted.changes[:NAMED])}{more}"
        raise SchemeError(got, "a plan that it can run", f"pass --adapt to change them, or `quantkit allocate --target {target}`")
    placement = module.place(plan.graph, adapted.schemes)
    bank = _weights(plan, target)
    with saved(output) as temporary:
        emit(plan.float_file, plan.graph, placement, bank, temporary)
    session = write_session(module, output.parent)
    beside = (*write_companions(output, plan.graph, target), *([session] if session else []))
    return Exported(output, target, placement, (*adapted.changes, *adapted.notes), beside)


def simulate(plan: StoredPlan, scratch: Path) -> Simulated:
    """The stored network and plan, ready to be run in torch; the plan's file is written once more to the path `scratch`, for its names.

    Raises OutputError where the run keeps no program, or another than its graph is about; ModelError where that cannot be read safely.
    """
    if plan.program is None or not plan.program.is_file():
        raise OutputError(f"{plan.folder} keeps no captured program", "a run that an allocation of this version wrote", "allocate again")
    captured = capture(read_archive(plan.program, trust_pickle=False), {}, outputs=plan.graph.outputs)
    if captured.graph != plan.graph:
        got = f"{plan.program} is another network than {plan.folder / 'graph.json'}"
        raise OutputError(got, "the same names and shapes", "allocate again")
    placement, bank = find_target(plan.target).place(plan.graph, plan.schemes), _weights(plan, plan.target)
    return Simulated(captured, placement, bank, emit(plan.float_file, plan.graph, placement, bank, scratch))


def _weights(plan: StoredPlan, target: str) -> WeightBank:
    """The plan's weights, beside the grids of that target."""
    module = find_target(target)
    grids = choose_grids(plan.bounds, plan.graph, module.ACTIVATIONS)
    widths = {
        bits: choose_grids(plan.bounds_by_bits.get(bits, plan.bounds), plan.graph, spec) for bits, spec in other_widths(module).items()
    }
    parameters = read_parameters(plan.float_file, plan.graph)
    return WeightBank(plan.graph, parameters, grids, module.product_rows, rounded=plan.rounded, widths=widths)


def _read_bounds(row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (low, high) for name, (low, high) in row.items()}
