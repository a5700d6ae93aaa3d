"""What `--minimize bytes` reaches over split seeds; writes docs/results/bytes.json.

    python tools/bench_bytes.py                                   # what is missing of three networks and five seeds: two hours, resumable
    python tools/bench_bytes.py --networks resnet44 --seeds 0 1   # these runs alone; `seeds` says how many there were

Whole allocations under a promise of one point, each a process of its own. Each is a row of the file, with its processor and the code that
it ran, written as soon as it ends; a row of older code stays until it is run again (`--again`), and `rows_of_older_code` counts them.
`bytes_over_smallest_peer` is what the file takes of ONNX Runtime's own static int8 file (a scale for each channel) of the same run,
`latency_over_static` what it takes of its time; `kept` counts promises kept on the gate split, by the point, `kept_sure` those kept at
95 %. `minutes` and `peak_gb` are the most of any seed, on the cores that `threads` counts. `certificate.spearman` and `.r2` are of
predicted losses on unseen plans, means over the seeds.

Needs the data and weights that the recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fingerprints import code_here
from known import run_folder, write_figures

from quantkit.core.environment import describe

ROOT = Path(__file__).resolve().parent.parent
NETWORKS, SEEDS = ("resnet44", "squeezenet1_1", "mobilenet_v2"), (0, 1, 2, 3, 4)
PEER = "quantize_static"
FILE = "bytes.json"
MEANS = ("bytes_over_smallest_peer", "latency_over_static", "latency_over_float", "drop")

Row = Mapping[str, Any]


def allocated(name: str, seed: int, folder: Path) -> Row:
    """What one allocation gave, and what the process took."""
    command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--minimize", "bytes", "--json"]
    command += ["--max-drop", "1.0", "--split-seed", str(seed), "--run", str(folder / f"{name}-{seed}")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1 is a promise that is not kept
        raise subprocess.CalledProcessError(done.returncode, command)
    result = json.loads(done.stdout)
    peer = next(row for row in result["baselines"] if PEER in row["name"])
    certificate = (result["certificate"] or {}).get("fitted") or {}
    return {
        "network": name,
        "seed": seed,
        "isa": describe()["isa"],
        "code": code_here(FILE).fingerprint,
        "bytes_over_smallest_peer": result["bytes"]["ratio"] / peer["bytes_ratio"],
        "drop": result["verdict"]["drop"],
        "kept": bool(result["kept"]),
        "kept_sure": result["verdict"]["decision"] == "kept",
        "latency_over_float": result["latency"]["ratio"],
        "latency_over_static": result["latency"]["ratio"] / peer["latency_ratio"],
        "spearman": certificate.get("spearman"),
        "r2": certificate.get("r2"),
        "minutes": result["seconds"]["total"] / 60,  # of the process that made it
        "threads": len(os.sched_getaffinity(0)),
        "peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6,  # of the largest child so far: of this one, or more
    }


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """Over the seeds of one network."""
    found: dict[str, float] = {
        **{key: fmean(row[key] for row in rows) for key in MEANS},
        "drop_most": max(row["drop"] for row in rows),
        "kept": sum(row["kept"] for row in rows),
        "kept_sure": sum(row["kept_sure"] for row in rows),
        "minutes": max(row["minutes"] for row in rows),
        "threads": min(row["threads"] for row in rows),
        "peak_gb": max(row["peak_gb"] for row in rows),
        "seeds": len(rows),
        "rows_of_older_code": sum(row["code"] != code_here(FILE).fingerprint for row in rows),
    }
    for key in ("spearman", "r2"):
        values = [row[key] for row in rows if row[key] is not None]
        found |= {f"certificate.{key}": fmean(values)} if values else {}
    return found


def kept_rows(path: Path) -> list[Row]:
    """The rows in the file, none where there is no file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def keep(path: Path, row: Row) -> None:
    """Put the row into the file, in place of an older one of its seed, beside those that other processes have put there."""
    others = [known for known in kept_rows(path) if (known["network"], known["seed"]) != (row["network"], row["seed"])]
    rows = sorted([*others, row], key=lambda one: (NETWORKS.index(one["network"]), one["seed"]))
    figures: dict[str, float] = {}
    for name in NETWORKS:
        own = [one for one in rows if one["network"] == name]
        figures |= {f"{name}.{key}": value for key, value in figures_of(own).items()} if own else {}
    write_figures(path, FILE, figures, whole=all(one["code"] == code_here(FILE).fingerprint for one in rows), rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--again", action="store_true", help="run what has a row of older code once more")
    parser.add_argument("--runs", type=Path, default=run_folder("bytes", FILE))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / FILE)
    arguments = parser.parse_args()
    for name, seed in ((name, seed) for name in arguments.networks for seed in arguments.seeds):
        known = [row for row in kept_rows(arguments.output) if (row["network"], row["seed"]) == (name, seed)]
        if known and not (arguments.again and known[0]["code"] != code_here(FILE).fingerprint):
            continue
        row = allocated(name, seed, arguments.runs)
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        keep(arguments.output, row)


if __name__ == "__main__":
    main()
