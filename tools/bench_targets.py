"""Measure what the targets promise and write docs/results/targets.json. Nothing here passes or fails.

    python tools/bench_targets.py            # everything: about an hour on two cores, most of it 300 random networks
    python tools/bench_targets.py --only narrow openvino

fuzz      random networks × allocations (tests/test_fuzz.py), zoo: deployed networks (tests/test_zoo.py)
narrow    ResNet44 and MobileNetV2 under each way to store weights: bytes, latency, seconds and memory to load
openvino  SqueezeNet, MobileNetV2 and ResNet44 allocated for OpenVINO, beside its float32, bf16 where the CPU has it, and NNCF's `quantize`
tensorrt  the same three adapted to TensorRT: what OpenVINO runs of them in int8, and NVIDIA's rules
forms     uniform plans under each way to store weights: kB and divergence from float (slow)
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
# Only the runtime is imported: what rises is what this file takes, and what the first session takes. Linux keeps the peak of a process in
# VmHWM and sets it back on request; ru_maxrss would be the parent's where that was larger when it forked.
LOAD = """
import json, sys, time
from pathlib import Path
import onnxruntime
def memory(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)) / 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
Path("/proc/self/clear_refs").write_text("5")
before, start = memory("VmRSS"), time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak_mb": memory("VmHWM") - before}))
"""
FORMS = ("fp32", "w8a8", "w5a8", "c5a8", "w4g16a8", "w4a8", "c4a8")
NARROW = ("fp32", "w8a8", "w5a8", "w4a8", "w2a8", "c5a8", "c4a8", "w4g16a8", "w16a32", "w8a32")


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


def fuzz(_: Path, _networks: Sequence[str]) -> dict[str, float]:
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


def zoo(_: Path, _networks: Sequence[str]) -> dict[str, float]:
    rows = reported("test_zoo.py", "QUANTKIT_ZOO_REPORT")
    return {"zoo.networks": len(rows), **{f"zoo.{row['network']}.uniform_int8_macs": row["uniform_int8_macs"] for row in rows}}


def narrow(runs: Path, _networks: Sequence[str]) -> dict[str, float]:
    """Each network uniform under each scheme, against the one that does the same work from wider weights: w8a8, or float32."""
    from quantkit.allocation.costs.timing import interleave
    from quantkit.core.spec import parse_scheme
    from quantkit.runs.stored_plan import export_plan, read_plan
    from quantkit.runtimes.evaluation import open_session
    from quantkit.verification.side_by_side import random_feeds

    found = dict[str, float]()
    for name in ("resnet44", "mobilenet_v2"):
        plan, files = read_plan(stored(name, runs)), dict[str, Path]()
        for scheme in NARROW:
            other = "fp32" if scheme.is_float else "w8a8"
            schemes = {layer.name: parse_scheme(scheme if layer.weight else other) for layer in plan.graph.layers}
            files[scheme] = export_plan(replace(plan, schemes=schemes), "ort-cpu", runs / f"{name}-{scheme}.onnx").file
        sessions = [open_session(file, threads=1) for file in files.values()]
        times = dict(zip(files, interleave(sessions, random_feeds(plan.float_file), rounds=150), strict=True))
        for scheme, file in files.items():
            wide = "fp32" if scheme.is_float else "w8a8"
            loads = [opened_alone(file) for _ in range(3)]
            label = f"{name}.{scheme}"
            found |= {
                f"{label}.payload_over_{wide}": payload(file, scheme) / payload(files[wide], wide),
                f"{label}.file_over_{wide}": file.stat().st_size / files[wide].stat().st_size,
                f"{label}.latency_over_{wide}": float(np.median(times[scheme] / times[wide])),
                f"{label}.load_seconds": float(np.median([load["seconds"] for load in loads])),
                f"{label}.load_peak_mb": float(np.median([load["peak_mb"] for load in loads])),
            }
    for width in ("w8", "w5", "w4", "w2"):  # under the names that the promise has
        for figure in ("payload", "file", "latency"):
            found[f"{width}.{figure}_over_w8"] = found[f"resnet44.{width}a8.{figure}_over_w8a8"]
        found[f"{width}.load_seconds"] = found[f"resnet44.{width}a8.load_seconds"]
    return found


def payload(file: Path, scheme: str) -> int:
    """Bytes of weights and of what belongs to them: codes, scales, multipliers, levels."""
    import onnx

    tensors = onnx.load(file).graph.initializer
    if scheme == "fp32":
        return sum(len(tensor.raw_data) for tensor in tensors if tensor.name.endswith("weight"))
    parts = ("_codes", "_scale", "_multipliers", "_levels")
    return sum(len(tensor.raw_data) for tensor in tensors if ".weight_w" in tensor.name and tensor.name.endswith(parts))


def opened_alone(file: Path) -> dict[str, float]:
    """Seconds to open the file in a fresh process, and by how many megabytes its peak of resident memory rises meanwhile."""
    told = subprocess.run([sys.executable, "-c", LOAD, str(file)], capture_output=True, text=True, check=True).stdout
    return dict(json.loads(told))


def openvino(runs: Path, networks: Sequence[str]) -> dict[str, float]:
    """Plans made for OpenVINO, and the ratios that their results tell, all of one interleaved run each."""
    found, planned = dict[str, float](), []
    for name in networks:
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


def tensorrt(runs: Path, networks: Sequence[str]) -> dict[str, float]:
    """Plans made for ONNX Runtime, adapted: the share of their int8 layers that OpenVINO runs in int8, and whether NVIDIA's rules hold."""
    from quantkit.runs.stored_plan import export_plan, read_plan
    from quantkit.runtimes import find_runtime
    from quantkit.verification.lint import lint_file

    found = dict[str, float]()
    for name in networks:
        plan = read_plan(stored(name, runs))
        exported = export_plan(plan, "tensorrt", runs / f"{name}.tensorrt.onnx", adapt=True)
        ran = find_runtime("tensorrt").read_executed(exported.file, plan.graph, exported.placement, {}, runs)
        weighted = sum(layer.weight is not None for layer in plan.graph.layers)
        found[f"tensorrt.{name}.as_planned_in_openvino"] = 1 - len(ran.mismatches) / weighted
        found[f"tensorrt.{name}.lint_errors"] = lint_file(exported.file, "tensorrt").count("error")
    return found


