"""What each (group, scheme) does and costs, and the front that follows from both."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch

from quantkit.allocation import Edge, front
from quantkit.candidates import Candidates
from quantkit.costs import byte_costs
from quantkit.environment import describe
from quantkit.graph import Group
from quantkit.latency.measured import LatencyModel, measure_latency, steps
from quantkit.latency.modelled import model_latency
from quantkit.request import Request
from quantkit.search import Space
from quantkit.sensitivity import SENSITIVITIES, Scene, Scores
from quantkit.stages.network import Network, example_feeds
from quantkit.store import write_atomically
from quantkit.table import Table
from quantkit.workbench import Workbench

TIE_SHARE = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """`table` and `edges` in the unit that is minimised; `latency` and `sizes` for the report."""

    table: Table
    edges: tuple[Edge, ...]
    latency: LatencyModel
    sizes: Table


def score_groups(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Scores:
    """The chosen sensitivity, on calibration items."""
    options, items, groups = request.options, request.splits.calibration, candidates.groups
    device, curvature, labelled = torch.device(options.device), request.metric.curvature, request.metric.reference == "labels"
    scene = Scene(
        network.on_device, groups, _schemes(groups), network.target, candidates.bank.to(device), items,
        curvature, labelled, options.seed, device, bench.progress, options.memory_mb,
    )  # fmt: skip
    depends_on = (candidates.key, options.sensitivity, options.seed, curvature, labelled, options.memory_mb)
    estimate = SENSITIVITIES[options.sensitivity]
    return bench.keep("scores", depends_on, lambda: estimate(scene), Scores.from_json)


def cost_groups(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Costs:
    """Measured latency and bytes of every (group, scheme), and the boundaries' latency."""
    options, groups, host = request.options, candidates.groups, describe()
    schemes = _schemes(groups)

    def compute() -> LatencyModel:
        if not candidates.runtime.TIMES:
            return model_latency(network.captured.graph, groups, schemes, network.target)
        with bench.progress.stage("measure latency", steps(schemes), "files") as advance:
            return measure_latency(
                network.captured.graph, groups, schemes, candidates.emit, example_feeds(request, network),
                runtime=candidates.runtime, options=network.target.SESSION_OPTIONS, threads=options.threads, seed=options.seed,
                folder=candidates.folder, advance=advance,
            )  # fmt: skip

    depends_on = (candidates.key, options.threads, options.seed, host["cpu"], host["isa"])
    latency = bench.keep("latency", depends_on, compute, LatencyModel.from_json)
    sizes = byte_costs(network.captured.graph, groups, schemes, network.target)
    edges = tuple(Edge(edge.producer, edge.consumer, edge.latency_ms) for edge in latency.boundaries)
    if options.minimize == "latency":
        return Costs(latency.table, edges, latency, sizes)
    # Of plans of nearly equal bytes the faster one: TIE_SHARE of the float file's bytes for the whole of its latency.
    dearest = float(np.nansum(sizes.values.max(axis=1, initial=0.0, where=~np.isnan(sizes.values))))
    price = TIE_SHARE * dearest / max(latency.predicted_ms({group.name: group.schemes[0] for group in groups}), 1e-6)
    table = Table(sizes.name, sizes.unit, sizes.groups, sizes.schemes, sizes.values + price * latency.table.values)
    return Costs(table, tuple(Edge(edge.producer, edge.consumer, price * edge.cost) for edge in edges), latency, sizes)


def find_front(bench: Workbench, request: Request, groups: tuple[Group, ...], scores: Scores, costs: Costs) -> Space:
    """The front of predicted loss against cost, kept as front.json, and the space around it."""
    with bench.timed("front", "solve for the front"):
        plans = front(
            scores.table, costs.table, groups=groups, interactions=scores.interactions, edges=costs.edges, seed=request.options.seed
        )
    rows = {"minimize": request.options.minimize, "plans": [plan.to_json() for plan in plans]}
    with write_atomically(bench.store.folder / "front.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1))
    return Space(groups, scores.table, costs.table, plans, scores.interactions, costs.edges)


def _schemes(groups: tuple[Group, ...]) -> tuple[str, ...]:
    """All schemes of all menus, in the order in which they first appear."""
    return tuple(dict.fromkeys(scheme for group in groups for scheme in group.schemes))
