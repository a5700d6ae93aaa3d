"""The file that ships, compared with the plan: executed precision, verdict, latency and baselines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.costs.timing import interleave, rounds_within
from quantkit.core.graph import Graph
from quantkit.core.metric import Metric, Outputs
from quantkit.core.ratios import ratio_interval
from quantkit.core.statistics import Verdict, decide
from quantkit.export.executed_layers import Executed
from quantkit.runtimes.evaluation import Feeds, Session

LATENCY_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one inference of both files and their ratio with a 95 % interval, from interleaved runs."""

    float_ms: float
    quantized_ms: float
    ratio: float
    low: float
    high: float
    threads: int
    batch: int


def judge(metric: Metric, reference: Outputs, outputs: Outputs, labels: Any, budget: float, seed: int) -> Verdict:
    """The paired verdict of `outputs` against the float file's `reference` on the same items.

    `labels`: for a metric that compares with the float file its answers, where not all of them count; else None.
    """
    truth = reference if metric.reference == "float" and labels is None else labels
    count = len(outputs[0])
    per_item = (metric.per_item(reference, truth), metric.per_item(outputs, truth)) if metric.per_item else None
    before, after = (metric.margins(outs, truth) if metric.margins else None for outs in (reference, outputs))
    return decide(
        float_score=metric.scorer(reference, truth),
        quantized_score=metric.scorer(outputs, truth),
        n=count,
        budget=budget,
        higher_is_better=metric.higher_is_better,
        per_item=per_item,
        margins=None if before is None or after is None else (before, after),
        seed=seed,
    )


def time_sessions(sessions: Sequence[Session], example: Feeds) -> tuple[Latency, ...]:
    """The latency of every file against the first, all interleaved in one run."""
    times = time_rounds(sessions, example)
    batch = len(next(iter(example.values())))
    base, *medians = (float(median) for median in np.median(times, axis=1))
    rows = zip((base, *medians), times, strict=True)
    return tuple(Latency(base, median, *ratio_interval(row, times[0]), sessions[0].threads, batch) for median, row in rows)


def time_rounds(sessions: Sequence[Session], example: Feeds) -> NDArray[np.float64]:
    """Milliseconds of one inference, shape [files, rounds], interleaved: as many rounds as fit into LATENCY_SECONDS."""
    return interleave(sessions, example, rounds=rounds_within(sessions[0], example, LATENCY_SECONDS / len(sessions)))


def int8_share(graph: Graph, found: Executed) -> float:
    """The share of multiply-accumulates that run in int8."""
    total = sum(layer.macs for layer in graph.layers)
    return sum(layer.macs for layer in graph.layers if found.precisions.get(layer.name) == "int8") / total if total else 0.0
