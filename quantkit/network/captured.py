"""What capturing a network yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch.export import ExportedProgram

from quantkit.core.graph import Graph


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """The canonical `program`, the `module` that runs it in float32 (parameters by their own names), and what it says: `graph`."""

    program: ExportedProgram
    module: fx.GraphModule
    graph: Graph
