"""Cuts of modelled latency at three promises, as augmented Hessians are published with (arXiv 2306.04879); writes docs/results/paper.json.

    python tools/bench_paper.py                                       # hours: plans are judged on what they really answer
    python tools/bench_paper.py --networks resnet44 --keeps 99.99 --methods kl

Integers of 4, 8 and 16 bits on a modelled machine (target `nbit`); `latency_cut_percent` is what the plan saves of the network in 16 bits,
with `--keep` of the float network's score promised. The paper's networks are ResNet50, MobileNetV2 and BERT on ImageNet and SQuAD; at hand
are MobileNetV2 on another set, ResNet44 in ResNet50's place and MiniLM-L6 in BERT's, and the machine is a guess at the paper's:
half-precision units of an A100, with int8 and int4 products of its authors' own measurement (31 and 47 % less time than half). So the
published cuts stand beside as a mark, not as a contest. A promise that the items at hand cannot resolve is refused, and has no figure:
99.99 % takes ten thousand. Orderings: `augmented`, `kl`, `hessian`; ways: pareto and bisection.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from known import known_figures, run_folder, write_figures

from quantkit.allocation.prediction.predictor import read_predictor
from quantkit.core.spec import parse_allocation, parse_scheme

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = {"resnet44": 25.48, "mobilenet_v2": 21.69, "minilm_sst2": 33.28}  # at 99.99 %, of ResNet50, MobileNetV2 and BERT
KEEPS = ("99", "99.9", "99.99")
METHODS, WAYS = ("augmented", "kl", "hessian"), ("pareto", "bisection")
HALF = parse_scheme("w16a16")
MACHINE = """# An A100 as far as its authors tell: half at 312 teraflops; int8 and int4 products take 0.69 and 0.53 of half's time.
name = "A100-like"
macs_per_s = 156e12
bytes_per_s = 1.555e12
launch_us = 0

[speed]
w16a16 = 1.0
w8a8 = 1.449
w4a8 = 1.449
w8a4 = 1.449
w4a4 = 1.887
"""


def cut(name: str, keep: str, method: str, way: str, folder: Path) -> dict[str, float]:
    """One allocation, made if it is not there: what its plan saves of the network in 16 bits, and what it loses."""
    machine, run = folder / "machine.toml", folder / f"{name}.{method}"
    folder.mkdir(parents=True, exist_ok=True)
    machine.write_text(MACHINE)
    kept = folder / f"{name}.{keep}.{method}.{way}.json"
    if not kept.exists():
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--run", str(run), "--json"]
        command += ["--target", "nbit", "--machine", str(machine), "--keep", f"{keep}%", "--sensitivity", method, "--search", way]
        command += ["--schemes", "w16a16,w8a8,w4a8,w4a4", "--certificate", "0", "--effort", "fast"]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode not in (0, 1):
            return {}  # refused in one line: too few items to tell so small a loss
        result = json.loads((run / "result.json").read_text())
        predictor = read_predictor(run)[0]
        plan = parse_allocation({row["group"]: row["scheme"] for row in result["allocation"]})
        times = [predictor.resources["latency"].total(each) for each in (plan, dict.fromkeys(plan, HALF))]
        verdict = result["verdict"]
        kept.write_text(json.dumps({
            "latency_cut_percent": 100 * (1 - times[0] / times[1]), "kept": float(result["kept"]), "drop": verdict["drop"],
            "drop_low": verdict["low"], "drop_high": verdict["high"],
        }))  # fmt: skip
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--keeps", nargs="+", default=list(KEEPS), choices=KEEPS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--runs", type=Path, default=run_folder("paper", "paper.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "paper.json")
    arguments = parser.parse_args()
    known: dict[str, Any] = known_figures(arguments.output)
    for name in arguments.networks:
        known[f"paper.{name}.published_cut_percent"] = PUBLISHED[name]
        for keep in arguments.keeps:
            for method in arguments.methods:
                for way in arguments.ways:
                    row = cut(name, keep, method, way, arguments.runs)
                    print(name, keep, method, way, {key: round(value, 2) for key, value in row.items()}, flush=True)
                    known |= {f"paper.{name}.{keep}.{method}.{way}.{key}": value for key, value in row.items()}
                    write_figures(arguments.output, "paper.json", known, whole=False)
    whole = all(set(mine) == set(all_) for mine, all_ in (
        (arguments.networks, PUBLISHED), (arguments.keeps, KEEPS), (arguments.methods, METHODS), (arguments.ways, WAYS),
    ))  # fmt: skip
    write_figures(arguments.output, "paper.json", known, whole=whole)


if __name__ == "__main__":
    main()
