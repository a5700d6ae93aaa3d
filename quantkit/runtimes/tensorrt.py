"""There is no TensorRT where plans are made: its files are run in ONNX Runtime, optimisations off, which computes Q/DQ as they stand.

What runs in int8 is asked of OpenVINO, which executes the same structure (NVIDIA's builder need not agree); without it nothing is known.
The times of neither say anything about a GPU, so `TIMES` is false and nobody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from quantkit.core.graph import Graph
from quantkit.export.executed_layers import Executed
from quantkit.runtimes import openvino, ort_cpu
from quantkit.runtimes.evaluation import Feeds, OnnxRuntimeSession
from quantkit.runtimes.openvino import kernels, layer_ms
from quantkit.runtimes.runtime import Rival
from quantkit.targets.placement import Placement

__all__ = ["SHOWS_CODES", "SITTING", "TIMES", "kernels", "layer_ms", "open_file", "read_executed", "write_rivals"]

TIMES, SHOWS_CODES = False, False
SITTING: Path | None = None


def open_file(path: Path, *, threads: int, options: Mapping[str, str], example: Feeds | None = None) -> OnnxRuntimeSession:
    """In ONNX Runtime, nothing fused."""
    return ort_cpu.open_file(path, threads=threads, options=options, example=example, literal=True)


def read_executed(path: Path, graph: Graph, placement: Placement, options: Mapping[str, str], folder: Path) -> Executed:
    """As OpenVINO runs it; nothing where it is not installed."""
    if find_spec("openvino") is None:
        return Executed({}, ())
    return openvino.read_executed(path, graph, placement, options, folder)


def write_rivals(float_file: Path, feeds: Iterator[Feeds], folder: Path) -> Sequence[Rival]:  # noqa: ARG001
    """None: what others would ship has unsigned codes, which the builder rejects."""
    return ()
