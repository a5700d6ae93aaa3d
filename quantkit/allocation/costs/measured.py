"""Measured latency of each (group, scheme), boundaries included, and the affine fit to whole-network runs.

Layers are timed where they run: the runtime's profile of the uniform files gives each layer's time, in its own layout and among its
neighbours. What is not a layer's own (Q/DQ, layout changes) is fitted over mixed plans as a price for each crossing of a change of
precision and one for each element that crosses. Sums of layers misstate whole networks, so predictions are
T = offset + slope · Σ layers + Σ boundaries, fitted on measured plans, most of which are nearly all int8, as the answers will be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from quantkit.allocation.costs.timing import WARM_UP, interleave
from quantkit.core.graph import Graph, Group
from quantkit.core.spec import Allocation, Scheme
from quantkit.core.table import Table
from quantkit.core.workers import Device
from quantkit.runtimes.timing import Timing
from quantkit.targets.common import uniform

PROFILE_RUNS = 30
PAIR_RUNS = 2 * (WARM_UP + 2 * PROFILE_RUNS)  # of two files in turn, each run behind one that is not timed
FIT_PLANS, TEST_PLANS = 10, 12
DRAWS = 20  # of a plan, until one is drawn that is none of the others


@dataclass(frozen=True, slots=True)
class Boundary:
    """A tensor between two groups: `latency_ms` is charged when exactly one of them is float."""

    producer: str
    consumer: str
    latency_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class LatencyModel:
    """`table` and `boundaries` in milliseconds, already scaled by the fit; a plan takes `offset_ms` + their sum.

    `rank_correlation` (Spearman) is over `tested` plans that the fit never saw, as (predicted, measured) milliseconds; nan where
    all of them are predicted alike.
    """

    table: Table
    boundaries: tuple[Boundary, ...]
    offset_ms: float
    rank_correlation: float
    tested: tuple[tuple[float, float], ...]

    def predicted_ms(self, allocation: Allocation) -> float:
        """Milliseconds of one inference under one scheme per group."""
        return self.offset_ms + self.table.total(allocation) + sum(_charged(edge, allocation) for edge in self.boundaries)

    def fit(self) -> dict[str, Any]:
        """How well whole plans were predicted, in JSON; `nan` becomes null."""
        correlation = None if math.isnan(self.rank_correlation) else self.rank_correlation
        return {"rank_correlation": correlation, "tested": [list(pair) for pair in self.tested]}

    def to_json(self) -> dict[str, Any]:
        """A JSON form; `nan` becomes null."""
        edges = [[edge.producer, edge.consumer, edge.latency_ms] for edge in self.boundaries]
        return {"table": self.table.to_json(), "boundaries": edges, "offset_ms": self.offset_ms, **self.fit()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyModel:
        """The inverse of `to_json`."""
        edges = tuple(Boundary(*row) for row in data["boundaries"])
        tested = tuple((row[0], row[1]) for row in data["tested"])
        correlation = math.nan if data["rank_correlation"] is None else data["rank_correlation"]
        return cls(Table.from_json(data["table"]), edges, data["offset_ms"], correlation, tested)


def measure_latency(
    graph: Graph,
    groups: Sequence[Group],
    schemes: Sequence[Scheme],
    written: Callable[[Allocation], AbstractContextManager[Path]],
    timing: Timing,
    *,
    device: Device,
    seed: int,
    advance: Callable[[int], None],
) -> LatencyModel:
    """Profile the uniform files, then fit and test on random plans, all on `device`. `written(allocation)` is a plan's file, while it is
    used; `advance` counts inferences, so many as `runs` says.
    """
    profiles = {}
    for scheme in schemes:
        with written(uniform(groups, scheme)) as file:
            profiles[scheme] = device.run(layer_ms, [file], (timing, graph))
        advance(PROFILE_RUNS)
    values = np.full((len(groups), len(schemes)), np.nan)
    for row, group in enumerate(groups):
        for column, scheme in enumerate(schemes):
            if scheme in group.schemes:
                values[row, column] = sum(profiles[scheme].get(name, 0.0) for name in group.layers)
    table = Table("latency", "ms", tuple(group.name for group in groups), tuple(schemes), values)
    edges = crossings(graph, groups)
    plans = spread_plans(groups, seed, 2 + FIT_PLANS + TEST_PLANS)
    return _fitted(table, edges, plans, _whole_ms(plans, written, timing, device, advance))


def _whole_ms(
    plans: Sequence[Allocation], written: Callable[[Allocation], AbstractContextManager[Path]], timing: Timing, device: Device,
    advance: Callable[[int], None],
) -> NDArray[np.float64]:  # fmt: skip
    """Milliseconds of each plan's file, by its ratio to the first plan's, with which it is timed in turn: what drifts between one file and
    the next drifts for that one too.
    """
    reference_ms, ratios = list[float](), list[float]()
    with written(plans[0]) as reference:
        for plan in plans:
            with nullcontext(reference) if plan == plans[0] else written(plan) as file:
                first, own = device.run(pair_ms, [reference, file], timing)
            reference_ms += first.tolist()
            ratios.append(float(np.median(own / first)))
            advance(PAIR_RUNS)
    return np.array(ratios) * np.median(reference_ms)


def layer_ms(paths: Sequence[Path], folder: Path, job: tuple[Timing, Graph]) -> dict[str, float]:
    """A task of a `Device`: the milliseconds of each layer's own nodes in one file."""
    timing, graph = job
    return timing.runtime.layer_ms(
        paths[0], graph, timing.feeds, threads=timing.threads, options=timing.options, runs=PROFILE_RUNS, folder=folder
    )  # fmt: skip


