"""From the rows of tools/bench_sensitivity.py to figures: hypervolumes, ratios with intervals over seeds, the default left-one-out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t

from quantkit.allocation import hypervolume

COSTS = ("bytes", "latency")
Method = tuple[str, str]  # sensitivity, way: pareto or bisection


@dataclass(frozen=True, slots=True)
class Row:
    """One measured plan of one method: `spent` in the unit of `cost`, divergences in nats, drops in the metric's unit."""

    network: str
    seed: int
    method: str
    way: str
    cost: str
    place: int
    spent: float
    search_kl: float
    search_drop: float
    gate_kl: float
    gate_drop: float

    def loss(self, split: str) -> float:
        """The divergence on `search` or `gate`."""
        return self.search_kl if split == "search" else self.gate_kl


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """All figures that these rows allow."""
    figures = dict[str, float]()
    networks = sorted({row.network for row in rows})
    searched = {name: volumes(rows, name, "search") for name in networks}
    gated = {name: volumes(rows, name, "gate") for name in networks}
    for name in networks:
        figures[f"{name}.seeds"] = len({row.seed for row in rows if row.network == name})
        for method, values in sorted(gated[name].items()):
            figures |= interval(f"{name}.volume.{'.'.join(method)}", list(values.values()))
        for way in ("pareto", "bisection"):
            figures |= ratio(f"{name}.hypervolume.augmented_over_hessian.{way}", gated[name], ("augmented", way), ("hessian", way))
        claim = f"{name}.hypervolume.augmented_over_hessian"
        figures |= {key.replace(".pareto", ""): value for key, value in figures.items() if key.startswith(f"{claim}.pareto")}
        others = {other: searched[other] for other in networks if other != name}
        if others:
            default, best = chosen(others, set(gated[name])), max(gated[name], key=lambda method: mean(gated[name][method].values()))
            figures |= ratio(f"{name}.hypervolume.default_over_best_single", gated[name], default, best)
            print(f"{name}: default by the other networks {default}, its own best {best}")
    if networks:
        print("default over all:", chosen(searched, set.intersection(*(set(values) for values in gated.values()))))
    return figures


def ratios_of_times(timings: Mapping[tuple[str, int], Mapping[str, float]]) -> dict[str, float]:
    """By (network, seed) the processor seconds of each method: what all pairs cost over what isolated scores cost, and pairs one by one."""
    figures = dict[str, float]()
    for name in sorted({network for network, _ in timings}):
        mine = [seconds for (network, _), seconds in sorted(timings.items()) if network == name]
        for label, one, other in (
            ("interactions_over_isolated", "displacement", "kl"),
            ("pairs_over_interactions", "pairs", "displacement"),
        ):
            both = [seconds[one] / seconds[other] for seconds in mine if one in seconds and other in seconds]
            figures |= interval(f"{name}.seconds.{label}", both)
    return figures


def volumes(rows: Iterable[Row], network: str, split: str) -> dict[Method, dict[int, float]]:
    """The mean over both costs of each method's hypervolume, by seed."""
    mine = [row for row in rows if row.network == network]
    found: dict[Method, dict[int, float]] = {}
    for seed in sorted({row.seed for row in mine}):
        here = [row for row in mine if row.seed == seed]
        for method in sorted({(family(row.method), row.way) for row in here if row.way != "uniform"}):
            parts = [volume(here, method, cost, split) for cost in COSTS]
            found.setdefault(method, {})[seed] = mean(parts)
    return found


def family(method: str) -> str:
    """All random orderings are one method."""
    return "random" if method.startswith("random") else method


def volume(rows: Sequence[Row], method: Method, cost: str, split: str) -> float:
    """Of one method's plans under one cost; of random orderings the mean of each."""
    uniform = {row.method: row for row in rows if row.way == "uniform" and row.cost == cost}
    ideal = (0.0, uniform["w3a8"].spent)
    reference = (uniform["w4a8"].loss(split), uniform["w8a8"].spent)
    mine = [row for row in rows if (family(row.method), row.way, row.cost) == (*method, cost)]
    each = [[(row.loss(split), row.spent) for row in mine if row.method == name] for name in sorted({row.method for row in mine})]
    return mean(hypervolume(points, ideal, reference) for points in each)


def chosen(searched: Mapping[str, Mapping[Method, Mapping[int, float]]], possible: set[Method]) -> Method:
    """The method of the greatest mean, over networks, of its share of each network's greatest volume."""
    common = [method for method in possible if all(method in values for values in searched.values())]

    def worth(method: Method) -> float:
        return mean(mean(values[method].values()) / max(mean(v.values()) for v in values.values()) for values in searched.values())

    return max(sorted(common), key=worth)


def ratio(label: str, values: Mapping[Method, Mapping[int, float]], one: Method, other: Method) -> dict[str, float]:
    """The ratio of the two, seed by seed, with its interval; nothing where either was not tried."""
    if one not in values or other not in values:
        return {}
    seeds = sorted(values[one].keys() & values[other].keys())
    return interval(label, [values[one][seed] / values[other][seed] for seed in seeds if values[other][seed] > 0])


def interval(label: str, values: Sequence[float]) -> dict[str, float]:
    """The mean, and Student's 95 % interval of it; of one value no interval."""
    if len(values) < 2:
        return dict.fromkeys([label], values[0]) if values else {}
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return {label: mean(values), f"{label}.low": mean(values) - half, f"{label}.high": mean(values) + half}