def forms(runs: Path, networks: Sequence[str]) -> dict[str, float]:
    """Uniform plans under each way to store weights, rounded as a search rounds them: kB, and divergence from float on the search split."""
    found = dict[str, float]()
    for name in networks:
        folder = runs / f"{name}.forms"
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--minimize", "bytes", "--json"]
        if not (folder / "result.json").exists():
            subprocess.run([*command, "--schemes", ",".join(FORMS), "--run", str(folder)], check=False, stdout=subprocess.DEVNULL)
        for line in (folder / "measured.jsonl").read_text().splitlines():
            record = json.loads(line)
            schemes = set(record["allocation"].values()) - {"w8a8"} or {"w8a8"}  # what has no weights takes w8a8
            if len(schemes) == 1:
                label = f"forms.{name}.{schemes.pop()}"
                found |= {f"{label}.kb": record["look"]["bytes"] / 1e3, f"{label}.kl": record["look"]["divergence"]}
    return found


def emit(runs: Path, _networks: Sequence[str]) -> dict[str, float]:
    from quantkit.gating.examine import examine
    from quantkit.runs.stored_plan import export_plan, read_plan

    folder = stored("mobilenet_v2", runs)
    start = time.perf_counter()
    export_plan(read_plan(folder), "ort-cpu", runs / "again.onnx")
    examine(folder, float_file=None, check=None, threads=1, batch_size=32, seed=0)
    return {"mobilenet_v2.emit_and_verify_seconds": time.perf_counter() - start}


PARTS: dict[str, Callable[[Path, Sequence[str]], dict[str, float]]] = {
    "narrow": narrow, "openvino": openvino, "tensorrt": tensorrt, "emit": emit, "zoo": zoo, "fuzz": fuzz, "forms": forms,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="of openvino, tensorrt and forms")
    parser.add_argument("--runs", type=Path, default=run_folder("targets", "targets.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "targets.json")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    known = known_figures(arguments.output)
    for place, part in enumerate(arguments.only, 1):
        known |= PARTS[part](arguments.runs, arguments.networks)
        whole = place == len(arguments.only) and set(arguments.only) >= set(PARTS) - {"forms"}
        write_figures(arguments.output, "targets.json", known, whole=whole)
    for key, value in known.items():
        print(f"{key:45s} {value:.4g}")


if __name__ == "__main__":
    main()
