"""Do Hessians augmented with inter-layer dependence allocate better? Measured on real networks; writes docs/results/sensitivity.json.

    python tools/bench_sensitivity.py                                          # hours; stop it at any time and start it again
    python tools/bench_sensitivity.py --networks resnet20 --seeds 0 1          # some of it
    python tools/bench_sensitivity.py --summarise                              # the figures of what was measured so far

For each network and calibration seed every sensitivity fills its table from the same few items. Then at POINTS budgets of bytes, and of a
modelled latency of 4/8/16-bit units, each table names a plan in two ways: the optimum of the table with its interactions (pareto), and the
step within the budget of the way down that its ordering names (bisection: whatever the promise, a bisection ends on this way). Random
orderings take the same way. Every plan's file is measured on items of the search split and of the gate split: as many evaluations for each
method. A method's hypervolume is that of its measured plans, between no loss at the bytes of uniform w3a8 and the loss of uniform w4a8 at
the bytes of w8a8. The default is chosen by the hypervolume on search splits of the other networks; gate figures choose nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from known import run_folder, write_figures
from sensitivity_figures import Row, ratios_of_times, summarise

from quantkit.allocation import order, solve
from quantkit.allocation.costs.counted import byte_costs
from quantkit.core.graph import Group
from quantkit.core.metric import Outputs, divergence
from quantkit.core.progress import Silent
from quantkit.core.spec import parse_allocation, parse_scheme, parse_schemes
from quantkit.core.store import Run, fingerprint, write_atomically
from quantkit.core.table import Interactions, Table
from quantkit.data import Subset
from quantkit.runs.workbench import Workbench, scratch_folder
from quantkit.runtimes.evaluation import evaluate
from quantkit.sensitivity import SENSITIVITIES, Context, Scores, augmented
from quantkit.sensitivity.passes.bound import Passes
from quantkit.settings.arguments import Arguments
from quantkit.settings.bounds import Bounds
from quantkit.settings.request import Request, resolve
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, capture_network
from quantkit.stages.groups import find_groups
from quantkit.stages.judge import labels_for
from quantkit.stages.ranges import calibrate_ranges
from quantkit.stages.weights import prepare_candidates

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = ("w8a8", "w4a8", "w3a8")  # and fp32
POINTS = 5  # budgets between w3a8 and w8a8, for each cost
RANDOM = ("random_0", "random_1")
SPEED = {"fp32": 1.0, "w8a8": 2.0, "w4a8": 4.0, "w3a8": 4.0}  # of a machine whose units take 16, 8 and 4 bits, by weights


@dataclass(frozen=True, slots=True)
class Size:
    """How many items the sensitivities see, and how many of each split plans are measured on."""

    seen: int
    search: int
    gate: int


SIZES = {
    "resnet20": Size(64, 128, 256),
    "resnet44": Size(64, 128, 256),
    "squeezenet1_1": Size(16, 48, 96),
    "mobilenet_v2": Size(16, 48, 96),
    "minilm_sst2": Size(16, 64, 128),
}
# Hours on a network of MobileNetV2's size, so on the small ones alone: measured pairs (one seed), the package's per-layer traces.
SLOW = {"pairs": ("resnet20", "resnet44"), "pyhessian": ("resnet20",)}
BLENDED = ("resnet20", "resnet44")  # where other mixtures of traces, divergences and the Gram matrix are tried too


def methods(name: str, seed: int) -> list[str]:
    """The sensitivities that are tried here."""
    return [m for m in SENSITIVITIES if name in SLOW.get(m, SIZES) and not (m == "pairs" and seed)]


@dataclass(frozen=True, slots=True, eq=False)
class Bed:
    """One network under one seed, ready to be scored and measured."""

    request: Request
    network: Network
    candidates: Candidates
    context: Context
    costs: Mapping[str, Table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=run_folder("sensitivity", "sensitivity.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "sensitivity.json")
    parser.add_argument("--summarise", action="store_true", help="measure nothing more")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.summarise:
        for seed in arguments.seeds:
            for name in arguments.networks:
                measure(name, seed, arguments.runs)
    rows = [Row(**json.loads(line)) for path in sorted(arguments.runs.glob("*/rows.jsonl")) for line in path.read_text().splitlines()]
    figures = summarise(rows) | ratios_of_times({key_of(path.parent): seconds_in(path) for path in arguments.runs.glob("*/timings.jsonl")})
    found = {key_of(path.parent) for path in arguments.runs.glob("*/rows.jsonl")}
    whole = found >= {(name, seed) for name in SIZES for seed in range(5)}
    write_figures(arguments.output, "sensitivity.json", figures, whole=whole)
    for key, value in figures.items():
        print(f"{key:60s} {value:.4g}")


def key_of(folder: Path) -> tuple[str, int]:
    """Network and seed."""
    name, _, seed = folder.name.rpartition("-")
    return name, int(seed)


def seconds_in(path: Path) -> dict[str, float]:
    """Each method's processor seconds; the first time counts."""
    found: dict[str, float] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        found.setdefault(row["method"], row["seconds"])
    return found


