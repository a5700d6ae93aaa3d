"""Transformers against the one-line quantizers, on the files that ship; writes docs/results/transformers.json.

    python tools/bench_transformers.py                        # three split seeds each, and the zoo: an hour
    python tools/bench_transformers.py --seeds 0 --minimize latency --parts recipes
    python tools/bench_transformers.py --parts zoo            # twelve architectures in small, with random weights: six minutes
    python tools/bench_transformers.py --parts large blocks   # networks of 110 million parameters, random weights; single products

Drops are of gate items that no search saw, means over the split seeds; ratios are medians over the seeds, each from interleaved runs of one
process. `latency` promises 0.5 points, `bytes` 1.0; the decoder 2 % of its perplexity, at the fewest bytes of plans of at most 5 bits a
weight on average, with the effort `best`. The zoo says what is served, not how well: random weights mean nothing. Runs are kept in --runs
and go on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import block_products
import large_transformers
from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
DECODER = "stories260k"
JOBS = (("minilm_sst2", "latency"), ("minilm_sst2", "bytes"), ("minilm_stsb", "latency"), (DECODER, "bytes"))
NETWORKS = tuple(dict.fromkeys(name for name, _ in JOBS))
MAX_DROP = {"latency": "0.5", "bytes": "1.0"}
DECODER_OPTIONS = ("--max-drop", "2%", "--average-bits", "5", "--schemes", "w8a32,w7a32,w6a32,w5a32,w4a32,w3a32,fp32", "--effort", "best")
PARTS = ("recipes", "zoo", "large", "blocks")
SEEDS = (0, 1, 2)
RIVALS = {"dynamic": "onnxruntime quantize_dynamic", "static": "onnxruntime quantize_static", "uniform": "uniform w8a8"}


def allocated(name: str, minimize: str, seed: int, folder: Path) -> dict[str, Any]:
    """The result of one allocation, made if it is not there."""
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--run", str(folder), "--json"]
        command += ["--minimize", minimize, "--split-seed", str(seed)]
        command += DECODER_OPTIONS if name == DECODER else ["--max-drop", MAX_DROP[minimize]]
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
    for row in results if results[0]["variants"] else ():
        (decoder,) = row["variants"]
        found |= {
            "perplexity": row["verdict"]["float"],
            "perplexity_rise_percent": 100 * mean(one["verdict"]["drop"] / one["verdict"]["float"] for one in results),
            "average_weight_bits": mean(one["bounds"][0]["used"] for one in results),
            "tokens_per_s": 1000 / decoder["latency"]["quantized_ms"],
            "tokens_per_s_over_float": median(1 / one["variants"][0]["latency"]["ratio"] for one in results),
            "decoder_bytes_over_float": decoder["bytes_ratio"],
            "decoder_as_planned": float(decoder["as_planned"]),
            "decoder_layers_exact": decoder["layers_exact"],
        }
    if all(row["certificate"] for row in results):
        found["certificate_spearman"] = median(row["certificate"]["fitted"]["spearman"] for row in results)
    return found


def served(name: str, folder: Path) -> dict[str, float | str]:
    """What a whole job says of one network of the zoo, or why there is none. The budget is wide: random weights answer in near ties."""
    import quantkit

    sys.path.insert(0, str(ROOT / "tests"))
    import transformer_zoo as zoo

    file = folder / f"{zoo.file_name(name)}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = quantkit.allocate(
                zoo.source(name, folder), data=[quantkit.Batch(zoo.inputs(name))], metric="agreement", max_drop=20.0, certificate=0,
                minimize="bytes", run=folder / f"run-{zoo.file_name(name)}",
            ).to_json()  # fmt: skip
        except quantkit.QuantkitError as error:
            return {"reason": str(error)}
        file.write_text(json.dumps(result))
    found = json.loads(file.read_text())
    return {
        "as_planned": float(found["executed"]["as_planned"]),
        "layers_exact": found["simulation"]["layers_exact"],
        "int8_macs": found["executed"]["int8_macs"],
        "bytes_over_float": found["bytes"]["ratio"],
    }


def zoo_figures(folder: Path) -> dict[str, float]:
    """Of each network what it is, and how many are served: allocated by measured loss, and run as planned."""
    sys.path.insert(0, str(ROOT / "tests"))
    import transformer_zoo as zoo

    found: dict[str, float] = {}
    for name in zoo.NAMES:
        row = served(name, folder)
        print(f"{name}: {row}", flush=True)
        found |= {f"zoo.{zoo.file_name(name)}.{key}": value for key, value in row.items() if not isinstance(value, str)}
    planned = [value for key, value in found.items() if key.endswith(".as_planned")]
    return {**found, "zoo.named": float(len(zoo.NAMES)), "zoo.served": float(sum(planned))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--minimize", nargs="+", default=list(MAX_DROP), choices=list(MAX_DROP))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--large", nargs="+", default=list(large_transformers.LARGE), choices=list(large_transformers.LARGE))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=run_folder("transformers", "transformers.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "transformers.json")
    arguments = parser.parse_args()
    known = known_figures(arguments.output)
    chosen = [job for job in JOBS if job[0] in arguments.networks and job[1] in arguments.minimize and "recipes" in arguments.parts]
    if "zoo" in arguments.parts:
        known |= zoo_figures(arguments.runs / "zoo")
        write_figures(arguments.output, "transformers.json", known, whole=False)
    large = partial(large_transformers.figures, arguments.runs / "large", arguments.large)
    for part, measure in {"large": large, "blocks": block_products.figures}.items():
        if part in arguments.parts:
            known |= measure()
            write_figures(arguments.output, "transformers.json", known, whole=False)
    for place, (name, minimize) in enumerate(chosen, 1):
        rows = [allocated(name, minimize, seed, arguments.runs / f"{name}.{minimize}.{seed}") for seed in arguments.seeds]
        label = f"{name}.bytes" if name != DECODER and minimize == "bytes" else name
        known |= {f"{label}.{key}": value for key, value in figures(rows).items()}
        write_figures(arguments.output, "transformers.json", known, whole=len(chosen) == len(JOBS) and place == len(chosen))
    for key, value in known.items():
        print(f"{key:45s} {value:.4g}")


if __name__ == "__main__":
    main()
