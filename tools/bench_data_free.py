"""What a promise without data is worth: ranges from distilled items, and drops on real ones; writes docs/results/data-free.json.

    python tools/bench_data_free.py                          # about ten minutes

`resnet44.w8a8.drop`: everything in w8a8, ranges and rounding from distilled items alone, on the recipe's gate split, a mean over seeds.
`kept_share`: allocations of ResNet20 without data, for bytes, of several budgets and seeds: how many lose no more real points than
they promised of agreement. `sure_share`: of those that the search's own items called kept.

Needs the data and weights that the recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from known import run_folder, write_figures

import quantkit
from quantkit import pipeline
from quantkit.core.progress import Silent
from quantkit.core.spec import parse_scheme
from quantkit.data import Subset
from quantkit.runtimes.evaluation import evaluate, open_session
from quantkit.settings.arguments import Arguments
from quantkit.settings.recipe import load_recipe
from quantkit.settings.request import Request, resolve
from quantkit.stages.groups import find_groups
from quantkit.stages.ranges import calibrate_ranges
from quantkit.stages.weights import prepare_candidates

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (1, 3, 32, 32)
SEEDS = (0, 1, 2)
BUDGETS = (1.0, 2.0, 4.0, 8.0)  # points of agreement


def real(name: str) -> Request:
    """The recipe's own request, with its data."""
    return resolve(ROOT / "recipes" / f"{name}.py", Arguments(), promised=False)


def lost(gate: Subset, before: Path, after: Path) -> float:
    """Points of top-1 that the file loses against the float file on the real items."""
    labels = gate.labels()
    right = [float((evaluate(open_session(path, threads=0), gate, 100)[0].argmax(axis=1) == labels).mean()) for path in (before, after)]
    return 100 * (right[0] - right[1])


def uniform(name: str, seed: int, folder: Path) -> float:
    """What w8a8 loses on real items, calibrated on distilled ones."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py").changed({"data": None, "metric": None, "calibration": 64, "search": 8, "gate": 8})
    arguments = Arguments(run=folder / f"{name}-w8a8-{seed}", schemes=("w8a8", "fp32"), seed=seed, input_shape=SHAPE, max_drop=20.0)
    with pipeline._begun(resolve(recipe, arguments), Silent(), "measure", "data free") as (bench, request, network, scratch):
        groups = find_groups(network.captured.graph, request.options)
        candidates = prepare_candidates(bench, request, network, groups, calibrate_ranges(bench, request, network), scratch)
        candidates.emit(candidates.uniform(parse_scheme("w8a8")), scratch / "w8a8.onnx")
        return lost(real(name).splits.gate, candidates.float_file, scratch / "w8a8.onnx")


def promises(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Allocations without data, and what each loses of agreement on its own items and of top-1 on real ones."""
    gate = real(name).splits.gate
    for seed in SEEDS:
        for budget in BUDGETS:
            counts = {"calibration": 64, "search": 128, "gate": 128}
            recipe = load_recipe(ROOT / "recipes" / f"{name}.py").changed({"data": None, "metric": None, **counts})
            result = quantkit.allocate(
                recipe, max_drop=budget, minimize="bytes", effort="fast", certificate=0, seed=seed, input_shape=SHAPE,
                run=folder / f"{name}-{seed}",
            )  # fmt: skip
            yield {
                "seed": seed, "budget": budget, "kept": result.kept, "promised": result.verdict.drop, "bytes": result.bytes["ratio"],
                "lost": lost(gate, result.files.float_onnx, result.files.onnx),
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=run_folder("data-free", "data-free.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "data-free.json")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    drops = [uniform("resnet44", seed, arguments.runs) for seed in SEEDS]
    figures |= {"resnet44.w8a8.drop": float(np.mean(drops)), "resnet44.w8a8.spread": max(drops) - min(drops)}
    print(figures, flush=True)
    rows = []
    for row in promises("resnet20", arguments.runs):
        print(row, flush=True)
        rows.append(row)
    kept = [row["lost"] <= row["budget"] for row in rows]
    sure = [row["lost"] <= row["budget"] for row in rows if row["kept"]]
    figures |= {
        "promises": len(rows), "kept_share": float(np.mean(kept)), "called_kept": len(sure), "sure_share": float(np.mean(sure)),
        "lost_over_budget": float(np.median([row["lost"] / row["budget"] for row in rows])),
        "lost_over_budget_most": max(row["lost"] / row["budget"] for row in rows), "bytes": float(np.mean([row["bytes"] for row in rows])),
        "seeds": len(SEEDS),
    }  # fmt: skip
    write_figures(arguments.output, "data-free.json", figures)
    print(figures)


if __name__ == "__main__":
    main()
