"""Perturbed forward passes: what quantizing one group alone does to the network's outputs, for every (group, scheme).

Per batch: one cached float pass, then for each pair only what lies behind the changed group is run again, bit-equal to a whole
pass. Memory is one batch of activations; `batch_size` bounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.capture import Captured
from quantkit.graph import Group
from quantkit.quantization import WeightBank
from quantkit.simulation import Simulation
from quantkit.spec import parse_scheme
from quantkit.targets.placement import Placement

FLOAT_PLACEMENT = Placement({}, frozenset(), frozenset(), {})


@dataclass(frozen=True, slots=True, eq=False)
class Displacements:
    """`values[k, n]`: how far the flattened outputs of item n move when pair k alone is quantized; `reference[n]`: the float outputs.

    `pairs[k]` is a (group, scheme). Shapes [pairs, items, outputs] and [items, outputs], float32.
    """

    pairs: tuple[tuple[str, str], ...]
    values: NDArray[np.float32]
    reference: NDArray[np.float32]


def displace(
    captured: Captured,
    groups: Sequence[Group],
    target: ModuleType,
    bank: WeightBank,
    batches: Iterable[Mapping[str, Tensor]],
    advance: Callable[[int], None],
) -> Displacements:
    """Displacements of every (group, scheme) but fp32; `advance(items)` after each batch."""
    pairs = tuple((group.name, scheme) for group in groups for scheme in group.schemes if not parse_scheme(scheme).is_float)
    by_name = {group.name: group for group in groups}
    simulations = [
        (Simulation(captured, target.isolate(captured.graph, by_name[group].layers, parse_scheme(scheme)), bank), by_name[group].layers)
        for group, scheme in pairs
    ]
    plain = Simulation(captured, FLOAT_PLACEMENT, bank)
    moved: list[NDArray[np.float32]] = []
    references: list[NDArray[np.float32]] = []
    for batch in batches:
        base = plain.run(batch)
        reference = _flat(base["output"])
        rows = []
        for simulation, layers in simulations:
            nodes = [captured.graph.layer(name).node for name in layers]
            rows.append(_flat(simulation.rerun(base, nodes)["output"]) - reference)
        moved.append(np.stack(rows) if rows else np.zeros((0, *reference.shape), np.float32))
        references.append(reference)
        advance(len(reference))
    return Displacements(pairs, np.concatenate(moved, axis=1), np.concatenate(references))


def _flat(outputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    parts = [output.detach().float().cpu().flatten(1) for output in outputs]
    return torch.cat(parts, dim=1).numpy()
