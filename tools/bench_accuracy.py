"""What each bit-width holds, with weights rounded apart and in sequence; writes docs/results/accuracy.json.

    python tools/bench_accuracy.py                          # four networks, three seeds: about twelve minutes
    python tools/bench_accuracy.py --networks resnet20      # some of them
    python tools/bench_accuracy.py --targets nbit           # activations of 4 bits, on the modelled machine

Uniform plans, first and last layer among them, calibrated on the recipe's own items (160 or 256) of three split seeds: the exported file
over the gate split of each seed. `drop` is a mean over the seeds, `spread` the distance from the least to the most; `apart` is of the same
plan with every layer rounded by itself (`--effort fast` searches with those), `best` of the one rounded in sequence by AdaRound, as
`--effort best` rounds the plan that ships at last (BEST alone: it takes five times as long).

Needs the data and weights that the recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from known import known_figures, run_folder, write_figures

from quantkit import pipeline
from quantkit.core.metric import divergence
from quantkit.core.progress import Silent
from quantkit.core.spec import parse_scheme
from quantkit.runtimes.evaluation import evaluate
from quantkit.settings.arguments import Arguments
from quantkit.settings.request import resolve
from quantkit.stages.effort import BEST as ADAROUND
from quantkit.stages.groups import find_groups
from quantkit.stages.ranges import calibrate_ranges
from quantkit.stages.sequence import in_sequence, items_for
from quantkit.stages.weights import prepare_candidates

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2")
SCHEMES = {"ort-cpu": ("w8a8", "w6a8", "w4a8", "c4a8", "w3a8", "c3a8", "c2a8"), "nbit": ("w8a4", "w4a4")}
BEST = ("w4a8", "c2a8", "w4a4")
SEEDS = (0, 1, 2)


def measured(name: str, seed: int, folder: Path, target: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """By scheme and way of rounding: points lost, items answered alike in percent, mean divergence."""
    arguments = Arguments(run=folder / f"{name}-{seed}-{target}", target=target, schemes=(*SCHEMES[target], "fp32"), split_seed=seed)
    request = resolve(ROOT / "recipes" / f"{name}.py", arguments, promised=False)
    with pipeline._begun(request, Silent(), "measure", "accuracy") as (bench, request, network, scratch):
        groups = find_groups(network.captured.graph, request.options)
        apart = prepare_candidates(bench, request, network, groups, calibrate_ranges(bench, request, network), scratch)
        items = items_for(request, network)
        ways = {"apart": apart}
        for way, rounding in (("sequence", None), ("best", ADAROUND)):
            ways[way] = replace(apart, rounded=(in_sequence(bench, request, network, apart, items, None, rounding),))
        gate = request.splits.gate
        labels, before = gate.labels(), evaluate(apart.open(apart.float_file, threads=0), gate, 25)[0]
        for scheme in SCHEMES[target]:
            for way, candidates in ways.items():
                if way == "best" and scheme not in BEST:
                    continue
                after = evaluate(candidates.session(candidates.uniform(parse_scheme(scheme)), threads=0), gate, 25)[0]
                answers = before.argmax(axis=1), after.argmax(axis=1)
                yield scheme, way, {
                    "drop": 100 * float((answers[0] == labels).mean() - (answers[1] == labels).mean()),
                    "agreement": 100 * float((answers[0] == answers[1]).mean()),
                    "divergence": float(divergence((before,), (after,), "softmax")),
                }  # fmt: skip


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds, and how far the drops lie apart."""
    drops = [row["drop"] for row in rows]
    return {**{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}, "spread": max(drops) - min(drops)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--runs", type=Path, default=run_folder("accuracy", "accuracy.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "accuracy.json")
    arguments = parser.parse_args()
    every = set(arguments.networks) == set(NETWORKS) and set(arguments.targets) == set(SCHEMES)
    figures: dict[str, Any] = {} if every else known_figures(arguments.output)
    for name in arguments.networks:
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for seed, target in product(SEEDS, arguments.targets):
            for scheme, way, row in measured(name, seed, arguments.runs, target):
                found.setdefault((scheme, way), []).append(row)
        for (scheme, way), rows in found.items():
            told = summary(rows)
            print(f"{name:14s} {scheme} {way:9s}", {key: round(value, 3) for key, value in told.items()}, flush=True)
            figures |= {f"{name}.{scheme}{'' if way == 'sequence' else f'.{way}'}.{key}": value for key, value in told.items()}
        figures["seeds"] = len(SEEDS)
        write_figures(arguments.output, "accuracy.json", figures, whole=every and name == arguments.networks[-1])


if __name__ == "__main__":
    main()
