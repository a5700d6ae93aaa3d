"""Any ONNX files, timed side by side in ONNX Runtime, and where the time goes: by operator of the graph that really runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quantkit.core.errors import ModelError, RequestError
from quantkit.loading.from_onnx.opening import file_bytes, open_model
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.ort_cpu import node_times, peak_activation_bytes
from quantkit.verification.sittings import TimedFile, interval_to_first, median_ms, time_in_sittings

FED: Mapping[int, Any] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.INT64: np.int64,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.BOOL: np.bool_,
}
SECONDS = 6.0  # for all files together, unless a number of rounds is asked for
PROFILED = 20  # runs that the time of each operator is the median of


@dataclass(frozen=True, slots=True)
class Timed:
    """A file: its bytes, milliseconds of one inference (a median), their ratio to the first file's with a 95 % interval, and `operators`:
    milliseconds of each kind of node, profiled apart, which adds to each. `peak_activation_bytes` are alive at once, by that profile.
    """

    path: Path
    bytes: int
    ms: float
    ratio: float
    low: float
    high: float
    operators: Mapping[str, float]
    peak_activation_bytes: int

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        interval = {"latency_ms": self.ms, "ratio": self.ratio, "low": self.low, "high": self.high}
        return {
            "file": str(self.path), "bytes": self.bytes, **interval, "peak_activation_bytes": self.peak_activation_bytes,
            "operators_ms": dict(self.operators),
        }  # fmt: skip


def time_side_by_side(
    paths: Sequence[Path],
    *,
    threads: int,
    batch: int,
    runs: int | None,
    sides: Mapping[str, Sequence[int]],
    folder: Path,
    advance: Callable[[int], None],
) -> tuple[Timed, ...]:
    """Every file on the same random inputs, interleaved; `runs` rounds, or as many as fit in SECONDS, in sittings.

    `sides` are shapes of inputs by name, where the files leave more open than the batch. Files whose inputs have other names are fed by
    order. Raises RequestError for inputs that are not alike, ModelError for a file that is none or is refused.
    """
    feeds = [random_feeds(path, batch=batch, sides=sides) for path in paths]
    first = list(feeds[0].values())
    for path, other in zip(paths, feeds, strict=True):
        if [array.shape for array in other.values()] != [array.shape for array in first]:
            mine, theirs = (", ".join("x".join(map(str, array.shape)) for array in some) for some in (first, other.values()))
            raise RequestError(f"{path} takes {theirs}", f"what {paths[0]} takes: {mine}", "compare forms of one network")
    files = [TimedFile(path, names=tuple(given)) for path, given in zip(paths, feeds, strict=True)]
    sittings = time_in_sittings(ort_cpu, files, feeds[0], threads=threads, seconds=SECONDS, rounds=runs)
    advance(len(paths))
    found = []
    for place, path in enumerate(paths):
        operators: dict[str, float] = defaultdict(float)
        fed = dict(zip(feeds[place], feeds[0].values(), strict=True))
        nodes = node_times(path, fed, threads=threads, options={}, runs=PROFILED, folder=folder)
        for node in nodes:
            operators[node.operator] += node.ms
        peak = peak_activation_bytes(nodes, fed, [value.name for value in open_model(path).graph.output])
        ratio = interval_to_first(sittings, place)
        found.append(Timed(path, file_bytes(path), median_ms(sittings, place), *ratio, dict(operators), peak))
        advance(1)
    return tuple(found)


def random_feeds(path: Path, *, batch: int = 1, sides: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """Inputs of the shapes that the file wants, or of `sides` by name; other symbols are `batch` at first and 1 behind it.

    For time, not for accuracy. Raises RequestError for a shape that the file does not take.
    """
    random, graph = np.random.default_rng(0), open_model(path).graph
    constants, found = {tensor.name for tensor in graph.initializer}, {}
    for entry in graph.input:
        if entry.name not in constants:
            kind = entry.type.tensor_type.elem_type
            if kind not in FED:
                got = f"input {entry.name!r} is a {onnx.TensorProto.DataType.Name(kind)}"
                raise ModelError(got, f"one of {', '.join(np.dtype(fed).name for fed in FED.values())}", "pass --data")
            wanted = [side.dim_value for side in entry.type.tensor_type.shape.dim]
            shape = list((sides or {}).get(entry.name, [side or (1 if axis else batch) for axis, side in enumerate(wanted)]))
            if len(shape) != len(wanted) or any(side and side != mine for side, mine in zip(wanted, shape, strict=True)):
                text = "x".join(str(side or "*") for side in wanted)
                raise RequestError(f"shape {'x'.join(map(str, shape))} for input {entry.name!r} of {path}", text, "correct --shape")
            found[entry.name] = random.standard_normal(shape).astype(FED[kind])
    return found
