"""The file that ships, compared with the plan: executed precision, verdict, latency and baselines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.allocation.costs.timing import interleave, rounds_within
from quantkit.core.graph import Graph
from quantkit.core.metric import Metric, Outputs
from quantkit.core.ratios import ratio_interval
from quantkit.core.statistics import Verdict, decide
from quantkit.export.executed_layers import Executed
from quantkit.runtimes import Feeds, Runtime, Session
from quantkit.runtimes.timing import Timing
from quantkit.verification.sittings import TimedFile, interval_to_first, median_ms, time_in_sittings

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
    """The latency of every file against the first, all interleaved in one sitting of LATENCY_SECONDS."""
    times = interleave(sessions, example, rounds=rounds_within(sessions[0], example, LATENCY_SECONDS / len(sessions)))
    batch = len(next(iter(example.values())))
    base, *medians = (float(median) for median in np.median(times, axis=1))
    rows = zip((base, *medians), times, strict=True)
    return tuple(Latency(base, median, *ratio_interval(row, times[0]), sessions[0].threads, batch) for median, row in rows)


def time_files(runtime: Runtime, files: Sequence[TimedFile], example: Feeds, threads: int) -> tuple[Latency, ...]:
    """The latency of every file against the first, over sittings of LATENCY_SECONDS together: as sure as sittings differ."""
    sittings = time_in_sittings(runtime, files, example, threads=threads, seconds=LATENCY_SECONDS)
    base, batch = median_ms(sittings, 0), len(next(iter(example.values())))
    return tuple(
        Latency(base, median_ms(sittings, place), *interval_to_first(sittings, place), threads, batch) for place in range(len(files))
    )


def time_in_turn(paths: Sequence[Path], _: Path, timing: Timing) -> tuple[Latency, ...]:
    """A task of a `Device`: as `time_sessions`."""
    return time_sessions([timing.open(path) for path in paths], timing.feeds)


def time_apart(paths: Sequence[Path], _: Path, job: tuple[Timing, Sequence[TimedFile]]) -> tuple[Latency, ...]:
    """A task of a `Device`: as `time_files`, each file with its own options."""
    timing, files = job
    there = [replace(file, path=path) for file, path in zip(files, paths, strict=True)]
    return time_files(timing.runtime, there, timing.feeds, timing.threads)


def int8_share(graph: Graph, found: Executed) -> float:
    """The share of multiply-accumulates that run in int8."""
    total = sum(layer.macs for layer in graph.layers)
    return sum(layer.macs for layer in graph.layers if found.precisions.get(layer.name) == "int8") / total if total else 0.0
