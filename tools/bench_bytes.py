"""What `--minimize bytes` reaches over split seeds: a part of docs/results/accuracy.json.

    python tools/bench_bytes.py                                   # three networks, five seeds: two hours on two cores, resumable
    python tools/bench_bytes.py --networks resnet44 --seeds 0 1   # these runs alone; `seeds` says how many there were

Whole allocations under a promise of one point, each a process of its own, kept in `--runs`. `bytes_over_smallest_peer` is what the file
takes of ONNX Runtime's own static int8 file (a scale for each channel) of the same run; `kept` counts promises kept on the gate split, by
the point, `kept_sure` those kept at 95 %. `minutes` and `peak_gb` are the most of any seed, on the cores that `threads` counts.
`certificate.spearman` and `.r2` are of predicted losses on unseen plans, means over the seeds.

Needs the data and weights that the recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
NETWORKS, SEEDS = ("resnet44", "squeezenet1_1", "mobilenet_v2"), (0, 1, 2, 3, 4)
PEER = "quantize_static"


def allocated(name: str, seed: int, folder: Path) -> Mapping[str, Any]:
    """The result of one allocation with what the process took, kept from before or made now."""
    path = folder / f"{name}-{seed}.json"
    if not path.exists():
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--minimize", "bytes", "--json"]
        command += ["--max-drop", "1.0", "--split-seed", str(seed), "--run", str(folder / f"{name}-{seed}")]
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1):  # 1 is a promise that is not kept
            raise subprocess.CalledProcessError(done.returncode, command)
        took = {"minutes": (time.monotonic() - begun) / 60, "threads": len(os.sched_getaffinity(0))}
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # of the largest child so far: of this one, or more
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**json.loads(done.stdout), **took, "peak_gb": peak}))
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def figures_of(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Over the seeds of one network."""
    peers = [next(row["bytes_ratio"] for row in result["baselines"] if row["name"].endswith(PEER)) for result in results]
    told: dict[str, float] = {
        "bytes_over_smallest_peer": fmean(row["bytes"]["ratio"] / peer for row, peer in zip(results, peers, strict=True)),
        "bytes.drop": fmean(row["verdict"]["drop"] for row in results),
        "bytes.drop_most": max(row["verdict"]["drop"] for row in results),
        "bytes.kept": sum(row["kept"] for row in results),
        "bytes.kept_sure": sum(row["verdict"]["decision"] == "kept" for row in results),
        "bytes.latency_over_float": fmean(row["latency"]["ratio"] for row in results),
        "bytes.minutes": max(row["minutes"] for row in results),
        "bytes.threads": min(row["threads"] for row in results),
        "bytes.peak_gb": max(row["peak_gb"] for row in results),
        "bytes.seeds": len(results),
    }
    certificates = [row["certificate"]["fitted"] for row in results if row["certificate"]]
    for key in ("spearman", "r2"):
        values = [row[key] for row in certificates if row[key] is not None]
        told |= {f"bytes.certificate.{key}": fmean(values)} if values else {}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=run_folder("bytes", "accuracy.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "accuracy.json")
    arguments = parser.parse_args()
    figures = known_figures(arguments.output)
    for name in arguments.networks:
        told = figures_of([allocated(name, seed, arguments.runs) for seed in arguments.seeds])
        print(f"{name:14s}", {key: round(value, 3) for key, value in told.items()}, flush=True)
        figures |= {f"{name}.{key}": value for key, value in told.items()}
        write_figures(arguments.output, "accuracy.json", figures, whole=False)


if __name__ == "__main__":
    main()
