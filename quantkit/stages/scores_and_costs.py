"""What each (group, scheme) does and costs, and the front that follows from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from quantkit.allocation import Edge, Plan, Resource
from quantkit.allocation.costs.counted import bit_costs, bop_costs, byte_costs, float_bops
from quantkit.allocation.costs.measured import LatencyModel, measure_latency, steps
from quantkit.allocation.costs.modelled import model_latency
from quantkit.allocation.prediction.predictor import Predictor
from quantkit.allocation.search import Space
from quantkit.core.environment import describe
from quantkit.core.graph import Group
from quantkit.core.spec import FLOAT, parse_scheme
from quantkit.core.table import Table
from quantkit.runs.workbench import Plain, Workbench
from quantkit.sensitivity import SENSITIVITIES, Context, Scores
from quantkit.sensitivity.passes.bound import Passes
from quantkit.settings.bounds import FLOAT_BITS
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.stages.network import Network, example_feeds


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What plans use: `resources` by name with what the float network uses of each; `latency` and `sizes` for the report."""

    latency: LatencyModel
    sizes: Table
    resources: Mapping[str, Resource]
    floats: Mapping[str, float]


def score_groups(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Scores:
    """The chosen sensitivity, on calibration items."""
    options, items, groups = request.options, request.splits.calibration, candidates.groups
    device, curvature, labelled = torch.device(options.device), request.metric.curvature, request.metric.reference == "labels"
    context = Context(
        Passes(network.on_device, network.target, candidates.bank.to(device)), groups, _schemes(groups), items,
        curvature, labelled, options.seed, device, bench.progress, options.memory_mb,
    )  # fmt: skip
    depends_on = {
        "weights": candidates.key, "sensitivity": options.sensitivity, "seed": options.seed, "metric's curvature": curvature,
        "labels": labelled, "memory_mb": options.memory_mb,
    }  # fmt: skip
    estimate = SENSITIVITIES[options.sensitivity]
    return bench.keep("scores", depends_on, lambda: estimate(context), Scores.from_json)


def cost_groups(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Costs:
    """Measured latency, bytes, bit operations and bits of every (group, scheme), and the boundaries' latency."""
    options, groups, host = request.options, candidates.groups, describe()
    schemes = _schemes(groups)

    def compute() -> LatencyModel:
        if not candidates.runtime.TIMES:
            return model_latency(network.captured.graph, groups, schemes, network.target)
        with bench.progress.stage("measure latency", steps(schemes), "files") as advance:
            return measure_latency(
                network.captured.graph, groups, schemes, candidates.apart.emit, example_feeds(request, network),
                runtime=candidates.runtime, options=network.target.SESSION_OPTIONS, threads=options.threads, seed=options.seed,
                folder=candidates.folder, advance=advance,
            )  # fmt: skip

    depends_on = {
        "weights": candidates.key, "threads": options.threads, "seed": options.seed, "processor": host["cpu"],
        "integer instructions": host["isa"],
    }  # fmt: skip
    latency = bench.keep("latency", depends_on, compute, LatencyModel.from_json)
    graph, edges = network.captured.graph, tuple(Edge(edge.producer, edge.consumer, edge.latency_ms) for edge in latency.boundaries)
    sizes = byte_costs(graph, groups, schemes, network.target)
    files = bench.keep("file_bytes", {"weights": candidates.key}, lambda: _file_bytes(candidates, sizes), Resource.from_json)
    resources = {
        "latency": Resource(latency.table, edges, latency.offset_ms),
        "bytes": files,
        "bops": Resource(bop_costs(graph, groups, schemes)),
        "average_bits": Resource(bit_costs(graph, groups, schemes)),
    }
    floats = {
        "latency": resources["latency"].total({group.name: _highest(group) for group in groups}),
        "bytes": float(candidates.float_file.stat().st_size),
        "bops": float_bops(graph),
        "average_bits": float(FLOAT_BITS),
    }
    return Costs(latency, sizes, resources, floats)


def find_front(bench: Workbench, request: Request, predictor: Predictor, stage: str = "front") -> Space:
    """The front of predicted loss against cost under the bounds, and the space around it; kept, unless no plan is within the bounds.

    `stage` tells the front of one predictor from that of the same after measurements.
    """
    minimize, bounds = request.options.minimize, request.options.bounds
    solved: list[Space] = []

    def compute() -> Plain:
        with bench.progress.stage("solve for the front"):
            solved.append(predictor.space(minimize, bounds))
        return Plain([] if solved[0].shortage else [plan.to_json() for plan in solved[0].front])

    limits = {name: asdict(bound) for name, bound in bounds.given().items()}
    depends_on = {"scores and costs": predictor.key(), "minimize": minimize, "bounds": limits}
    known = bench.keep(stage, depends_on, compute, Plain).value
    if solved:
        return solved[0]
    return predictor.space(minimize, bounds, known=[Plan.from_json(row) for row in known] or None)


def _file_bytes(candidates: Candidates, sizes: Table) -> Resource:
    """Bytes of whole files: what the table leaves out is fitted on uniform files, so much for the graph and so much for each group."""
    plans = [candidates.uniform(scheme) for scheme in sizes.schemes]
    counts = np.array([[1.0, *(list(plan.values()).count(scheme) for scheme in sizes.schemes if scheme != FLOAT.name)] for plan in plans])
    over = np.array([candidates.apart.emit(plan).stat().st_size - sizes.total(plan) for plan in plans])
    offset, *each = nnls(counts, over)[0]
    added = dict(zip((scheme for scheme in sizes.schemes if scheme != FLOAT.name), each, strict=True))
    values = sizes.values + np.array([added.get(scheme, 0.0) for scheme in sizes.schemes])
    return Resource(Table("bytes", "bytes", sizes.groups, sizes.schemes, values), (), float(offset))


def _highest(group: Group) -> str:
    return max(group.schemes, key=lambda scheme: parse_scheme(scheme).precision)


def _schemes(groups: tuple[Group, ...]) -> tuple[str, ...]:
    """All schemes of all menus, in the order in which they first appear."""
    return tuple(dict.fromkeys(scheme for group in groups for scheme in group.schemes))
