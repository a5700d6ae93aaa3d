"""Measure the goals of the project on real networks and write docs/results/spine.json. Nothing here passes or fails.

    python tools/bench.py                                  # all networks, five split seeds: an hour and a half on two cores
    python tools/bench.py --networks resnet20 --seeds 0    # some of it

Every allocation is a `quantkit allocate` of a recipe in a process of its own, kept in a run directory (--runs), so that a bench that was
stopped goes on where it was. Needs the data and weights that the recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {"mobilenet_v2": 1.0, "squeezenet1_1": 1.0, "resnet20": 0.5, "resnet44": 0.5}
SMALLEST = ("squeezenet1_1", "resnet44")  # also with --minimize bytes, at one point, over the same seeds
SEEDS = (0, 1, 2, 3, 4)


def allocate(name: str, seed: int, runs: Path, *options: str, label: str = "") -> dict[str, Any]:
    """The result object of one `quantkit allocate`, from the run directory if it is there."""
    folder = runs / f"{name}-{seed}"
    kept = runs / f"{name}-{seed}{label}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--split-seed", str(seed)]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as progress:
        process = subprocess.Popen([*command, "--run", str(folder), "--json", *options], stdout=told, stderr=progress)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0), progress.seek(0)
        if process.returncode > 1 or process.returncode < 0:
            raise SystemExit(f"{name}, seed {seed}: {progress.read().strip().splitlines()[-1]}")
        result = {**json.loads(told.read()), "wall_s": time.perf_counter() - start, "peak_mb": usage.ru_maxrss / 1024}
    kept.write_text(json.dumps(result, indent=1))
    return result


def figures_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """The goals' numbers over all seeds of one network."""
    static = [next(row for row in result["baselines"] if "quantize_static" in row["name"]) for result in results]
    uniform = [next(row for row in result["baselines"] if row["name"].startswith("uniform")) for result in results]
    drops = [result["verdict"]["drop"] for result in results]
    agreements = [result["simulation"]["agreement"] for result in results]
    return {
        "seeds": len(results),
        "kept_point": sum(result["verdict"]["drop"] <= result["budget"]["max_drop"] for result in results),
        "kept_sure": sum(result["verdict"]["decision"] == "kept" for result in results),
        "broken": sum(result["verdict"]["decision"] == "broken" for result in results),
        "drop_mean": statistics.mean(drops),
        "counted_drop_mean": statistics.mean(result["verdict"]["float"] - result["verdict"]["quantized"] for result in results),
        "drop_worst": max(drops),
        "drop_spread": statistics.stdev(drops) if len(drops) > 1 else 0.0,
        "uniform_drop_mean": statistics.mean(row["drop"] for row in uniform),
        "static_drop_mean": statistics.mean(row["drop"] for row in static),
        "latency_over_float": statistics.median(result["latency"]["ratio"] for result in results),
        "latency_over_static": statistics.median(
            result["latency"]["ratio"] / row["latency_ratio"] for result, row in zip(results, static, strict=True)
        ),
        "uniform_latency_over_float": statistics.median(row["latency_ratio"] for row in uniform),
        "bytes_over_static": statistics.median(r["bytes"]["ratio"] / row["bytes_ratio"] for r, row in zip(results, static, strict=True)),
        "dominated_by_uniform": sum(
            row["drop"] <= result["verdict"]["drop"]
            and row["latency_ratio"] < result["latency"]["low"]
            and row["bytes_ratio"] != result["bytes"]["ratio"]  # else the plan is that one, timed twice
            for result, row in zip(results, uniform, strict=True)
        ),
        "as_planned": sum(result["executed"]["as_planned"] for result in results),
        "agreement_min": min(agreements),
        "exact_min": min(result["simulation"]["exact"] for result in results),
        "layers_exact_min": min(result["simulation"]["layers_exact"] for result in results),
        "wall_s": max(result["wall_s"] for result in results),
        "peak_mb": max(result["peak_mb"] for result in results),
    }


def each_seed(result: dict[str, Any]) -> dict[str, Any]:
    """What one seed's table says, as it was measured."""
    return {key: result[key] for key in ("verdict", "latency", "bytes", "baselines")}


def import_seconds() -> float:
    """The median wall time of `import quantkit` in a fresh process, the interpreter's own start taken off."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return statistics.median(run("import quantkit") for _ in range(5)) - statistics.median(run("pass") for _ in range(5))


def probe_over_pyhessian() -> float:
    """Seconds of one further Hutchinson probe, ours (every layer's trace) over PyHessian's (their sum), on one batch of 16 of ResNet20."""
    import numpy as np
    import torch
    from pyhessian import hessian as pyhessian

    from quantkit.data import Batch
    from quantkit.network.capture import capture
    from quantkit.sensitivity.passes.curvature import hutchinson
    from quantkit.settings.recipe import load_recipe

    model = load_recipe(ROOT / "recipes" / "resnet20.py").model.eval()
    inputs, labels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    captured = capture(model, {"x": inputs})
    weights = [name for name, _ in captured.module.named_parameters()]

    def ours(probes: int) -> None:
        hutchinson(
            captured.module, lambda batch: torch.nn.functional.cross_entropy(captured.module(batch.inputs["x"]), batch.labels),
            [Batch({"x": inputs}, labels)], weights, probes=probes, tolerance=0.0, seed=0,
        )  # fmt: skip

    def theirs(probes: int) -> None:
        pyhessian(model, torch.nn.CrossEntropyLoss(), data=(inputs, labels), cuda=False).trace(maxIter=probes, tol=0.0)

    def seconds(trace: Any, probes: int) -> float:
        start = time.perf_counter()
        trace(probes)
        return time.perf_counter() - start

    ours(2), theirs(2)
    rounds = [[seconds(ours, 6) - seconds(ours, 2), seconds(theirs, 6) - seconds(theirs, 2)] for _ in range(3)]
    return float(np.median([mine / yours for mine, yours in rounds]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=run_folder("bench", "spine.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "spine.json")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    known, known_seeds = known_figures(arguments.output), {}
    if known:
        known_seeds = json.loads(arguments.output.read_text()).get("seeds", {})
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.networks}
    small: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for name in arguments.networks:
            result = allocate(name, seed, arguments.runs, "--max-drop", str(BUDGETS[name]))
            results[name].append(result)
            told = f"drop {result['verdict']['drop']:+.2f}, latency {result['latency']['ratio']:.2f}, {result['wall_s']:.0f} s"
            print(f"{name}, seed {seed}: {told}", file=sys.stderr, flush=True)
            if name in SMALLEST:
                tight = allocate(name, seed, arguments.runs, "--max-drop", "1.0", "--minimize", "bytes", label="-bytes")
                small.setdefault(name, []).append(tight)
    figures = {f"{name}.{key}": value for name, rows in results.items() for key, value in figures_of(rows).items()}
    for name, rows in small.items():
        figures |= {f"{name}.bytes.{key}": value for key, value in figures_of(rows).items()}
    figures["quantkit.import_s"] = import_seconds()
    figures["quantkit.probe_over_pyhessian"] = probe_over_pyhessian()
    seeds = known_seeds | {name: [each_seed(result) for result in rows] for name, rows in results.items()}
    everything = set(results) == set(BUDGETS)  # over how many seeds, the figures say
    write_figures(arguments.output, "spine.json", known | figures, whole=everything, seeds=seeds)
    for key, value in figures.items():
        print(f"{key:45s} {value:.4g}")


if __name__ == "__main__":
    main()
