"""Perturbed forward passes: what quantizing one group alone does to the network's outputs, for every (group, scheme).

Per batch: one cached float pass, then for each pair only what lies behind the changed group is run again, bit-equal to a whole
pass. Memory is one batch of activations; the size of the batches bounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.capture import Captured
from quantkit.graph import Group
from quantkit.quantization import WeightBank
from quantkit.simulation import Simulation
from quantkit.spec import FLOAT, parse_scheme
from quantkit.targets.placement import Placement

FLOAT_PLACEMENT = Placement({}, frozenset(), frozenset(), {})

Outputs = tuple[Tensor, ...]
Difference = Callable[[Outputs, Outputs], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Displacements:
    """`values[k, n]`: how far the outputs of item n move when pair k alone is quantized, in the coordinates of the `Difference` asked for.

    `pairs[k]` is a (group, scheme). Shape [pairs, items, coordinates], float32.
    """

    pairs: tuple[tuple[str, str], ...]
    values: NDArray[np.float32]


def displace(
    captured: Captured,
    groups: Sequence[Group],
    target: ModuleType,
    bank: WeightBank,
    batches: Iterable[Mapping[str, Tensor]],
    difference: Difference,
    advance: Callable[[int], None],
) -> Displacements:
    """Displacements of every (group, scheme) but fp32; `difference(float, moved)` has shape [items, coordinates].

    Items come in the order of `batches`, which hold the network's inputs by name; `advance(items)` after each.
    """
    graph = captured.graph
    perturbed = {
        (group.name, scheme): (
            Simulation(captured, target.isolate(graph, group.layers, parse_scheme(scheme)), bank),
            [graph.layer(name).node for name in group.layers],
        )
        for group in groups
        for scheme in group.schemes
        if scheme != FLOAT.name
    }
    plain = Simulation(captured, FLOAT_PLACEMENT, bank)
    found: list[NDArray[np.float32]] = []
    for batch in batches:
        base = plain.run(batch)
        unmoved = difference(base["output"], base["output"]).float().cpu().numpy()
        rows = [
            difference(base["output"], simulation.rerun(base, nodes)["output"]).float().cpu().numpy()
            for simulation, nodes in perturbed.values()
        ]
        found.append(np.stack(rows) if rows else unmoved[None][:0])
        advance(len(unmoved))
    return Displacements(tuple(perturbed), np.concatenate(found, axis=1))
