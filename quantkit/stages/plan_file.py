"""plan.json: which layer takes what, and all that it takes to write the file again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantkit.calibration.ranges import Ranges
from quantkit.core.run_files import PLAN
from quantkit.core.spec import Allocation
from quantkit.core.store import write_atomically
from quantkit.runs.workbench import Workbench
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network
from quantkit.targets import other_widths


def plan_frame(request: Request, network: Network, candidates: Candidates, ranges: Ranges) -> dict[str, Any]:
    """plan.json but for which layer takes what: all that it takes, beside graph.json and the files it names, to write a plan's file."""
    observer, widths = request.options.observer, other_widths(network.target)
    return {
        "schema": 1,
        "target": request.options.target,
        "float_onnx": network.float_file.name,
        "program": network.program_file.name,
        "weights": candidates.key,
        "rounded": candidates.rounded[0].key if candidates.rounded else None,  # for each plan, or apart
        "bounds": ranges.bounds(observer, network.captured.graph, network.target.ACTIVATIONS),
        "bounds_by_bits": {bits: ranges.bounds(observer, network.captured.graph, spec) for bits, spec in widths.items()},
    }


def write_plan(bench: Workbench, candidates: Candidates, frame: Mapping[str, Any], allocation: Allocation) -> None:
    """plan.json in the run directory."""
    layers = {name: allocation[group.name] for group in candidates.groups for name in group.layers}
    with write_atomically(bench.store.folder / PLAN) as temporary:
        temporary.write_text(json.dumps({**frame, "weights": candidates.weights_key(allocation), "layers": layers}, indent=1))
