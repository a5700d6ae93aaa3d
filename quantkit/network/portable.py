"""A captured network that may go to another process, where it is read back from its stored program."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch

from quantkit.core.graph import Graph
from quantkit.network.capture import restore
from quantkit.network.captured import Captured


@dataclass(frozen=True, slots=True, eq=False)
class Portable:
    """`captured` is this process's own; pickled, it is its program and its graph. Unpickle only what a process of yours has sent."""

    captured: Captured

    def __reduce__(self) -> tuple[Callable[[bytes, Graph], Portable], tuple[bytes, Graph]]:
        stored = io.BytesIO()
        torch.export.save(self.captured.program, stored)
        return _read, (stored.getvalue(), self.captured.graph)


def _read(program: bytes, graph: Graph) -> Portable:
    return Portable(restore(torch.export.load(io.BytesIO(program)), graph))