def measure(name: str, seed: int, runs: Path) -> None:
    """Every method's plans of one network under one seed, each plan measured once; rows.jsonl names them."""
    folder = runs / f"{name}-{seed}"
    if (folder / "rows.jsonl").exists():
        return
    with Run(folder) as store, scratch_folder(store) as scratch:
        bench = Workbench(store, Silent())
        bed = prepare(bench, name, seed, scratch)
        gauge, rows = Gauge(bed, SIZES[name], store), []
        for method, way, cost, place, allocation in plans(bench, bed, name, seed):
            look = gauge.measure(allocation)
            rows.append({"network": name, "seed": seed, "method": method, "way": way, "cost": cost, "place": place,
                         "spent": bed.costs[cost].total(allocation), **look})  # fmt: skip
        for path in folder.glob("float-*.onnx"):
            path.unlink()  # tens of megabytes that nothing reads any more
        with write_atomically(folder / "rows.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(bench: Workbench, name: str, seed: int, scratch: Path) -> Bed:
    """Captured, calibrated, weights rounded under every scheme."""
    said = Arguments(schemes=("fp32", *SCHEMES), seed=seed, split_seed=seed, run=bench.store.folder)
    request = resolve(ROOT / "recipes" / f"{name}.py", said, promised=False)
    request = replace(request, options=replace(request.options, bounds=Bounds()))
    network = capture_network(bench, request)
    groups = find_groups(network.captured.graph, request.options)
    ranges = calibrate_ranges(bench, request, network)
    candidates = prepare_candidates(bench, request, network, groups, ranges, scratch)
    items = request.splits.calibration.first(SIZES[name].seen)
    context = Context(
        Passes(network.on_device, network.target, candidates.bank), groups, parse_schemes(("fp32", *SCHEMES)), items, "softmax", True, seed,
        torch.device("cpu"), Silent(),
    )  # fmt: skip
    bytes_ = byte_costs(network.captured.graph, groups, context.schemes, network.target)
    return Bed(request, network, candidates, context, {"bytes": bytes_, "latency": unit_times(bytes_, shares_of_macs(network, groups))})


def shares_of_macs(network: Network, groups: Sequence[Group]) -> dict[str, float]:
    """Multiply-accumulates of each group, as shares of the whole."""
    macs = {group.name: sum(network.captured.graph.layer(layer).macs for layer in group.layers) for group in groups}
    return {name: count / sum(macs.values()) for name, count in macs.items()}


def unit_times(like: Table, shares: Mapping[str, float]) -> Table:
    """A latency that is modelled, not measured: multiply-accumulates over the speed of the unit that takes the weights; float is 1."""
    values = np.array([[shares[group] / SPEED[scheme] for scheme in like.schemes] for group in like.groups])
    return Table("latency", "of float", like.groups, like.schemes, np.where(np.isnan(like.values), np.nan, values))


def plans(bench: Workbench, bed: Bed, name: str, seed: int) -> Iterator[tuple[str, str, str, int, dict[str, str]]]:
    """(method, way, cost, place, allocation): uniform plans first."""
    uniform = {scheme: bed.candidates.uniform(parse_scheme(scheme)) for scheme in SCHEMES}
    for cost in bed.costs:
        for scheme, allocation in uniform.items():
            yield scheme, "uniform", cost, 0, allocation
    found = {method: scored(bench, bed, method, seed) for method in methods(name, seed)}
    gram = gram_of(found["displacement"])
    isolated, traces = found["kl"].table, found["gauss_newton"].table
    if name in BLENDED:
        found["augmented_hessian"] = augmented.combine(found["hessian"].table, gram, isolated, bed.context)
        found["augmented_whole"] = augmented.combine(traces, gram, isolated, bed.context, share=1.0)
        found |= {f"gram_kl_{share}": mixed(gram, isolated, share) for share in (1.0, 0.5, 0.25)}
    for method, scores in found.items():
        for cost, table in bed.costs.items():
            for place, budget in enumerate(budgets(table, uniform)):
                plan = solve(scores.table, table, budget, groups=bed.context.groups, interactions=scores.interactions, seed=seed)
                assert plan is not None
                yield method, "pareto", cost, place, dict(plan.allocation)
    random = np.random.default_rng(seed)
    like = found["kl"].table
    chance = {label: Scores(replace(like, values=random.random(like.values.shape) + 0 * like.values)) for label in RANDOM}
    for method, scores in (found | chance).items():
        steps = list(way_down(scores, bed))
        for cost, table in bed.costs.items():
            for place, budget in enumerate(budgets(table, uniform)):
                yield method, "bisection", cost, place, next(step for step in steps if table.total(step) <= budget * (1 + 1e-9))


def mixed(gram: Interactions, isolated: Table, share: float) -> Scores:
    """Isolated divergences on the diagonal, in place of their quadratic form, and a share of the Gram matrix beside it."""
    matrix = share * gram.matrix
    np.fill_diagonal(matrix, 2 * np.nan_to_num(isolated.values).ravel())
    return Scores(isolated, replace(gram, matrix=matrix))


def gram_of(scores: Scores) -> Interactions:
    assert scores.interactions is not None
    return scores.interactions


def scored(bench: Workbench, bed: Bed, method: str, seed: int) -> Scores:
    """The method's scores, kept; its processor seconds in timings.jsonl."""

    def compute() -> Scores:
        start = time.process_time()
        scores = SENSITIVITIES[method](bed.context)
        with (bench.store.folder / "timings.jsonl").open("a") as file:
            file.write(json.dumps({"method": method, "items": len(bed.context.items), "seconds": time.process_time() - start}) + "\n")
        return scores

    on = {"weights": bed.candidates.key, "seed": seed, "items": len(bed.context.items)}
    return bench.keep(f"scores-{method}", on, compute, Scores.from_json)


def budgets(table: Table, uniform: Mapping[str, Mapping[str, str]]) -> list[float]:
    """POINTS budgets between uniform w3a8 and uniform w8a8, on a geometric grid without its ends."""
    low, high = table.total(uniform["w3a8"]), table.total(uniform["w8a8"])
    return [float(value) for value in np.geomspace(low, high, POINTS + 2)[1:-1]] if low < high else [high] * POINTS


def way_down(scores: Scores, bed: Bed) -> Iterator[dict[str, str]]:
    """Every allocation on the way of a bisection from all float: scheme after scheme, the least sensitive group first."""
    standing = {group.name: max(group.schemes, key=lambda scheme: parse_scheme(scheme).precision) for group in bed.context.groups}
    yield standing
    for scheme in SCHEMES:
        able = [group.name for group in bed.context.groups if scheme in group.schemes]
        for group in order(scores.table, able, scheme, interactions=scores.interactions, start=standing):
            standing = standing | {group: scheme}
            yield standing


class Gauge:
    """Measures an allocation's file on items of both splits, each allocation once."""

    def __init__(self, bed: Bed, size: Size, store: Run) -> None:
        self._bed, self._store = bed, store
        self._parts: dict[str, Subset] = {
            "search": bed.request.splits.search.first(size.search), "gate": bed.request.splits.gate.first(size.gate),
        }  # fmt: skip
        self._floats: dict[str, Outputs] = {
            split: evaluate(bed.candidates.open(bed.candidates.float_file, threads=1), part, 32) for split, part in self._parts.items()
        }
        self._labels = {split: labels_for(bed.request, part, self._floats[split]) for split, part in self._parts.items()}
        self._known = {record["key"]: record["look"] for record in store.records()}

    def look(self, allocation: Mapping[str, str]) -> dict[str, float]:
        """Divergence and drop on either split."""
        counts = {split: len(part) for split, part in self._parts.items()}
        key = fingerprint(self._bed.candidates.key, counts, dict(allocation))
        if key not in self._known:
            session = self._bed.candidates.session(parse_allocation(allocation), threads=1)
            look = {}
            for split, part in self._parts.items():
                outputs, metric = evaluate(session, part, 32), self._bed.request.metric
                look[f"{split}_kl"] = divergence(self._floats[split], outputs, "softmax")
                scores = [metric.score(answers, self._labels[split]) for answers in (self._floats[split], outputs)]
                look[f"{split}_drop"] = scores[0] - scores[1]
            self._store.append({"key": key, "look": look})
            self._known[key] = look
        return dict(self._known[key])


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
