"""What estimators and solvers cost, on a quiet machine; writes docs/results/costs.json. About half an hour.

    python tools/bench_costs.py

All times are one thread's own processor seconds, but where two threads are told. Interactions: the Gram of displacements against isolated
divergences on the same items. Measured pairs: timed on two items and scaled to as many. Traces: the package PyHessian's total trace against
ours, at equal standard error, so seconds a probe times the variance of one; `gauss_newton` likewise, a draw for a probe. The order of its
traces is held against the package's, each layer's own, with as many probes as make them stand.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bench_sensitivity import ROOT, Bed, prepare
from bench_solvers import solve_all
from known import known_figures, write_figures
from pyhessian import hessian as package
from scipy.stats import spearmanr

from quantkit.core.progress import Silent
from quantkit.core.store import Run
from quantkit.data import Batch
from quantkit.runs.workbench import Workbench
from quantkit.sensitivity import COSTS, SENSITIVITIES, pyhessian
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.sensitivity.passes.curvature import differentiable, hutchinson
from quantkit.sensitivity.passes.gradients import squared_gradients
from quantkit.sensitivity.passes.outputs import drawn
from quantkit.settings.recipe import load_recipe

ITEMS, PROBES, BATCH = 32, 24, 16
SINGLE = 40  # probes of each layer's own trace


@contextmanager
def bed(name: str) -> Iterator[Bed]:
    with TemporaryDirectory() as folder, Run(Path(folder) / "run") as store:
        yield prepare(Workbench(store, Silent()), name, 0, Path(folder))


def seconds(job: Callable[[], Any]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def interactions() -> dict[str, float]:
    """MobileNetV2, three schemes: all pairs of interactions, isolated scores, measured pairs, traces."""
    with bed("mobilenet_v2") as found:
        calibration = found.request.splits.calibration
        context = replace(found.context, items=calibration.first(16))
        isolated, gram = (min(seconds(lambda m=m: SENSITIVITIES[m](context)) for _ in range(2)) for m in ("kl", "displacement"))
        few = replace(context, items=calibration.first(2))
        pairs = seconds(lambda: SENSITIVITIES["pairs"](few)) / 2 * 16
        whole = replace(context, items=calibration)
        steps = network_batches(found.network.captured.graph, calibration.first(ITEMS), BATCH)

        def to_five_percent() -> None:
            traces = hutchinson(found.network.captured.module, whole.loss, steps, whole.weights, probes=10, tolerance=0.05, seed=0)
            total, error = sum(t.trace for t in traces.values()), sum(t.standard_error**2 for t in traces.values()) ** 0.5
            print(f"MobileNetV2, {ITEMS} items: total trace {total:.4g}, standard error of the layers' sum {error:.3g}")

        traced = seconds(to_five_percent)
    return {
        "mobilenet_v2.cost.interactions_over_isolated": gram / isolated,
        "mobilenet_v2.cost.pairs_over_interactions": pairs / gram,
        "mobilenet_v2.cost.pairs_over_interactions_in_passes": COSTS["pairs"](context).passes / COSTS["displacement"](context).passes,
        "mobilenet_v2.cost.traces_minutes": traced / 60,
    }


def gram() -> dict[str, float]:
    """MobileNetV2, three schemes, displacements and their Gram, by two threads and the clock; memory is of the whole process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        minutes, seen, peak_gb = fresh.submit(_gram).result()
    return {
        "mobilenet_v2.cost.gram_items": seen,
        "mobilenet_v2.cost.gram_256_minutes": minutes * 256 / seen,
        "mobilenet_v2.cost.gram_peak_gb": peak_gb,
    }


