"""Perturbed forward passes: what changing one group alone, or two, does to the network's outputs.

Per batch: one cached float pass, then for each perturbation only what lies behind the changed group is run again, bit-equal to a whole
pass. Memory is one batch of activations, twice (three times for pairs); the size of the batches bounds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.graph import Graph, Group, Layer, Pair
from quantkit.core.spec import FLOAT, Scheme
from quantkit.data.batch import Batch, of_tokens
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import Environment, Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.sensitivity.passes.changes import input_change, weight_changes
from quantkit.sensitivity.passes.float_forward import Interior, Operation
from quantkit.sensitivity.passes.outputs import Measure, Outputs, unpadded
from quantkit.targets.placement import Placement

FLOAT_PLACEMENT = Placement({}, frozenset(), frozenset(), {})


@dataclass(frozen=True, slots=True, eq=False)
class Perturbed:
    """`rows` names what is changed in each run; `outputs(base, first, counted)` yields what comes out, in that order.

    `base` is what the float network `plain` makes of a batch whose first item is number `first` of all; `counted` tells its padding.
    """

    rows: tuple[tuple[Pair, ...], ...]
    plain: Simulation
    outputs: Callable[[Environment, int, Tensor | None], Iterator[Outputs]]

    def displace(self, batches: Iterable[Batch], measure: Measure) -> Iterator[NDArray[np.floating]]:
        """`measure` of every row, one array of shape [rows, items, coordinates] for each batch."""
        first = 0
        for batch in batches:
            yield self._displaced(batch, first, measure)
            first += batch.size

    def _displaced(self, batch: Batch, first: int, measure: Measure) -> NDArray[np.floating]:
        base = self.plain.run(batch.inputs)  # held no longer than this call: the next batch finds the room
        counted = batch.counted
        coordinates = measure(unpadded(base["output"], counted))
        rows = [coordinates(unpadded(outputs, counted)).cpu().numpy() for outputs in self.outputs(base, first, counted)]
        return np.stack(rows) if rows else np.zeros((0, batch.size, 1), np.float32)

    def means(self, batches: Iterable[Batch], measure: Measure) -> dict[tuple[Pair, ...], float]:
        """The mean over items and, where a row is run more than once, over its runs, of a `measure` that is one coordinate."""
        return means(self.rows, self.displace(batches, measure))


def means(rows: Sequence[tuple[Pair, ...]], displaced: Iterable[NDArray[np.floating]]) -> dict[tuple[Pair, ...], float]:
    """By row, the mean of the one coordinate over the items of all batches, and over the runs that are the same row."""
    values = np.concatenate(list(displaced), axis=1)[:, :, 0].mean(axis=1, dtype=np.float64)
    runs: dict[tuple[Pair, ...], list[float]] = {}
    for row, value in zip(rows, values.tolist(), strict=True):
        runs.setdefault(row, []).append(value)
    return {row: sum(found) / len(found) for row, found in runs.items()}


def quantizable(groups: Iterable[Group]) -> tuple[Pair, ...]:
    """Every (group, scheme) but fp32."""
    return tuple((group.name, scheme) for group in groups for scheme in group.schemes if scheme != FLOAT)


def alone(captured: Captured, groups: Sequence[Group], target: ModuleType, bank: WeightBank) -> Perturbed:
    """Each (group, scheme) quantized alone: its weights, what its layers read, and codes that they give and no layer reads."""
    placements, nodes = _isolated(captured.graph, groups, target), _nodes(captured.graph, groups)
    simulations = {pair: Simulation(captured, placement, bank) for pair, placement in placements.items()}

    def outputs(base: Environment, first: int, counted: Tensor | None) -> Iterator[Outputs]:  # noqa: ARG001 - nothing here is drawn
        for (group, _), simulation in simulations.items():
            yield simulation.rerun(base, nodes[group])["output"]

    return Perturbed(tuple((pair,) for pair in placements), _plain(captured, bank), outputs)


def in_pairs(captured: Captured, groups: Sequence[Group], target: ModuleType, bank: WeightBank) -> Perturbed:
    """Each (group, scheme) alone, and each with every (group, scheme) of the groups after it, both quantized.

    The second of two is run again from the first's own pass, so groups are best in the order of the graph.
    """
    placements, nodes = _isolated(captured.graph, groups, target), _nodes(captured.graph, groups)
    both = {
        (one, other): Simulation(captured, _together(placements[one], placements[other]), bank)
        for one, other in combinations(placements, 2)
        if one[0] != other[0]
    }
    single = {pair: Simulation(captured, placement, bank) for pair, placement in placements.items()}

    def outputs(base: Environment, first: int, counted: Tensor | None) -> Iterator[Outputs]:  # noqa: ARG001 - nothing here is drawn
        for one, simulation in single.items():
            moved = simulation.rerun(base, nodes[one[0]])
            yield moved["output"]
            for other in placements:
                if (one, other) in both:
                    yield both[one, other].rerun(moved, nodes[other[0]])["output"]

    rows = [row for one in placements for row in ((one,), *((one, other) for other in placements if (one, other) in both))]
    return Perturbed(tuple(rows), _plain(captured, bank), outputs)


def noisy(captured: Captured, groups: Sequence[Group], bank: WeightBank, repeats: int, seed: int) -> Perturbed:
    """Each (group, scheme) in float, with Gaussian noise as large as its rounding errors: `repeats` runs each.

    The noise of a weight has the standard deviation of each output channel's error, that of an input the deviation of each item's error.
    Runs of one group draw the same noise for every scheme, so that schemes differ by its size alone.
    """
    nodes = _nodes(captured.graph, groups)
    runs = [(group, scheme, n) for group in groups for _, scheme in quantizable([group]) for n in range(repeats)]

    def outputs(base: Environment, first: int, counted: Tensor | None) -> Iterator[Outputs]:
        for group, scheme, repeat in runs:
            weights = _noisy_weights(captured.graph, bank, group, scheme, (seed, repeat))
            meet = _meeting(bank, group, scheme, weights, (seed, repeat), first, counted)
            with torch.no_grad():
                yield Interior(captured, meet).rerun(base, nodes[group.name])

    return Perturbed(tuple(((group.name, scheme),) for group, scheme, _ in runs), _plain(captured, bank), outputs)


def _plain(captured: Captured, bank: WeightBank) -> Simulation:
    return Simulation(captured, FLOAT_PLACEMENT, bank)


def _isolated(graph: Graph, groups: Sequence[Group], target: ModuleType) -> dict[Pair, Placement]:
    by_name = {group.name: group for group in groups}
    return {(name, scheme): target.isolate(graph, by_name[name].layers, scheme) for name, scheme in quantizable(groups)}


def _nodes(graph: Graph, groups: Sequence[Group]) -> dict[str, list[str]]:
    return {group.name: [graph.layer(name).node for name in group.layers] for group in groups}


def _together(one: Placement, other: Placement) -> Placement:
    """What either places; isolated groups share no layer."""
    pairs = {field.name: (getattr(one, field.name), getattr(other, field.name)) for field in fields(Placement)}
    return Placement(**{name: b if a is None else a if b is None else a | b for name, (a, b) in pairs.items()})


def _noisy_weights(graph: Graph, bank: WeightBank, group: Group, scheme: Scheme, seed: tuple[int, int]) -> dict[str, Tensor]:
    found = {}
    for name, change in weight_changes(graph, bank, group, scheme).items():
        deviation = change.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *[1] * (change.dim() - 1))
        found[name] = bank.parameter(name).detach() + deviation * _normal(change, *seed, name)
    return found


def _meeting(
    bank: WeightBank,
    group: Group,
    scheme: Scheme,
    weights: Mapping[str, Tensor],
    seed: tuple[int, int],
    first: int,
    counted: Tensor | None,
) -> Callable[[Layer, tuple[Tensor, ...], Operation], Tensor]:
    def meet(layer: Layer, inputs: tuple[Tensor, ...], operation: Operation) -> Tensor:
        if layer.name not in group.layers:
            return operation(inputs)
        moved = []
        for slot, x in enumerate(inputs):
            change = input_change(bank, layer, slot, x, scheme)
            if change is not None:
                rows = [of_tokens(one[None], None if counted is None else counted[item : item + 1]) for item, one in enumerate(change)]
                deviation = torch.stack([one.square().mean().sqrt() for one in rows]).reshape(-1, *[1] * (x.dim() - 1))
                noise = [_normal(row, *seed, f"{layer.name} {slot} {first + item}") for item, row in enumerate(x)]
                x = x + deviation * torch.stack(noise)
            moved.append(x)
        return operation(moved, weights.get(layer.weight or ""))

    return meet


def _normal(like: Tensor, seed: int, repeat: int, name: str) -> Tensor:
    """Gaussian noise that depends on nothing but these."""
    digest = hashlib.sha256(f"{seed} {repeat} {name}".encode()).digest()
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))).to(like)
