"""Transformers against the one-line quantizers, on the files that ship; writes docs/results/transformers.json.

    python tools/bench_transformers.py                        # three split seeds each: half an hour
    python tools/bench_transformers.py --seeds 0 --minimize latency

Drops are of gate items that no search saw, means over the split seeds; ratios are medians over the seeds, each from interleaved runs of one
process. `latency` promises 0.5 points, `bytes` 1.0. Runs are kept in --runs and go on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
JOBS = (("minilm_sst2", "latency"), ("minilm_sst2", "bytes"), ("minilm_stsb", "latency"))
NETWORKS = tuple(dict.fromkeys(name for name, _ in JOBS))
MAX_DROP = {"latency": "0.5", "bytes": "1.0"}
SEEDS = (0, 1, 2)
RIVALS = {"dynamic": "onnxruntime quantize_dynamic", "static": "onnxruntime quantize_static", "uniform": "uniform w8a8"}


def allocated(name: str, minimize: str, seed: int, folder: Path) -> dict[str, Any]:
    """The result of one allocation, made if it is not there."""
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--run", str(folder), "--json"]
        command += ["--minimize", minimize, "--max-drop", MAX_DROP[minimize], "--split-seed", str(seed)]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def figures(results: list[dict[str, Any]]) -> dict[str, float]:
    """What several seeds come to."""
    found = {
        "seeds": float(len(results)),
        "drop": mean(row["verdict"]["drop"] for row in results),
        "drop_worst": max(row["verdict"]["drop"] for row in results),
        "kept_point": float(sum(row["verdict"]["drop"] <= row["budget"]["max_drop"] for row in results)),
        "latency_over_float": median(row["latency"]["ratio"] for row in results),
        "bytes_over_float": median(row["bytes"]["ratio"] for row in results),
        "as_planned": float(sum(row["executed"]["as_planned"] for row in results)),
        "agreement_min": min(row["simulation"]["agreement"] for row in results),
        "layers_exact_min": min(row["simulation"]["layers_exact"] for row in results),
        "int8_macs": min(row["executed"]["int8_macs"] for row in results),
        "seconds": median(row["seconds"]["total"] for row in results),
    }
    for label, start in RIVALS.items():
        rows = [next(base for base in row["baselines"] if base["name"].startswith(start)) for row in results]
        found[f"{label}_drop"] = mean(row["drop"] for row in rows)
        for what in ("latency", "bytes"):
            ratios = [one[what]["ratio"] / other[f"{what}_ratio"] for one, other in zip(results, rows, strict=True)]
            found[f"{what}_over_{label}"] = median(ratios)
    if all(row["certificate"] for row in results):
        found["certificate_spearman"] = median(row["certificate"]["fitted"]["spearman"] for row in results)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--minimize", nargs="+", default=list(MAX_DROP), choices=list(MAX_DROP))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=run_folder("transformers", "transformers.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "transformers.json")
    arguments = parser.parse_args()
    known = known_figures(arguments.output)
    chosen = [job for job in JOBS if job[0] in arguments.networks and job[1] in arguments.minimize]
    for place, (name, minimize) in enumerate(chosen, 1):
        rows = [allocated(name, minimize, seed, arguments.runs / f"{name}.{minimize}.{seed}") for seed in arguments.seeds]
        label = name if minimize == "latency" else f"{name}.{minimize}"
        known |= {f"{label}.{key}": value for key, value in figures(rows).items()}
        write_figures(arguments.output, "transformers.json", known, whole=len(chosen) == len(JOBS) and place == len(chosen))
    for key, value in known.items():
        print(f"{key:45s} {value:.4g}")


if __name__ == "__main__":
    main()
