"""OpenVINO's CPU plugin (extra `quantkit[openvino]`): what ran, and what it took, is read from its own executed model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.core.errors import DataError, ModelError, RequestError
from quantkit.core.graph import Graph
from quantkit.core.metric import Outputs
from quantkit.export.executed_layers import Executed, Precision, owners, plain, taken_in
from quantkit.export.onnx_file import size_bytes
from quantkit.runtimes.evaluation import Feeds, quantizes_in_call
from quantkit.runtimes.nncf_quantizer import NAME, quantize_with_nncf
from quantkit.runtimes.runtime import Kernel, Rival
from quantkit.targets.placement import Placement

TIMES, SHOWS_CODES = True, False  # a tensor that is read from outside is not fused away
SITTING: Path | None = None
INTEGERS = ("u8", "i8")
KINDS: Mapping[str, tuple[str, ...]] = {
    "conv": ("Convolution", "GroupConvolution"),
    "linear": ("FullyConnected", "MatMul"),
}
HINT = "INFERENCE_PRECISION_HINT"


@dataclass(frozen=True, slots=True, eq=False)
class OpenVinoSession:
    """A compiled file. With one thread the caller's own does the work."""

    path: Path
    compiled: Any
    input_names: tuple[str, ...]
    batch: int | None
    in_call: bool
    threads: int

    def run(self, feeds: Feeds) -> Outputs:
        """The outputs for one batch. Raises DataError for more items than a fixed batch holds."""
        count = len(next(iter(feeds.values())))
        if self.batch is not None and count > self.batch:
            raise DataError(f"a batch of {count} for a network of fixed batch {self.batch}", f"at most {self.batch}", "--batch-size")
        missing = 0 if self.batch is None else self.batch - count
        found = self.compiled({name: np.concatenate([array, *[array[-1:]] * missing]) for name, array in feeds.items()})
        return tuple(np.array(found[output][:count]) for output in self.compiled.outputs)


def open_file(path: Path, *, threads: int, options: Mapping[str, str], example: Feeds | None = None) -> OpenVinoSession:
    """Compile `path` for the CPU; for the shapes of `example` alone, where there is one."""
    core = _core()
    settings = {"NUM_STREAMS": 1, **({"INFERENCE_NUM_THREADS": threads} if threads else {}), **options}
    try:
        model = core.read_model(str(path))
        if example is not None:
            model.reshape({name: list(array.shape) for name, array in example.items()})
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise ModelError(f"OpenVINO refuses {path}: {reason}", "a file for openvino", "`quantkit lint` it") from error
    names = tuple(entry.get_any_name() for entry in compiled.inputs)
    sides = [entry.get_partial_shape()[0] for entry in compiled.inputs if len(entry.get_partial_shape())]
    fixed = next((side.get_length() for side in sides if side.is_static), None)
    return OpenVinoSession(path, compiled, names, fixed, quantizes_in_call(path), threads)


def read_executed(path: Path, graph: Graph, placement: Placement, options: Mapping[str, str], folder: Path) -> Executed:  # noqa: ARG001
    """The precision of each weighted layer. What is fused into them (additions, activations) has no node of its own and is not judged."""
    names = owners(graph)
    for name, layer in taken_in(graph).items():  # a float layer, or one with a batch norm behind it, may be named after that
        names.setdefault(f"node_{name}", layer)
    layers = {layer.name: layer for layer in graph.layers if layer.weight}
    ran: dict[str, Precision] = {}
    for told, originals in _operations(open_file(path, threads=1, options=options)):
        for owner in dict.fromkeys(names[name] for name in originals if name in names):
            if owner in layers and told.get("layerType") in KINDS[layers[owner].kind]:
                ran.setdefault(owner, "int8" if _is_integer(told) else "float")
    mismatches = []
    for name in layers:
        planned = "int8" if name in placement.int8 else "float"
        if name not in ran:
            mismatches.append(f"{name}: planned {planned}, not found in OpenVINO's executed model")
        elif ran[name] != planned:
            mismatches.append(f"{name}: planned {planned}, ran {ran[name]}")
    return Executed(ran, tuple(mismatches))


def kernels(path: Path, options: Mapping[str, str], folder: Path) -> dict[str, Kernel]:  # noqa: ARG001
    """The executed model's operations, by the names of the nodes that were fused into them."""
    found: dict[str, Kernel] = {}
    weighted = {kind for kinds in KINDS.values() for kind in kinds}
    for told, originals in _operations(open_file(path, threads=1, options=options)):
        if told.get("layerType") in weighted:
            for name in originals:
                found.setdefault(name, Kernel(told.get("primitiveType", ""), _is_integer(told)))
    return found


def layer_ms(
    path: Path,
    graph: Graph,
    feeds: Feeds,
    *,
    threads: int,
    options: Mapping[str, str],
    runs: int,
    folder: Path,  # noqa: ARG001 - every runtime's
) -> dict[str, float]:
    """From the plugin's own counters: each operation's time goes to the first layer among those that were fused into it."""
    session = open_file(path, threads=threads, options={**options, "PERF_COUNT": "YES"}, example=feeds)
    request, names = session.compiled.create_infer_request(), owners(graph)
    fused = {str(told["name"]): originals for told, originals in _operations(session)}
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        request.infer(dict(feeds))
        for entry in request.profiling_info:
            times[entry.node_name].append(entry.real_time.total_seconds() * 1e3)
    found: dict[str, float] = defaultdict(float)
    for name, taken in times.items():
        owner = next((names[original] for original in fused.get(name, ()) if original in names), None)
        if owner is not None:
            found[owner] += float(np.median(taken))
    return dict(found)


def write_rivals(float_file: Path, feeds: Iterator[Feeds], folder: Path) -> Sequence[Rival]:
    """The float file in bfloat16, where the CPU has it, and NNCF's `quantize`, where it is installed."""
    rivals = []
    if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        rivals.append(Rival("float in bf16", float_file, size_bytes(float_file), {HINT: "bf16"}))
    if find_spec("nncf") is not None:
        path = folder / "nncf.xml"
        quantize_with_nncf(float_file, feeds, path)
        rivals.append(Rival(NAME, path, path.stat().st_size + path.with_suffix(".bin").stat().st_size))
    return rivals


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise RequestError("openvino is not installed", "", "pip install 'quantkit[openvino]'") from error
    return openvino.Core()


def _operations(session: OpenVinoSession) -> Iterator[tuple[dict[str, str], list[str]]]:
    """What the executed model tells of each operation, and the plain names of the nodes that were fused into it."""
    for operation in session.compiled.get_runtime_model().get_ops():
        told = {key: str(value.astype(str)) for key, value in operation.get_rt_info().items() if hasattr(value, "astype")}
        told["name"] = operation.get_friendly_name()
        yield told, [plain(name.split("/")[0]) for name in told.get("originalLayersNames", "").split(",")]


def _is_integer(told: Mapping[str, str]) -> bool:
    return told.get("runtimePrecision") in INTEGERS or told.get("primitiveType", "").lower().endswith("_i8")
