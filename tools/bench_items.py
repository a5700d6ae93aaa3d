"""How many items a verdict needs, and how often it is wrong, on outputs of real networks; writes docs/results/items.json.

    python tools/bench_items.py                          # five networks: half an hour, mostly simulation
    python tools/bench_items.py --networks resnet20      # some of them

Outputs of plans of each recipe are kept in --runs. Items are then drawn from them again and again, and judged by counting and from margins
(`quantkit.core.statistics.decide`). Real labels are those of a few thousand items, whose own luck is as large as what is to be found, so
labels are drawn as well, from the float network's probabilities at the temperature that fits the real labels best: then the true drop of
a plan is known. On the real labels, estimate and count of all items are compared. `unlabelled` and `cross_fitting`: what more items would
give (`more_items.py`).

Needs the data and weights that the recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from known import known_figures, run_folder, write_figures
from more_items import UNLABELLED, cross_fitting, gain, with_unlabelled
from numpy.typing import NDArray

from quantkit.core.metrics import METRICS
from quantkit.core.near_ties import smoothed_drop
from quantkit.core.spec import parse_scheme
from quantkit.core.statistics import Verdict, decide

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = {
    "resnet20": ("w8a8", "w6a8", "w5a8", "w4a8"), "resnet44": ("w8a8", "w6a8", "w5a8", "w4a8"),
    "squeezenet1_1": ("w8a8", "w6a8", "w5a8"), "mobilenet_v2": ("w8a8", "w6a8"), "minilm_sst2": ("w8d8", "w6d8", "w4a32"),
}  # fmt: skip
MIXED = 4  # plans beside the uniform ones, of each network
MOST = 3.0  # points lost: a plan that loses more is decided by any items
ITEMS, DRAWS = 400, 300
SIZES = (50, 100, 200, 400, 800, 1600, 3200)
MORE_DRAWS = 100
POWER, POWER_DRAWS, MARGIN = 0.8, 60, 1.0  # kept in so many draws, where the budget is so many points above the true drop

Floats = NDArray[np.float64]


def outputs_of(name: str, folder: Path) -> Mapping[str, Floats]:
    """Scores of the float file and of each plan's over all labelled items of a recipe's search and gate splits, and the labels."""
    kept = folder / f"{name}.npz"
    if not kept.exists():
        from quantkit import pipeline
        from quantkit.core.progress import Silent
        from quantkit.runtimes.evaluation import evaluate
        from quantkit.settings.arguments import Arguments
        from quantkit.settings.request import resolve
        from quantkit.stages.groups import find_groups
        from quantkit.stages.ranges import calibrate_ranges
        from quantkit.stages.weights import prepare_candidates

        schemes = (*SCHEMES[name], "fp32")
        request = resolve(ROOT / "recipes" / f"{name}.py", Arguments(run=folder / name, schemes=schemes), promised=False)
        with pipeline._begun(request, Silent(), "measure", "items") as (bench, request, network, scratch):
            groups = find_groups(network.captured.graph, request.options)
            ranges = calibrate_ranges(bench, request, network)
            candidates = prepare_candidates(bench, request, network, groups, ranges, scratch)
            generator, plans = np.random.default_rng(0), {scheme: candidates.uniform(parse_scheme(scheme)) for scheme in SCHEMES[name]}
            first, low = plans[SCHEMES[name][0]], plans[SCHEMES[name][-1]]
            for place in range(MIXED):
                lowered = generator.random(len(groups)) < (place + 1) / (MIXED + 1)
                plans[f"mixed {place}"] = {g.name: (low if take else first)[g.name] for g, take in zip(groups, lowered, strict=True)}
            parts = (request.splits.search, request.splits.gate)
            sessions = {"float": candidates.open(candidates.float_file, threads=0)}
            sessions |= {key: candidates.session(plan, threads=0) for key, plan in plans.items()}
            found = {key: np.concatenate([evaluate(session, part, 25)[0] for part in parts]) for key, session in sessions.items()}
            found["labels"] = np.concatenate([part.labels() for part in parts])
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **found)
    with np.load(kept) as arrays:
        return {key: arrays[key] for key in arrays.files}


def probabilities(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """The softmax of the scores at the temperature under which the labels are likeliest."""

    def at(temperature: float) -> Floats:
        powers = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def surprise(temperature: float) -> float:
        return -float(np.log(at(temperature)[np.arange(len(labels)), labels] + 1e-300).mean())

    return at(min(np.linspace(0.2, 4.0, 77), key=surprise))


def judge(before: Floats, after: Floats, labels: NDArray[np.int64], budget: float, *, with_margins: bool) -> Verdict:
    """As every command judges top-1, or by counting alone."""
    top1 = METRICS["top1"]
    assert top1.per_item is not None and top1.margins is not None
    values = top1.per_item((before,), labels), top1.per_item((after,), labels)
    margins = top1.margins((before,), labels), top1.margins((after,), labels)
    assert margins[0] is not None and margins[1] is not None
    return decide(
        float_score=lambda index: float(values[0][index].mean()), quantized_score=lambda index: float(values[1][index].mean()),
        n=len(labels), budget=budget, higher_is_better=True, per_item=values,
        margins=(margins[0], margins[1]) if with_margins else None, resamples=50,
    )  # fmt: skip


class World:
    """Items of a network of which any number can be drawn, with labels drawn from `chances`; `after` are a plan's scores."""

    def __init__(self, before: Floats, after: Floats, chances: Floats, seed: int) -> None:
        self.before, self.after, self.sums = before, after, chances.cumsum(axis=1)
        rows = np.arange(len(before))
        self.drop = 100 * float((chances[rows, before.argmax(axis=1)] - chances[rows, after.argmax(axis=1)]).mean())
        self.generator = np.random.default_rng(seed)

    def draw(self, n: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Scores before and after, and labels, of `n` items."""
        items = self.generator.integers(0, len(self.before), n)
        labels = (self.sums[items] < self.generator.random(n)[:, None]).sum(axis=1)
        return self.before[items], self.after[items], np.minimum(labels, self.before.shape[1] - 1)


def error_rates(world: World) -> dict[str, float]:
    """How often a drop that equals the budget is called kept, and broken; nothing where there is none to lose."""
    if world.drop <= 0:
        return {}
    seen = [judge(*world.draw(ITEMS), world.drop, with_margins=True) for _ in range(DRAWS)]
    doubted = sum(verdict.counted_drop is None for verdict in seen) / DRAWS
    return {**{f"false_{word}": sum(v.decision == word for v in seen) / DRAWS for word in ("kept", "broken")}, "doubted": doubted}


def items_needed(world: World, *, with_margins: bool) -> float:
    """The items with which a drop MARGIN below the budget is called kept with a chance of POWER: between two SIZES by their logarithm."""
    before = (math.log(SIZES[0] / 2), 0.0)
    for n in SIZES:
        kept = [judge(*world.draw(n), max(world.drop, 0.0) + MARGIN, with_margins=with_margins).decision for _ in range(POWER_DRAWS)]
        power = kept.count("kept") / POWER_DRAWS
        if power >= POWER:
            share = (POWER - before[1]) / (power - before[1])
            return math.exp(before[0] + share * (math.log(n) - before[0]))
        before = (math.log(n), power)
    return math.inf


def more_items(world: World) -> dict[str, float]:
    """What unlabelled items and calibration items would give at ITEMS labelled ones."""
    rows, flips = [], []
    for _ in range(MORE_DRAWS):
        labelled = world.draw(ITEMS)
        rows.append(with_unlabelled(labelled, world.draw(UNLABELLED * ITEMS)[:2]))
        before, after, labels = labelled
        flips.append(np.count_nonzero((before.argmax(axis=1) == labels) != (after.argmax(axis=1) == labels)))
    estimates, differences = np.array(rows).T
    return {
        "unlabelled": gain(estimates, differences, float(np.mean(flips)), ITEMS),
        "cross_fitting": cross_fitting(world.drop / 100, float(estimates.var())),
    }


def needed_over_before(counted: float, estimated: float) -> float | None:
    """The share; of the most items, where counting needs more; None where neither is decided by so many."""
    return None if math.isinf(counted) and math.isinf(estimated) else min(estimated, 2 * SIZES[-1]) / min(counted, SIZES[-1])


def studied(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of each plan of one network."""
    labels, before = found["labels"].astype(np.int64), found["float"].astype(np.float64)
    chances, rows = probabilities(before, labels), {}
    for plan, after in found.items():
        if plan in ("labels", "float"):
            continue
        world = World(before, after.astype(np.float64), chances, len(rows))
        whole = judge(before, world.after, labels, 1.0, with_margins=True)
        if world.drop > MOST:
            continue
        needed = [items_needed(world, with_margins=way) for way in (False, True)]
        rows[plan] = {
            "drop": world.drop, **error_rates(world), **more_items(world),
            **{key: value if math.isfinite(value) else None for key, value in zip(("needed_counted", "needed"), needed, strict=True)},
            "needed_over_before": needed_over_before(*needed),
            "real_items": len(labels), "real_estimate": whole.drop, "real_count": whole.float - whole.quantized,
            "real_deviations": deviations(before, world.after, labels),
        }  # fmt: skip
        print(name, plan, {key: value if value is None else round(value, 3) for key, value in rows[plan].items()}, flush=True)
    return rows


def deviations(before: Floats, after: Floats, labels: NDArray[np.int64]) -> float | None:
    """Standard errors between estimate and count of all items, with the luck of the flips that were counted; None where it is in doubt."""
    top1 = METRICS["top1"]
    assert top1.per_item is not None and top1.margins is not None
    right = [top1.per_item((scores,), labels) > 0 for scores in (before, after)]
    margins = [top1.margins((scores,), labels) for scores in (before, after)]
    assert margins[0] is not None and margins[1] is not None
    smoothed = smoothed_drop(margins[0], margins[1], right[0], right[1])
    flips = right[0].astype(float) - right[1]
    return None if smoothed is None else float((smoothed.drop - flips.mean()) / math.sqrt(flips.var() / len(flips)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--runs", type=Path, default=run_folder("items", "items.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "items.json")
    arguments = parser.parse_args()
    known_figures(arguments.output)
    plans = {name: studied(name, outputs_of(name, arguments.runs)) for name in arguments.networks}
    figures = summary(plans)
    write_figures(arguments.output, "items.json", figures, whole=set(plans) == set(SCHEMES), plans=plans)
    for key, value in figures.items():
        print(f"{key:40s} {value:.4g}")


def summary(plans: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Over all networks, and of each."""
    rows = [row for network in plans.values() for row in network.values()]
    ratios = _shares(rows)
    found = {
        "networks": len(plans), "plans": len(rows), "undecided": len(rows) - len(ratios),
        "needed_over_before": float(np.median(ratios)), "needed_over_before_max": max(ratios),
        **{f"{key}_{name}": pick([row[key] for row in rows if key in row]) for key in ("false_kept", "false_broken", "doubted")
           for name, pick in (("max", max), ("mean", lambda values: float(np.mean(values))))},
        "real_deviations_max": max(abs(row["real_deviations"]) for row in rows if row["real_deviations"] is not None),
        "real_doubted": sum(row["real_deviations"] is None for row in rows),
        **{f"{key}_{name}": pick([row[key] for row in rows]) for key in ("unlabelled", "cross_fitting")
           for name, pick in (("median", lambda values: float(np.median(values))), ("min", min))},
        "items": ITEMS, "draws": DRAWS,
    }  # fmt: skip
    return found | {f"{name}.needed_over_before": float(np.median(_shares(network.values()))) for name, network in plans.items()}


def _shares(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    return [row["needed_over_before"] for row in rows if row["needed_over_before"] is not None]


if __name__ == "__main__":
    main()
