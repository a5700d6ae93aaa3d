"""Latency that can be believed: plans that nobody timed, claims made again, bounds kept; writes docs/results/timing.json.

    python tools/bench_latency.py                                       # four networks, the whole an hour on a quiet machine
    python tools/bench_latency.py --networks resnet44 --parts tables repeatability
    python tools/bench_latency.py --parts budgets --networks resnet44

`median_error_percent` and `rank_correlation`: what a run's table predicts of 28 random plans that it never saw, against their files' own
times. `table_seconds`: what the table took. `repeatability.held`: of CLAIMS comparisons of two files, each in a process of its own, how
many have the median of the others within their own interval. `budgets.met`: allocations with `--minimize drop --max-latency`, and in how
many the file, timed once more, is within the bound or its interval reaches it. `over_bops_plan`: the time of the plan that
is searched for by time over that of the one by bit operations, under the same promise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import BUDGETS as MAX_DROP
from bench_devices import kit_of
from known import known_figures, run_folder, write_figures
from scipy.stats import spearmanr

from quantkit.allocation.prediction.predictor import read_predictor
from quantkit.core.spec import parse_allocation
from quantkit.runs.device_kit import KIT

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet44", "squeezenet1_1", "mobilenet_v2", "minilm_sst2")
ALIKE = 2  # the first plans of a kit are uniform, and every table was fitted to those
CLAIMS, BUDGETS = 5, 5  # of each network
PARTS = ("tables", "repeatability", "budgets", "bops")


def tables(name: str, folder: Path) -> dict[str, float]:
    """What the table predicts of plans that it never saw, on the setting that it was measured on."""
    run, kit = kit_of(name, folder)
    times = kit / "here.json"
    command = [sys.executable, str(kit / "time_files.py"), "--name", "here", "--threads", "1", "--output", str(times)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    prior = read_predictor(run)[0].resources["latency"]
    timed = [(parse_allocation(row["allocation"]), row["ms"]) for row in json.loads(times.read_text())["plans"]][ALIKE:]
    predicted, measured = np.array([prior.total(plan) for plan, _ in timed]), np.array([ms for _, ms in timed])
    events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    took = [event["seconds"] for event in events if event.get("stage") == "latency" and event.get("made")]
    return {
        "plans": float(len(timed)),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
        "median_error_percent": 100 * float(np.median(np.abs(predicted / measured - 1))),
        **({"table_seconds": float(took[0])} if took else {}),
    }


def compared(one: Path, other: Path) -> tuple[float, float, float]:
    """The second file's time over the first's with its interval, from a process of its own."""
    command = [sys.executable, "-m", "quantkit", "bench", str(one), str(other), "--threads", "1", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(done.stdout)["files"][1]
    return row["ratio"], row["low"], row["high"]


def repeatability(name: str, folder: Path) -> dict[str, float]:
    """Comparisons of the float file with one that is nearly all int8, made again and again."""
    _, kit = kit_of(name, folder)
    rows = json.loads((kit / KIT).read_text())["plans"]
    files = [kit / row["file"] for row in rows[:ALIKE]]
    claims = [compared(*files) for _ in range(CLAIMS)]
    held = 0
    for place, (_, low, high) in enumerate(claims):
        others = float(np.median([ratio for other, (ratio, _, _) in enumerate(claims) if other != place]))
        held += low <= others <= high
    return {"claims": float(CLAIMS), "held": float(held), "spread_percent": 100 * float(np.ptp([ratio for ratio, _, _ in claims]))}


def budgets(name: str, folder: Path) -> dict[str, float]:
    """Bounds between the fastest plan of the front and the float network, each asked for, and timed once more afterwards."""
    run, _ = kit_of(name, folder)
    front = json.loads((run / "front.json").read_text())["plans"]
    uses = [row["uses"]["latency"] for row in front]
    floats = read_predictor(run)[0].floats["latency"]
    met = strictly = 0
    for share in np.linspace(min(uses) / floats + 0.03, 0.95, BUDGETS):
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--run", str(run), "--json"]
        command += ["--minimize", "drop", "--max-latency", f"{share:.3f}x", "--certificate", "0"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        files = json.loads((run / "result.json").read_text())["files"]
        ratio, low, _ = compared(Path(files["float_onnx"]), Path(files["onnx"]))
        met, strictly = met + (low <= share), strictly + (ratio <= share)
        print(f"{name}: asked for {share:.3f}, timed at {ratio:.3f} ({low:.3f} at least)", flush=True)
    return {"budgets": float(BUDGETS), "met": float(met), "met_by_point": float(strictly)}


def bops(name: str, folder: Path) -> dict[str, float]:
    """Plans searched for by bit operations and by time, in the same run and under the same promise, timed side by side."""
    run, _ = kit_of(name, folder)
    files, drops = [], []
    for objective in ("bops", "latency"):
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--run", str(run), "--json"]
        command += ["--minimize", objective, "--max-drop", str(MAX_DROP.get(name, 0.5)), "--certificate", "0"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        result = json.loads((run / "result.json").read_text())
        files.append(shutil.copy(result["files"]["onnx"], run / f"by-{objective}.onnx"))
        drops.append(result["verdict"]["drop"])
    ratio, low, high = compared(*map(Path, files))
    return {"over_bops_plan": ratio, "low": low, "high": high, "bops_plan_drop": drops[0], "drop": drops[1]}


MEASURES: dict[str, Callable[[str, Path], dict[str, float]]] = {
    "tables": tables, "repeatability": repeatability, "budgets": budgets, "bops": bops,
}  # fmt: skip


def totals(known: dict[str, Any]) -> dict[str, float]:
    """Over all networks."""
    found = {}
    for part, count, good in (("repeatability", "claims", "held"), ("budgets", "budgets", "met"), ("budgets", "budgets", "met_by_point")):
        if any(key.endswith(f".{part}.{count}") for key in known):
            for what in (count, good):
                rows = [value for key, value in known.items() if key.endswith(f".{part}.{what}") and key.count(".") == 2]
                found[f"{part}.{what}"] = float(sum(rows))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--runs", type=Path, default=run_folder("timing", "timing.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "timing.json")
    arguments = parser.parse_args()
    known = known_figures(arguments.output)
    for name in arguments.networks:
        for part in arguments.parts:
            label = name if part == "tables" else f"{name}.{part}"
            known |= {f"{label}.{key}": value for key, value in MEASURES[part](name, arguments.runs).items()}
            known |= totals(known)
            write_figures(arguments.output, "timing.json", known, whole=False)
    whole = set(arguments.networks) == set(NETWORKS) and set(arguments.parts) == set(PARTS)
    write_figures(arguments.output, "timing.json", known, whole=whole)
    for key, value in known.items():
        print(f"{key:45s} {value:.4g}")


if __name__ == "__main__":
    main()
