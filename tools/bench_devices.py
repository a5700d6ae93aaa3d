"""Latencies predicted for another device from ten files that were timed there; writes docs/results/latency.json.

    python tools/bench_devices.py                           # two networks, settings of this machine as devices: ten minutes
    python tools/bench_devices.py --networks resnet44

A run is measured on one thread, and a kit of 30 files timed by its own script under each setting: two threads, batches of 8, the runtime's
optimisations basic alone or none; and by OpenVINO, where it is installed. From the times of FEW of the files the run's table is corrected
(`quantkit profile --import`), and the others are predicted. `prior` is the run's own table, which knows nothing of the device. `t4`: the
same from published times of layers (`t4_tables.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from known import known_figures, run_folder, write_figures
from scipy.stats import spearmanr
from t4_tables import NETWORKS as ON_T4
from t4_tables import prior_of, published

from quantkit.allocation import Resource
from quantkit.allocation.costs.measured import random_plans
from quantkit.allocation.costs.timing import interleave
from quantkit.allocation.costs.transfer import TimedPlan, transfer
from quantkit.allocation.prediction.predictor import read_predictor
from quantkit.core.spec import parse_allocation
from quantkit.runs.device_kit import KIT, write_kit
from quantkit.runtimes import openvino
from quantkit.verification.side_by_side import random_feeds

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet44", "squeezenet1_1")
DEVICES = {
    "two_threads": ("--threads", "2"),
    "batch_8": ("--batch", "8"),
    "basic": ("--optimization", "basic"),
    "not_optimized": ("--optimization", "none"),
}
FILES, FEW = 30, 10
ROUNDS, INNER = 20, 3  # in OpenVINO: so many rounds, of so many runs of each file


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
        found |= predicted(f"{name}.{device}", prior, timed)
    return found | (predicted(f"{name}.openvino", prior, in_openvino(kit)) if find_spec("openvino") else {})


def in_openvino(kit: Path) -> list[TimedPlan]:
    """The kit's files, each timed by OpenVINO's CPU plugin on one thread."""
    told = json.loads((kit / KIT).read_text())
    sessions = [openvino.open_file(kit / row["file"], threads=1, options={}) for row in told["plans"]]
    times = interleave(sessions, random_feeds(kit / told["plans"][0]["file"]), rounds=ROUNDS, inner=INNER)
    medians = np.median(times, axis=1).tolist()
    return [(parse_allocation(row["allocation"]), ms) for row, ms in zip(told["plans"], medians, strict=True)]


def on_t4(name: str) -> dict[str, float]:
    """The same, of random plans whose layers' times on a T4 are published."""
    groups, prior = prior_of(name)
    return predicted(f"{name}.t4", prior, [(plan, published(name, plan)) for plan in random_plans(groups, 0, FILES)])


def predicted(label: str, prior: Resource, timed: list[TimedPlan]) -> dict[str, float]:
    """How the plans behind the FEW are predicted from these, and by the prior alone."""
    few, others = timed[:FEW], timed[FEW:]
    corrected, measured, found = transfer(prior, few), np.array([ms for _, ms in others]), {}
    for part, resource in (("", corrected.resource), ("prior.", prior)):
        totals = np.array([resource.total(plan) for plan, _ in others])
        found[f"{label}.{part}rank_correlation"] = float(spearmanr(totals, measured).statistic)
        found[f"{label}.{part}median_error_percent"] = 100 * float(np.median(np.abs(totals / measured - 1)))
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
    for name in ON_T4:
        known |= on_t4(name)
    known |= summary(known)
    write_figures(arguments.output, "latency.json", known, whole=set(arguments.networks) == set(NETWORKS))
    for key, value in known.items():
        print(f"{key:55s} {value:.4g}")


if __name__ == "__main__":
    main()
