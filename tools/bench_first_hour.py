"""What an allocation costs and gains for bytes: figures of docs/results/first-hour.json.

    python tools/bench_first_hour.py                              # bytes and time with --minimize bytes, over quantize_static's
    python tools/bench_first_hour.py --before f42d202             # seconds of whole allocations, over those of another commit
    python tools/bench_first_hour.py --before f42d202 --only squeezenet1_1

Runs lie in build/first-hour and are made once for each commit: a second call goes on. One run a side, on a machine that does nothing
else. Latency is timed by the allocation itself, side by side; the instruction set is part of a figure's name. `same_plan` says whether both
commits chose the same schemes: latency is measured anew by each, so that plans of nearly one latency may change places.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stale_figures

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "first-hour"
PROMISES = {"squeezenet1_1": "1.0", "mobilenet_v2": "1.0", "resnet44": "0.5"}
BYTES = ("squeezenet1_1", "resnet44")
STATIC = "quantize_static"


def head(checkout: Path) -> str:
    """The commit that is checked out, marked where files differ from it."""
    git = ["git", "-C", str(checkout)]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "quantkit", "recipes"], capture_output=True, text=True, check=True).stdout
    return commit + ("-changed" if changed else "")


def allocated(checkout: Path, network: str, *options: str) -> Mapping[str, Any]:
    """The JSON of the allocation by that checkout's code, kept from before or made now. Raises CalledProcessError where it is refused."""
    name = "-".join([network, head(checkout), *(option.lstrip("-") for option in options)])
    path = KEPT / f"{name}.json"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        print(f"{name} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "quantkit", "allocate", str(checkout / "recipes" / f"{network}.py"), "--split-seed", "0", "--json"]
        command += ["--max-drop", PROMISES[network], "--run", str(KEPT / f"run-{name}"), *options]
        data = os.environ.get("QUANTKIT_DATA") or str(ROOT.parent / "shared" / "data")
        environment = {**os.environ, "PYTHONPATH": str(checkout), "QUANTKIT_DATA": data}
        done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1):
            raise subprocess.CalledProcessError(done.returncode, command)
        path.write_text(done.stdout)
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def bytes_figures(network: str) -> dict[str, float]:
    """What the smallest file takes of `quantize_static`'s, in bytes and in time."""
    result = allocated(ROOT, network, "--minimize", "bytes", "--max-drop", "1.0")
    static = next(row for row in result["baselines"] if STATIC in row["name"])
    stem = f"bytes.{network}.{result['environment']['isa']}"
    return {
        f"{stem}.bytes_over_static": result["bytes"]["ratio"] / static["bytes_ratio"],
        f"{stem}.latency_over_static": result["latency"]["ratio"] / static["latency_ratio"],
        f"{stem}.drop": result["verdict"]["drop"],
    }


def time_figures(network: str, before: Path) -> dict[str, float]:
    """The seconds of a whole allocation over those of the checkout `before`, and those of both."""
    results = {"before": allocated(before, network), "now": allocated(ROOT, network)}
    seconds = {side: float(result["seconds"]["total"]) for side, result in results.items()}
    plans = [[row["scheme"] for row in result["allocation"]] for result in results.values()]
    stem = f"allocate.{network}"
    return {
        f"{stem}.time_over_before": seconds["now"] / seconds["before"],
        f"{stem}.seconds_before": seconds["before"],
        f"{stem}.seconds": seconds["now"],
        f"{stem}.same_plan": float(plans[0] == plans[1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", metavar="COMMIT", help="compare the time of allocations with this commit's")
    parser.add_argument("--only", nargs="*", choices=list(PROMISES), help="these networks")
    arguments = parser.parse_args()
    if arguments.before is None:
        chosen = [network for network in BYTES if not arguments.only or network in arguments.only]
        figures = [bytes_figures(network) for network in chosen]
    else:
        checkout = KEPT / f"checkout-{arguments.before}"
        if not checkout.exists():
            subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(checkout), arguments.before], check=True)
        figures = [time_figures(network, checkout) for network in arguments.only or PROMISES]
    for found in figures:
        stale_figures.write_figures(found)
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
