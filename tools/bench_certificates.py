"""What predictions are worth: the certificates of four recipes' allocations; writes docs/results/certificates.json.

    python tools/bench_certificates.py                                       # `kl` and `augmented`, for bytes: an hour
    python tools/bench_certificates.py --sensitivities kl --minimize latency --networks resnet44

Each figure is of 40 plans near the chosen one that the predictor never saw. `additive` is the same predictor fitted without interactions.
Bytes tell more plans apart than milliseconds: where the fastest plan is int8 throughout, hardly another one takes as long. Runs are kept
in --runs and go on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("squeezenet1_1", "mobilenet_v2", "resnet44", "minilm_sst2")


def certified(name: str, sensitivity: str, minimize: str, folder: Path) -> dict[str, float]:
    """The figures of one allocation, made if it is not there; none where the plan has nothing to be tested against."""
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "quantkit", "allocate", str(ROOT / "recipes" / f"{name}.py"), "--run", str(folder), "--json"]
        subprocess.run([*command, "--sensitivity", sensitivity, "--minimize", minimize], check=False, stdout=subprocess.DEVNULL)
    certificate = json.loads((folder / "result.json").read_text())["certificate"]
    if certificate is None:
        return {}
    found = {f"{kind}_{of}": certificate[kind][of] for kind in ("fitted", "additive", "prior") for of in ("spearman", "r2")}
    found |= {"spearman": certificate["fitted"]["spearman"], "beyond_additive": certificate["beyond_additive"], "band": certificate["band"]}
    label = ".".join([name, *(word for word in (minimize, sensitivity) if word not in ("bytes", "kl")), "certificate"])
    return {f"{label}.{key}": value for key, value in found.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sensitivities", nargs="+", default=["kl", "augmented"])
    parser.add_argument("--minimize", nargs="+", default=["bytes"], choices=["bytes", "latency"])
    parser.add_argument("--runs", type=Path, default=run_folder("certificates", "certificates.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "certificates.json")
    arguments = parser.parse_args()
    known = known_figures(arguments.output)
    asked = list(itertools.product(arguments.sensitivities, arguments.minimize, arguments.networks))
    everything = list(itertools.product(("kl", "augmented"), ("bytes",), NETWORKS))
    for place, (sensitivity, minimize, name) in enumerate(asked, 1):
        known |= certified(name, sensitivity, minimize, arguments.runs / f"{name}.{minimize}.{sensitivity}")
        whole = place == len(asked) and set(asked) >= set(everything)
        write_figures(arguments.output, "certificates.json", known, whole=whole)
    for key, value in known.items():
        print(f"{key:55s} {value:.4g}")


if __name__ == "__main__":
    main()
