"""Latencies predicted for another device from ten files that were timed there; writes docs/results/latency.json.

    python tools/bench_devices.py                           # two networks, four settings of this machine as devices: eight minutes
    python tools/bench_devices.py --networks resnet44

A run is measured on one thread, and a kit of 30 files timed by its own script under each setting: two threads, batches of 8, the runtime's
optimisations basic alone or none. From the times of FEW of the files the run's table is corrected (`quantkit profile --import`), and the
others are predicted. `prior` is the run's own table, which knows nothing of the device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from known import known_figures, run_folder, write_figures
from scipy.stats import spearmanr

from quantkit.allocation.costs.transfer import transfer
from quantkit.allocation.prediction.predictor import read_predictor
from quantkit.core.spec import parse_allocation
from quantkit.runs.device_kit import write_kit

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet44", "squeezenet1_1")
DEVICES = {
    "two_threads": ("--threads", "2"),
    "batch_8": ("--batch", "8"),
    "basic": ("--optimization", "basic"),
    "not_optimized": ("--optimization", "none"),
}
FILES, FEW = 30, 10


def kit_of(name: str, folder: Path) -> tuple[Path, Path]:
    """The run of a network, measured if it is not there, and its kit."""
    run, kit = folder / name, folder / f"{name}-kit"
    if not (run / "tables.json").exists():
        recipe = str(ROOT / "recipes" / f"{name}.py")
        command = [sys.executable, "-m", "quantkit", "measure", recipe, "--run", str(run), "--certificate", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if not kit.exists():
        write_kit(run, kit, lambda _: None, count=FILES)
    return run, kit


def figures(name: str, folder: Path) -> dict[str, float]:
    """Of each device how the files that were not among the FEW are predicted."""
    run, kit = kit_of(name, folder)
    prior, found = read_predictor(run)[0].resources["latency"], {}
    for device, options in DEVICES.items():
        times = kit / f"{device}.json"
        command = [sys.executable, str(kit / "time_files.py"), "--name", device, "--output", str(times), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        timed = [(parse_allocation(row["allocation"]), row["ms"]) for row in json.loads(times.read_text())["plans"]]
        few, others = timed[:FEW], timed[FEW:]
        corrected, measured = transfer(prior, few), np.array([ms for _, ms in others])
        for label, resource in (("", corrected.resource), ("prior.", prior)):
            predicted = np.array([resource.total(plan) for plan, _ in others])
            found[f"{name}.{device}.{label}rank_correlation"] = float(spearmanr(predicted, measured).statistic)
            found[f"{name}.{device}.{label}median_error_percent"] = 100 * float(np.median(np.abs(predicted / measured - 1)))
    return found


def summary(known: dict[str, Any]) -> dict[str, float]:
    """Over all devices."""
    ranks = [value for key, value in known.items() if key.endswith(".rank_correlation") and ".prior." not in key and key.count(".") == 2]
    return {"transfer.devices": float(len(ranks)), "transfer.rank_correlation": min(ranks), "transfer.files": float(FEW)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--runs", type=Path, default=run_folder("latency", "latency.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "latency.json")
    arguments = parser.parse_args()
    known = known_figures(arguments.output)
    for name in arguments.networks:
        known |= figures(name, arguments.runs)
    known |= summary(known)
    write_figures(arguments.output, "latency.json", known, whole=set(arguments.networks) == set(NETWORKS))
    for key, value in known.items():
        print(f"{key:55s} {value:.4g}")


if __name__ == "__main__":
    main()