def pair_ms(paths: Sequence[Path], _: Path, timing: Timing) -> NDArray[np.float64]:
    """A task of a `Device`: milliseconds of one inference of each of two files, round by round, in turn."""
    return interleave([timing.open(path) for path in paths], timing.feeds, rounds=PROFILE_RUNS, settled=True)


def started(_: Sequence[Path], __: Path, timing: Timing) -> None:
    """A task of a `Device` that does nothing: what times is there then, with the runtime of `timing`."""


def runs(schemes: Sequence[Scheme]) -> int:
    """How many inferences `measure_latency` takes: of a file in turn with another more than four times those of a profiled one."""
    return len(schemes) * PROFILE_RUNS + (2 + FIT_PLANS + TEST_PLANS) * PAIR_RUNS


def crossings(graph: Graph, groups: Sequence[Group]) -> list[tuple[str, str, int]]:
    """(producer group, consumer group, elements) of each tensor between two groups."""
    group_of = {name: group.name for group in groups for name in group.layers}
    producers = {layer.output: layer for layer in graph.layers}
    found = []
    for layer in graph.layers:
        for tensor in layer.inputs:
            producer = producers.get(graph.source(tensor))
            if producer is not None and group_of[producer.name] != group_of[layer.name]:
                found.append((group_of[producer.name], group_of[layer.name], prod(producer.output_shape)))
    return found


def spread_plans(groups: Sequence[Group], seed: int, count: int) -> list[dict[str, Scheme]]:
    """So many plans to be timed: every group under the first of its menu, under the second, and random ones."""
    alike = [{g.name: g.schemes[min(place, len(g.schemes) - 1)] for g in groups} for place in (0, 1)]
    return [*alike, *random_plans(groups, seed, count - len(alike), alike)]


def random_plans(groups: Sequence[Group], seed: int, count: int, known: Sequence[Allocation] = ()) -> list[dict[str, Scheme]]:
    """Plans whose share of float layers varies from nearly none to nearly all, more of them near none; none of `known` if others exist."""
    generator = np.random.default_rng(seed)

    def drawn(group: Group, share: float) -> Scheme:
        floats, quantized = ([s for s in group.schemes if s.is_float == wanted] for wanted in (True, False))
        stays = floats and generator.random() < share
        return floats[0] if stays or not quantized else quantized[int(generator.integers(len(quantized)))]

    shares = generator.permutation(0.02 + 0.93 * np.linspace(0, 1, count) ** 2)
    plans: list[dict[str, Scheme]] = []
    for share in shares:
        tries = ({group.name: drawn(group, share) for group in groups} for _ in range(DRAWS))
        first = next(tries)
        plans.append(next((plan for plan in (first, *tries) if plan not in (*plans, *known)), first))
    return plans


def _fitted(table: Table, edges: Sequence[tuple[str, str, int]], plans: Sequence[Allocation], measured: np.ndarray) -> LatencyModel:
    """Least squares, no coefficient negative, relative to what was measured, on all plans but the last TEST_PLANS."""
    crossed = [[size for a, b, size in edges if plan[a].reads_float != plan[b].reads_float] for plan in plans]
    features = np.array([[1.0, table.total(plan), len(sizes), sum(sizes)] for plan, sizes in zip(plans, crossed, strict=True)])
    fit = slice(0, len(plans) - TEST_PLANS)
    scale = np.maximum(features[fit].max(axis=0), 1e-9)
    weights = 1 / measured[fit]
    found, _ = nnls(features[fit] / scale * weights[:, None], np.ones(len(weights)))
    offset, slope, each, element = found / scale
    predicted = features @ (found / scale)
    alike = np.ptp(predicted[-TEST_PLANS:]) == 0
    correlation = math.nan if alike else float(spearmanr(predicted[-TEST_PLANS:], measured[-TEST_PLANS:]).statistic)
    scaled = Table(table.name, table.unit, table.groups, table.schemes, table.values * slope)
    boundaries = tuple(Boundary(a, b, float(each + element * size)) for a, b, size in edges)
    tested = tuple((float(p), float(m)) for p, m in zip(predicted[-TEST_PLANS:], measured[-TEST_PLANS:], strict=True))
    return LatencyModel(scaled, boundaries, float(offset), correlation, tested)


def _charged(edge: Boundary, allocation: Allocation) -> float:
    return edge.latency_ms if allocation[edge.producer].reads_float != allocation[edge.consumer].reads_float else 0.0
