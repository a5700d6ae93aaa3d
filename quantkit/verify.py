"""The file that ships, held against the plan: executed precision, parity with the simulation, latency and baselines side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantkit.affine import dequantize
from quantkit.capture import Captured
from quantkit.data import Subset, bind
from quantkit.evaluation import feeds, open_session
from quantkit.export.executed import Executed, read_executed
from quantkit.export.qdq import Emitted
from quantkit.export.watch import expose
from quantkit.graph import Graph
from quantkit.latency.timing import Feeds, interleave, rounds_within
from quantkit.metric import Metric, Outputs
from quantkit.quantization import WeightBank
from quantkit.simulation import Simulation
from quantkit.statistics import Verdict, decide, ratio_interval
from quantkit.targets.placement import Placement

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


@dataclass(frozen=True, slots=True)
class Parity:
    """Simulation against the file: shares of items with equal top-1 and with equal bits; of layers whose codes equal given the file's inputs."""

    agreement: float
    exact: float
    layers_exact: float


def judge(metric: Metric, reference: Outputs, outputs: Outputs, labels: Any, budget: float, seed: int) -> Verdict:
    """The paired verdict of `outputs` against the float file's `reference` on the same items."""
    truth = reference if metric.reference == "float" else labels
    count = len(outputs[0])
    per_item = (metric.per_item(reference, truth), metric.per_item(outputs, truth)) if metric.per_item else None
    return decide(
        float_score=lambda index: metric.score(reference, truth, index),
        quantized_score=lambda index: metric.score(outputs, truth, index),
        n=count,
        budget=budget,
        higher_is_better=metric.higher_is_better,
        per_item=per_item,
        seed=seed,
    )


def time_files(files: Sequence[Path], example: Feeds, threads: int, options: Mapping[str, str]) -> tuple[Latency, ...]:
    """The latency of every file against the first, all interleaved in one run."""
    sessions = [open_session(path, threads=threads, options=options) for path in files]
    rounds = rounds_within(sessions[0], example, LATENCY_SECONDS / len(files))
    times = interleave(sessions, example, rounds=rounds)
    batch = len(next(iter(example.values())))
    base = float(np.median(times[0]))
    found = []
    for row in times:
        ratio, low, high = ratio_interval(row, times[0]) if row is not times[0] else (1.0, 1.0, 1.0)
        found.append(Latency(base, float(np.median(row)), ratio, low, high, threads, batch))
    return tuple(found)


def executed(path: Path, graph: Graph, placement: Placement, options: Mapping[str, str], folder: Path) -> Executed:
    """What the runtime runs of `path`, read from the graph that it optimised for this host."""
    optimized = folder / "optimized.onnx"
    open_session(path, threads=1, options=options, optimized=optimized)
    return read_executed(optimized, graph, placement)


def int8_share(graph: Graph, found: Executed) -> float:
    """The share of multiply-accumulates that run in int8."""
    total = sum(layer.macs for layer in graph.layers)
    return sum(layer.macs for layer in graph.layers if found.precisions.get(layer.name) == "int8") / total if total else 0.0


def compare_simulation(
    captured: Captured,
    placement: Placement,
    bank: WeightBank,
    path: Path,
    emitted: Emitted,
    subset: Subset,
    batch_size: int,
    folder: Path,
    advance: Callable[[int], None],
) -> Parity:
    """Run the simulation and the file, with its codes exposed, over `subset`."""
    watched = folder / "watched.onnx"
    expose(path, [*emitted.inputs.values(), *emitted.outputs.values()], watched)
    session = open_session(watched, threads=0)
    names = [output.name for output in session.handle.get_outputs()]
    simulation = Simulation(captured, placement, bank)
    device = next(iter(captured.module.parameters())).device if list(captured.module.parameters()) else torch.device("cpu")
    unequal: set[str] = set()
    same_top, same_bits, count = 0, 0, 0
    for batch in subset.batches(session.batch or batch_size):
        values = dict(zip(names, session.run(feeds(batch, session.input_names)), strict=True))
        inputs = {name: tensor.to(device) for name, tensor in bind(batch.inputs, captured.graph.inputs).items()}
        simulated = [output.cpu().numpy() for output in simulation.run(inputs)["output"]]
        files = [values[name] for name in captured.graph.outputs]
        same_bits += int(np.all([_rows_equal(a, b) for a, b in zip(simulated, files, strict=True)], axis=0).sum())
        same_top += int((_top(simulated[0]) == _top(files[0])).sum())
        unequal |= _unequal_layers(captured.graph, placement, bank, simulation, emitted, values)
        count += batch.size
        advance(batch.size)
    layers = len(placement.schemes)
    return Parity(same_top / count, same_bits / count, 1.0 - len(unequal) / layers if layers else 1.0)


def _unequal_layers(
    graph: Graph, placement: Placement, bank: WeightBank, simulation: Simulation, emitted: Emitted, values: Mapping[str, np.ndarray]
) -> set[str]:
    found = set()
    for layer in graph.layers:
        if layer.name not in placement.schemes:
            continue
        real = [
            dequantize(torch.from_numpy(values[emitted.inputs[layer.name, slot]]).float(), bank.input_qparams(layer, slot))
            for slot in range(len(layer.inputs))
        ]
        ours = simulation.layer_output(layer, real)
        theirs = torch.from_numpy(values[emitted.outputs[layer.name]])
        if layer.name in placement.outputs:
            theirs = dequantize(theirs.float(), bank.output_qparams(layer))
        if not torch.equal(ours, theirs):
            found.add(layer.name)
    return found


def _rows_equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other).reshape(len(one), -1).all(axis=1)


def _top(outputs: np.ndarray) -> np.ndarray:
    """Top-1 along the last axis, one row an item (all positions of a token output must agree, so they are one value)."""
    best = outputs.reshape(len(outputs), -1) if outputs.ndim == 1 else outputs.argmax(axis=-1).reshape(len(outputs), -1)
    return np.array([hash(row.tobytes()) for row in best]) if best.shape[1] > 1 else best[:, 0]

