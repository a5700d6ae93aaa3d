"""Measure what the targets promise and write docs/results/targets.json. Nothing here passes or fails.

    python tools/bench_targets.py            # everything: about an hour on two cores, most of it 300 random networks
    python tools/bench_targets.py --only narrow openvino

fuzz      random networks × allocations (tests/test_fuzz.py), zoo: deployed networks (tests/test_zoo.py)
narrow    ResNet44 with 8-, 5-, 4- and 2-bit weights: bytes, latency, seconds to load
openvino  SqueezeNet, MobileNetV2 and ResNet44 allocated for OpenVINO, beside its float32, bf16 where the CPU has it, and NNCF's `quantize`
emit      seconds to write and verify MobileNetV2
Needs the data and weights that the recipes name (QUANTKIT_DATA); allocations are kept in --runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.environment import describe

ROOT = Path(__file__).resolve().parent.parent
LOAD = """
import sys, time
from pathlib import Path
from quantkit.evaluation import open_session
start = time.perf_counter()
open_session(Path(sys.argv[1]), threads=1)
print(time.perf_counter() - start)
"""


NETWORKS = ("squeezenet1_1", "mobilenet_v2", "resnet44")


def stored(name: str, runs: Path, target: str = "ort-cpu") -> Path:
    """The run directory of a recipe's allocation, made if it is not there."""
    folder = runs / f"{name}.{target}"
    if not (folder / "result.json").exists():
        recipe = str(ROOT / "recipes" / f"{name}.py")
        command = [sys.executable, "-m", "quantkit", "allocate", recipe, "--target", target, "--run", str(folder), "--json"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return folder


def reported(test: str, variable: str) -> list[dict[str, Any]]:
    """The lines that a test file reports, all of it run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        environment = {**os.environ, variable: str(report), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", f"tests/{test}"], cwd=ROOT, env=environment, check=False)
        return [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []


def fuzz(_: Path) -> dict[str, float]:
    rows = reported("test_fuzz.py", "QUANTKIT_FUZZ_REPORT")
    plans = [plan for row in rows for plan in row["plans"]]
    uniform = [plan for plan in plans if plan["uniform"]]
    return {
        "fuzzed_graphs": len(rows),
        "worst.as_planned": min(plan["as_planned"] for plan in plans),
        "worst.uniform_int8_macs": min(plan["int8_macs"] for plan in uniform),
        "worst.agreement": min(plan["agreement"] for plan in plans),
        "worst.uniform_exact": min(plan["exact"] for plan in uniform),
        "layers_exact": min(plan["layers_exact"] for plan in plans),
    }


def zoo(_: Path) -> dict[str, float]:
    rows = reported("test_zoo.py", "QUANTKIT_ZOO_REPORT")
    return {"zoo.networks": len(rows), **{f"zoo.{row['network']}.uniform_int8_macs": row["uniform_int8_macs"] for row in rows}}


def narrow(runs: Path) -> dict[str, float]:
    import onnx

    from quantkit.evaluation import open_session
    from quantkit.examination import random_feeds
    from quantkit.latency.timing import interleave
    from quantkit.spec import parse_scheme
    from quantkit.stored import export_plan, read_plan

    plan, found = read_plan(stored("resnet44", runs)), dict[str, float]()
    files = {}
    for bits in (8, 5, 4, 2):
        schemes = {layer.name: parse_scheme(f"w{bits}a8" if layer.weight else "w8a8") for layer in plan.graph.layers}
        files[bits] = export_plan(replace(plan, schemes=schemes), "ort-cpu", runs / f"resnet44-w{bits}.onnx").file
    sessions = [open_session(file, threads=1) for file in files.values()]
    times = interleave(sessions, random_feeds(files[8]), rounds=150)
    payloads = {}
    for bits, file in files.items():
        tensors = onnx.load(file).graph.initializer
        payloads[bits] = sum(len(tensor.raw_data) for tensor in tensors if f"_w{bits}_" in tensor.name)
    for place, (bits, file) in enumerate(files.items()):
        loads = [
            subprocess.run([sys.executable, "-c", LOAD, str(file)], capture_output=True, text=True, check=True).stdout for _ in range(3)
        ]
        found |= {
            f"w{bits}.payload_over_w8": payloads[bits] / payloads[8],
            f"w{bits}.file_over_w8": file.stat().st_size / files[8].stat().st_size,
            f"w{bits}.latency_over_w8": float(np.median(times[place] / times[0])),
            f"w{bits}.load_seconds": float(np.median([float(load) for load in loads])),
        }
    return found


def openvino(runs: Path) -> dict[str, float]:
    """Plans made for OpenVINO, and the ratios that their results tell, all of one interleaved run each."""
    found, planned = dict[str, float](), []
    for name in NETWORKS:
        result = json.loads((stored(name, runs, "openvino") / "result.json").read_text())
        planned.append(float(result["executed"]["as_planned"]))
        others = {row["name"]: row for row in result["baselines"]}
        labels = {"float": "float32", "float in bf16": "bf16", "nncf quantize": "nncf", "uniform w8a8": "uniform"}
        for other, label in labels.items():
            if other in others:
                found[f"openvino.{name}.latency_over_{label}"] = result["latency"]["ratio"] / others[other]["latency_ratio"]
                found[f"openvino.{name}.bytes_over_{label}"] = result["bytes"]["ratio"] / others[other]["bytes_ratio"]
        found |= {f"openvino.{name}.drop": result["verdict"]["drop"], f"openvino.{name}.kept": float(result["kept"])}
        if "nncf quantize" in others:
            found[f"openvino.{name}.drop_nncf"] = others["nncf quantize"]["drop"]
    return {"openvino.as_planned": min(planned), **found}


def emit(runs: Path) -> dict[str, float]:
    from quantkit.examination import examine
    from quantkit.stored import export_plan, read_plan

    folder = stored("mobilenet_v2", runs)
    start = time.perf_counter()
    export_plan(read_plan(folder), "ort-cpu", runs / "again.onnx")
    examine(folder, float_file=None, check=None, threads=1, batch_size=32, seed=0)
    return {"mobilenet_v2.emit_and_verify_seconds": time.perf_counter() - start}


PARTS: dict[str, Callable[[Path], dict[str, float]]] = {"narrow": narrow, "openvino": openvino, "emit": emit, "zoo": zoo, "fuzz": fuzz}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "targets")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "targets.json")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    known = json.loads(arguments.output.read_text())["figures"] if arguments.output.exists() else {}
    for part in arguments.only:
        known |= PARTS[part](arguments.runs)
        arguments.output.write_text(json.dumps({"figures": known, "environment": describe()}, indent=1) + "\n")
    for key, value in known.items():
        print(f"{key:45s} {value:.4g}")


if __name__ == "__main__":
    main()
