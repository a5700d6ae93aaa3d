"""ONNX Runtime's CPU provider: what ran is read from its optimised graph, what a layer takes from its profile."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from quantkit.core.environment import has_vnni
from quantkit.core.errors import ModelError
from quantkit.core.graph import Graph
from quantkit.export.executed_layers import Executed, computes_in_integers, find_owner, plain
from quantkit.export.executed_layers import read_executed as read_graph
from quantkit.export.onnx_file import size_bytes
from quantkit.runtimes.dynamic_quantizer import NAME as DYNAMIC
from quantkit.runtimes.dynamic_quantizer import multiplies_tokens, quantize_in_call
from quantkit.runtimes.evaluation import Feeds, OnnxRuntimeSession, open_session
from quantkit.runtimes.runtime import Kernel, Rival
from quantkit.runtimes.static_quantizer import NAME as STATIC
from quantkit.runtimes.static_quantizer import quantize_with_onnxruntime
from quantkit.targets.placement import Placement

TIMES, SHOWS_CODES = True, True
SITTING: Path | None = Path(__file__).with_name("sitting.py")
REFUSALS = (
    binding.Fail,
    binding.InvalidArgument,
    binding.InvalidGraph,
    binding.InvalidProtobuf,
    binding.NotImplemented,
    binding.RuntimeException,
)


def open_file(
    path: Path,
    *,
    threads: int,
    options: Mapping[str, str],
    example: Feeds | None = None,  # noqa: ARG001 - every runtime's; this one plans for any shape
    optimized: Path | None = None,
    profile: Path | None = None,
    literal: bool = False,
) -> OnnxRuntimeSession:
    """`open_session`, with one line where the runtime refuses the file."""
    try:
        return open_session(path, threads=threads, options=options, optimized=optimized, profile=profile, literal=literal)
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"ONNX Runtime does not load {path}: {reason}", "", "`quantkit lint` may say why") from error


def read_executed(path: Path, graph: Graph, placement: Placement, options: Mapping[str, str], folder: Path) -> Executed:
    """From the graph that the runtime optimised for this host."""
    return read_graph(optimize(path, options, folder), graph, placement)


def kernels(path: Path, options: Mapping[str, str], folder: Path) -> dict[str, Kernel]:
    """The optimised graph's nodes, by their own names and those of their outputs."""
    found: dict[str, Kernel] = {}
    for node in onnx.load(optimize(path, options, folder), load_external_data=False).graph.node:
        for name in (node.name, *node.output):
            found.setdefault(plain(name), Kernel(node.op_type, computes_in_integers(node)))
    return found


def layer_ms(
    path: Path, graph: Graph, feeds: Feeds, *, threads: int, options: Mapping[str, str], runs: int, folder: Path
) -> dict[str, float]:
    """From the runtime's profile, without Q/DQ."""
    owner = find_owner(graph)
    times: dict[str, float] = defaultdict(float)
    for node in node_times(path, feeds, threads=threads, options=options, runs=runs, folder=folder):
        layer = owner(node.operator, node.name)
        if layer and node.operator not in ("QuantizeLinear", "DequantizeLinear"):
            times[layer] += node.ms
    return dict(times)


@dataclass(frozen=True, slots=True)
class NodeTime:
    """A node of the optimised graph and what it takes: the median of its runs, in milliseconds, and bytes of its outputs.

    `reads` and `makes` are the names of its values.
    """

    name: str
    operator: str
    ms: float
    output_bytes: int = 0
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()


def node_times(path: Path, feeds: Feeds, *, threads: int, options: Mapping[str, str], runs: int, folder: Path) -> list[NodeTime]:
    """From the runtime's profile, in the order in which they run; profiling adds to each.

    Values are named by the graph of the same session: another one of the same file may give its own nodes their names in another order.
    """
    optimized = folder / "optimized.onnx"
    session = open_file(path, threads=threads, options=options, profile=folder / "profile", optimized=optimized)
    for _ in range(runs):
        session.run(feeds)
    report = Path(session.handle.end_profiling())
    events = json.loads(report.read_text())
    report.unlink()
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", "")
            times[key].append(event["dur"] / 1e3)
            sizes[key] = int(event["args"].get("output_size", 0))
    values = {node.name: (tuple(node.input), tuple(node.output)) for node in onnx.load(optimized, load_external_data=False).graph.node}
    return [NodeTime(*key, float(np.median(taken)), sizes[key], *values.get(key[0], ())) for key, taken in times.items()]


def run_operators(path: Path, feeds: Feeds, folder: Path) -> dict[str, str]:
    """The operator that ran for each node of the CPU provider, by the node's name, from the profile of one run."""
    session = open_file(path, threads=1, options={}, profile=folder / "profile")
    session.run(feeds)
    report = Path(session.handle.end_profiling())
    events = json.loads(report.read_text())
    report.unlink()
    ran = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return {
        plain(event["name"].removesuffix("_kernel_time")): event["args"].get("op_name", "")
        for event in ran
        if event["args"].get("provider") == "CPUExecutionProvider"
    }


def peak_activation_bytes(nodes: Sequence[NodeTime], feeds: Feeds, outputs: Iterable[str]) -> int:
    """The most bytes of activations that are alive at once: inputs, and values that a later node reads or that are `outputs`.

    A value counts from the node that makes it to the last that reads it; one that is only seen in another shape counts as another.
    """
    last = {name: place for place, node in enumerate(nodes) for name in node.reads} | dict.fromkeys(outputs, len(nodes))
    spans = [(-1, last.get(name, -1), int(array.nbytes)) for name, array in feeds.items()]
    spans += [(place, max(last.get(name, place) for name in node.makes or ("",)), node.output_bytes) for place, node in enumerate(nodes)]
    return max(sum(size for born, dies, size in spans if born <= place <= dies) for place in range(-1, len(nodes)))


def write_rivals(float_file: Path, feeds: Iterator[Feeds], folder: Path) -> Sequence[Rival]:
    """Its own static quantizer, as its documentation recommends it for this processor; its dynamic one where tokens are multiplied."""
    narrow, suffix = not has_vnni(), "" if has_vnni() else " (reduced range)"
    static, dynamic = folder / "static.onnx", folder / "dynamic.onnx"
    quantize_with_onnxruntime(float_file, feeds, static, reduce_range=narrow)
    rivals = [Rival(f"{STATIC}{suffix}", static, size_bytes(static))]
    if multiplies_tokens(float_file):
        quantize_in_call(float_file, dynamic, reduce_range=narrow)
        rivals.append(Rival(f"{DYNAMIC}{suffix}", dynamic, size_bytes(dynamic)))
    return rivals


def optimize(path: Path, options: Mapping[str, str], folder: Path) -> Path:
    """The graph that runs, written into `folder`."""
    optimized = folder / "optimized.onnx"
    open_file(path, threads=1, options=options, optimized=optimized)
    return optimized
