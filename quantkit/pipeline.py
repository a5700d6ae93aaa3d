"""The whole job on one page: load → capture → groups → calibrate → score → cost → front → search → emit → verify → report.

Each stage takes frozen data and returns frozen data; what it returns is kept in the run directory under the fingerprint of all that it
depends on, so that a second call repeats nothing. The search sees the calibration and search splits; the gate split is opened once,
at the end, by `verify_plan`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quantkit.capture import capture
from quantkit.graph import Graph, Group
from quantkit.loading import LoadedModel
from quantkit.options import Options
from quantkit.progress import Progress
from quantkit.request import Request
from quantkit.result import Result
from quantkit.stages.choice import choose, search
from quantkit.stages.kept import find_result, keep_result, result_key
from quantkit.stages.network import (
    Network,
    calibrate_ranges,
    capture_network,
    find_groups,
    job_fingerprint,
    network_of,
    prepare_candidates,
    write_plan,
    write_request,
)
from quantkit.stages.tables import cost_groups, find_front, score_groups
from quantkit.stages.verdict import report, verify_plan
from quantkit.store import Run, write_atomically
from quantkit.workbench import Workbench, scratch_folder

__all__ = ["Inspection", "Result", "inspect", "run"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What can be decided about a network, before anything is."""

    graph: Graph
    groups: tuple[Group, ...]


def inspect(model: LoadedModel, example: Mapping[str, Tensor] | None, options: Options) -> Inspection:
    """The groups of `model` and what stays float. Raises CaptureError where torch.export refuses the network."""
    captured = capture(network_of(model), example or {})
    return Inspection(captured.graph, find_groups(captured.graph, options))


def run(request: Request, progress: Progress) -> Result:
    """Allocate, export and judge. A promise that no plan keeps is no error: `kept` is then False and the nearest plan is written."""
    job = job_fingerprint(request)
    folder = (request.options.run or Path("runs") / f"{request.model.name}-{job[:8]}").absolute()
    with Run(folder) as store, scratch_folder(store) as scratch:
        bench = Workbench(store, progress)
        network = capture_network(bench, request)
        key = result_key(job, network)
        result = find_result(store, key)
        if result is None:
            result = _allocate(bench, request, network, scratch, job)
            keep_result(store, key, result)
        with write_atomically(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(result.to_json(), indent=2, allow_nan=False))
        if request.options.output:
            with write_atomically(request.options.output.absolute()) as temporary:
                shutil.copyfile(result.files.onnx, temporary)
    return result


def _allocate(bench: Workbench, request: Request, network: Network, scratch: Path, job: str) -> Result:
    write_request(request, network, bench.store.folder)
    groups = find_groups(network.captured.graph, request.options)
    ranges = calibrate_ranges(bench, request, network)
    candidates = prepare_candidates(bench, request, network, groups, ranges, scratch)
    scores = score_groups(bench, request, network, candidates)
    costs = cost_groups(bench, request, network, candidates)
    space = find_front(bench, request, groups, scores, costs)
    found = search(bench, request, candidates, space)
    plan = choose(bench, request, network, candidates, found, costs)
    write_plan(bench, request, network, candidates, ranges, plan.allocation)
    verified = verify_plan(bench, request, network, candidates, plan.allocation)
    return report(bench, request, candidates, scores, costs, found, verified, job)
