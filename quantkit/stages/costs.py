"""What each (group, scheme) costs: latency, bytes, bit operations, bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from quantkit.allocation import Edge, Resource
from quantkit.allocation.costs.counted import bit_costs, bop_costs, byte_costs, float_bops
from quantkit.allocation.costs.measured import LatencyModel, measure_latency, runs, started
from quantkit.allocation.costs.modelled import model_latency
from quantkit.core.graph import Group
from quantkit.core.machine import TENSOR_CORES
from quantkit.core.spec import FLOAT, Scheme
from quantkit.core.table import Table
from quantkit.export.onnx_file import size_bytes
from quantkit.runs.workbench import Workbench
from quantkit.settings.bounds import FLOAT_BITS
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, example_feeds
from quantkit.stages.groups import schemes_of

if TYPE_CHECKING:
    from quantkit.settings.request import Request

@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What plans use: `resources` by name with what the float network uses of each; `latency` and `sizes` for the report."""

    latency: LatencyModel
    sizes: Table
    resources: Mapping[str, Resource]
    floats: Mapping[str, float]


def cost_groups(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> Costs:
    """Measured latency, bytes, bit operations and bits of every (group, scheme), and the boundaries' latency."""
    options, groups = request.options, candidates.groups
    schemes = schemes_of(groups)

    def compute() -> LatencyModel:
        if not candidates.runtime.TIMES:
            return model_latency(network.captured.graph, groups, schemes, network.target, options.machine or TENSOR_CORES)
        timing = candidates.timing(options.threads, example_feeds(request, network))
        with bench.progress.stage("start what times files"):
            bench.device.run(started, [], timing)
        with bench.progress.stage("measure latency", runs(schemes), "inferences") as advance:
            return measure_latency(
                network.captured.graph, groups, schemes, candidates.apart.written, timing,
                device=bench.device, seed=options.seed, advance=advance,
            )  # fmt: skip

    depends_on = {
        "weights": candidates.key, "threads": options.threads, "seed": options.seed, **bench.timed_on,
        "machine": asdict(options.machine) if options.machine else None,
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
        "bytes": float(size_bytes(candidates.float_file)),
        "bops": float_bops(graph),
        "average_bits": float(FLOAT_BITS),
    }
    return Costs(latency, sizes, resources, floats)


def _file_bytes(candidates: Candidates, sizes: Table) -> Resource:
    """Bytes of whole files: what the table leaves out is fitted on uniform files, so much for the graph and so much for each group."""
    plans = [candidates.uniform(scheme) for scheme in sizes.schemes]
    counts = np.array([[1.0, *(list(plan.values()).count(scheme) for scheme in sizes.schemes if scheme != FLOAT)] for plan in plans])
    over = np.array([candidates.apart.size(plan) - sizes.total(plan) for plan in plans])
    offset, *each = nnls(counts, over)[0]
    added = dict(zip((scheme for scheme in sizes.schemes if scheme != FLOAT), each, strict=True))
    values = sizes.values + np.array([added.get(scheme, 0.0) for scheme in sizes.schemes])
    return Resource(Table("bytes", "bytes", sizes.groups, sizes.schemes, values), (), float(offset))


def _highest(group: Group) -> Scheme:
    return max(group.schemes, key=lambda scheme: scheme.precision)
