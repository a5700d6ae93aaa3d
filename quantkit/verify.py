"""The file that ships, held against the plan: executed precision, parity with the simulation, latency and baselines side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.affine import QParams, dequantize
from quantkit.blocked import find_block
from quantkit.capture import Captured
from quantkit.data import Subset
from quantkit.evaluation import Feeds, Session, convolve_in_runtime, feeds, open_session
from quantkit.export.executed import Executed
from quantkit.export.qdq import Emitted
from quantkit.export.watch import expose
from quantkit.graph import Graph
from quantkit.latency.timing import interleave, rounds_within
from quantkit.metric import Metric, Outputs
from quantkit.passes.batches import network_batches
from quantkit.quantization import WeightBank
from quantkit.simulation import Simulation
from quantkit.statistics import Verdict, decide, ratio_interval
from quantkit.targets.placement import Placement

LATENCY_SECONDS = 8.0
PARITY_BATCH = 8  # float64 sums and every layer's codes at once: 32 images of MobileNetV2 took over 4 GB


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
    """Simulation against the file: shares of items with equal top-1 and with equal bits, and of quantized layers whose output is
    the file's, given the file's own input codes (None where the runtime shows no codes).
    """

    agreement: float
    exact: float
    layers_exact: float | None


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


def time_sessions(sessions: Sequence[Session], example: Feeds) -> tuple[Latency, ...]:
    """The latency of every file against the first, all interleaved in one run."""
    rounds = rounds_within(sessions[0], example, LATENCY_SECONDS / len(sessions))
    times = interleave(sessions, example, rounds=rounds)
    batch = len(next(iter(example.values())))
    base, *medians = (float(median) for median in np.median(times, axis=1))
    rows = zip((base, *medians), times, strict=True)
    return tuple(Latency(base, median, *ratio_interval(row, times[0]), sessions[0].threads, batch) for median, row in rows)


def int8_share(graph: Graph, found: Executed) -> float:
    """The share of multiply-accumulates that run in int8."""
    total = sum(layer.macs for layer in graph.layers)
    return sum(layer.macs for layer in graph.layers if found.precisions.get(layer.name) == "int8") / total if total else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """What a simulation is made of."""

    captured: Captured
    placement: Placement
    bank: WeightBank


def compare_outputs(simulated: Simulated, session: Session, subset: Subset, batch_size: int, advance: Callable[[int], None]) -> Parity:
    """Run the simulation and the file as it is over `subset`, both on the CPU, and compare what they answer."""
    simulation = Simulation(simulated.captured, simulated.placement, simulated.bank, precise=True)
    graph, same_top, same_bits = simulated.captured.graph, [], []
    for batch in network_batches(graph, subset, min(batch_size, PARITY_BATCH)):
        theirs = session.run(feeds(batch, session.input_names))
        ours = [one.numpy() for one in simulation.run(batch.inputs)["output"]]
        same_bits.append(np.all([_equal(one, other) for one, other in zip(ours, theirs, strict=True)], axis=0))
        same_top.append(_equal(_best(ours[0]), _best(theirs[0])))
        advance(batch.size)
    agreement, bits = (float(np.concatenate(rows)[: len(subset)].mean()) for rows in (same_top, same_bits))
    return Parity(agreement, bits, None)


def compare_simulation(
    simulated: Simulated,
    path: Path,
    emitted: Emitted,
    subset: Subset,
    batch_size: int,
    folder: Path,
    advance: Callable[[int], None],
) -> Parity:
    """Run the simulation and the file, with its codes exposed, over `subset`, both on the CPU."""
    watched = folder / "watched.onnx"
    expose(path, [*emitted.inputs.values(), *emitted.outputs.values()], watched)
    session = open_session(watched, threads=0)
    names = [output.name for output in session.handle.get_outputs()]
    block = find_block(convolve_in_runtime)
    captured, placement, bank = simulated.captured, simulated.placement, simulated.bank
    graph, simulation = captured.graph, Simulation(captured, placement, bank, precise=True, block=block)
    unequal: set[str] = set()
    same_top, same_bits = [], []
    for batch in network_batches(graph, subset, min(batch_size, PARITY_BATCH)):
        values = dict(zip(names, session.run(feeds(batch, session.input_names)), strict=True))
        pairs = [(one.numpy(), values[name]) for one, name in zip(simulation.run(batch.inputs)["output"], graph.outputs, strict=True)]
        same_bits.append(np.all([_equal(one, other) for one, other in pairs], axis=0))
        same_top.append(_equal(_best(pairs[0][0]), _best(pairs[0][1])))
        unequal |= _unequal_layers(graph, placement, bank, simulation, emitted, values)
        advance(batch.size)
    layers = len(placement.schemes)
    exact = 1.0 - len(unequal) / layers if layers else 1.0
    agreement, bits = (float(np.concatenate(rows)[: len(subset)].mean()) for rows in (same_top, same_bits))  # without what fills a batch
    return Parity(agreement, bits, exact)


def _unequal_layers(
    graph: Graph,
    placement: Placement,
    bank: WeightBank,
    simulation: Simulation,
    emitted: Emitted,
    values: Mapping[str, NDArray[np.generic]],
) -> set[str]:
    """The layers whose simulated output, given the file's own input codes, is not the file's."""

    def real(name: str, qparams: QParams | None) -> Tensor:
        tensor = torch.from_numpy(values[name])
        return tensor if qparams is None else dequantize(tensor.float(), qparams)

    found = set()
    for layer in graph.layers:
        if layer.name not in placement.schemes:
            continue
        slots = [slot for slot in range(len(layer.inputs)) if (layer.name, slot) in placement.inputs]
        if len(slots) < len(layer.inputs):
            continue  # an addition with one float branch: its sum has no codes to compare
        inputs = [real(emitted.inputs[layer.name, slot], bank.input_qparams(layer, slot)) for slot in slots]
        theirs = real(emitted.outputs[layer.name], bank.output_qparams(layer) if layer.name in placement.outputs else None)
        if not torch.equal(simulation.layer_output(layer, inputs), theirs):
            found.add(layer.name)
    return found


def _equal(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which items are equal in all their values."""
    return np.asarray((one == other).reshape(len(one), -1).all(axis=1))


def _best(outputs: NDArray[np.generic]) -> NDArray[np.intp]:
    """The top class of each item, or of each of its positions."""
    return outputs.argmax(axis=-1) if outputs.ndim > 1 else np.zeros(len(outputs), np.intp)
