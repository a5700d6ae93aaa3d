"""What each (group, scheme) costs in bytes of the file, as the target stores it."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from quantkit.graph import Graph, Group
from quantkit.spec import parse_scheme
from quantkit.table import Table


def byte_costs(graph: Graph, groups: Sequence[Group], schemes: Sequence[str], target: ModuleType) -> Table:
    """Bytes of weights, scales and biases; a weight that several layers share counts once."""
    values = np.full((len(groups), len(schemes)), np.nan)
    for row, group in enumerate(groups):
        for column, scheme in enumerate(schemes):
            if scheme in group.schemes:
                values[row, column] = target.weight_bytes(graph.layer(group.layers[0]), parse_scheme(scheme))
    return Table("bytes", "bytes", tuple(group.name for group in groups), tuple(schemes), values)