def _gram() -> tuple[float, int, float]:
    torch.set_num_threads(2)
    with bed("mobilenet_v2") as found:
        context = replace(found.context, items=found.request.splits.calibration)
        start = time.perf_counter()
        SENSITIVITIES["displacement"](context)
        minutes = (time.perf_counter() - start) / 60
    return minutes, len(context.affordable(context.reruns)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def traces() -> dict[str, float]:
    """ResNet44, one batch: seconds and variance a probe, of each way to the total trace; the order of layers."""
    with bed("resnet44") as found:
        context = replace(found.context, items=found.request.splits.calibration.first(BATCH))
        batch = next(network_batches(found.network.captured.graph, context.items, BATCH))
        model = load_recipe(ROOT / "recipes" / "resnet44.py").model.eval()
        x = batch.inputs[found.network.captured.graph.inputs[0]]
        theirs = [_theirs(model, x, batch, seed) for seed in range(3)]
        mine = [_ours(found, batch, seed) for seed in range(3)]
        gauss = [_gauss_newton(found, batch, seed) for seed in range(3)]
        (t_s, t_v), (h_s, _), (g_s, g_v) = (np.median(rows, axis=0) for rows in (theirs, mine, gauss))
        # A joint probe of all weights has the same variance whoever computes it: the package's own, measured over many more.
        long = replace(context, seed=1)
        pyhessian.MOST_PROBES, pyhessian.TOLERANCE = SINGLE, 1e-4
        single = SENSITIVITIES["pyhessian"](long).table.values
        squared = SENSITIVITIES["gauss_newton"](context).table.values
        column = list(found.context.schemes).index("w4a8")
        weighted = np.isfinite(single[:, column]) & (single[:, column] != 0)
        rank = float(spearmanr(single[weighted, column], squared[weighted, column]).statistic)
    return {
        "resnet44.cost.pyhessian_over_hessian": t_s / h_s,
        "resnet44.cost.pyhessian_over_gauss_newton": (t_s * t_v) / (g_s * g_v),
        "resnet44.gauss_newton_rank_correlation": rank,
    }


def _theirs(model: torch.nn.Module, x: torch.Tensor, batch: Batch, seed: int) -> tuple[float, float]:
    """Seconds a further probe, and its relative variance."""

    def trace(probes: int) -> list[float]:
        torch.manual_seed(seed)
        return list(package(model, torch.nn.CrossEntropyLoss(), data=(x, batch.labels), cuda=False).trace(maxIter=probes, tol=0.0))

    short = seconds(lambda: trace(2))
    samples: list[float] = []
    long = seconds(lambda: samples.extend(trace(PROBES)))
    return (long - short) / (PROBES - 2), float(np.var(samples, ddof=1) / np.mean(samples) ** 2)


def _ours(found: Bed, batch: Batch, seed: int) -> tuple[float, float]:
    module, context = found.network.captured.module, found.context
    weights = [name for name, _ in module.named_parameters()]

    def trace(probes: int) -> None:
        hutchinson(module, context.loss, [batch], weights, probes=probes, tolerance=0.0, seed=seed)

    return (seconds(lambda: trace(PROBES)) - seconds(lambda: trace(2))) / (PROBES - 2), 0.0


def _gauss_newton(found: Bed, batch: Batch, seed: int) -> tuple[float, float]:
    """Seconds a further draw, and its relative variance: of the sum over layers, a mean over the batch's items."""
    generator = torch.Generator().manual_seed(seed)
    totals: list[float] = []

    def draw(count: int) -> None:
        for _ in range(count):
            answers = lambda recorded, _: drawn("softmax", recorded.outputs, 1, generator)  # noqa: E731
            with differentiable(found.network.captured.module, []):
                found_traces = squared_gradients(found.network.captured, [batch], answers).traces
            totals.append(sum(trace.trace for trace in found_traces.values()))

    took = seconds(lambda: draw(PROBES)) / PROBES
    return took, float(np.var(totals, ddof=1) / np.mean(totals) ** 2)


def solvers() -> dict[str, float]:
    """500 groups × 5 schemes, interactions included: the slowest of all cases, and the widest gap."""
    rows = solve_all()
    return {"solve.500x5.seconds": max(row["seconds"] for row in rows), "solve.500x5.gap": max(row["gap"] for row in rows)}


PARTS: dict[str, Callable[[], dict[str, float]]] = {"solvers": solvers, "traces": traces, "interactions": interactions, "gram": gram}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "costs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for place, part in enumerate(arguments.only, 1):
        found = PARTS[part]()
        known = known_figures(arguments.output)
        whole = place == len(arguments.only) and set(arguments.only) == set(PARTS)
        write_figures(arguments.output, "costs.json", known | found, whole=whole)
        for key, value in found.items():
            print(f"{key:60s} {value:.4g}", flush=True)


if __name__ == "__main__":
    main()
