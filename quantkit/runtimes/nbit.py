"""There is no such machine: ONNX Runtime computes the file as it stands, optimisations off, what codes are worth in float32.

Its times say nothing about the machine that is modelled, so `TIMES` is false and nobody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quantkit.core.graph import Graph
from quantkit.export.executed_layers import Executed
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.evaluation import Feeds, OnnxRuntimeSession
from quantkit.runtimes.ort_cpu import kernels, layer_ms
from quantkit.runtimes.runtime import Rival
from quantkit.targets.placement import Placement

__all__ = ["SHOWS_CODES", "SITTING", "TIMES", "kernels", "layer_ms", "open_file", "read_executed", "write_rivals"]

TIMES, SHOWS_CODES = False, False
SITTING: Path | None = None


def open_file(path: Path, *, threads: int, options: Mapping[str, str], example: Feeds | None = None) -> OnnxRuntimeSession:
    """In ONNX Runtime, nothing fused."""
    return ort_cpu.open_file(path, threads=threads, options=options, example=example, literal=True)


def read_executed(path: Path, graph: Graph, placement: Placement, options: Mapping[str, str], folder: Path) -> Executed:  # noqa: ARG001
    """Nothing: what such a machine would make of the file is not known here."""
    return Executed({}, ())


def write_rivals(float_file: Path, feeds: Iterator[Feeds], folder: Path) -> Sequence[Rival]:  # noqa: ARG001
    """None: nobody else ships for it."""
    return ()
