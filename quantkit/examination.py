"""A file examined, whoever made it: what the runtime runs in int8, what it loses against its float file, how fast it is.

Of a run directory it is the plan's own file, and what runs is held against the plan, layer by layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quantkit.errors import ModelError
from quantkit.evaluation import evaluate, feeds
from quantkit.export.executed import plain
from quantkit.lint.opening import open_model
from quantkit.lint.view import View, read, title
from quantkit.request import Check
from quantkit.runtimes import Kernel, find_runtime, ort_cpu
from quantkit.statistics import Verdict
from quantkit.stored import plan_file, read_plan
from quantkit.targets import find_target
from quantkit.verify import Latency, judge, time_sessions

WEIGHTED = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "MatMulNBits",
    "ConvInteger",
    "MatMulInteger",
)


@dataclass(frozen=True, slots=True)
class WeightedNode:
    """A node with a constant weight: what runs for it, and its multiply-accumulates for one item (0: its shape is not known)."""

    name: str
    kind: str
    kernel: Kernel | None
    macs: int

    @property
    def in_int8(self) -> bool:
        """Whether an integer kernel runs; a node that the runtime does not show counts as float."""
        return self.kernel is not None and self.kernel.integer

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        precision = "int8" if self.in_int8 else "float"
        return {"node": self.name, "kind": self.kind, "kernel": self.kernel and self.kernel.name, "precision": precision, "macs": self.macs}


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """What was seen. `mismatches` is None for a file without a plan; `verdict` without data and `latency` without a float file are None."""

    file: Path
    float_file: Path | None
    nodes: tuple[WeightedNode, ...]
    mismatches: tuple[str, ...] | None
    budget: float | None
    verdict: Verdict | None
    latency: Latency | None

    @property
    def int8_macs(self) -> float:
        """The share of multiply-accumulates that run in int8; of nodes, where no shape is known."""
        weights = [node.macs for node in self.nodes] if any(node.macs for node in self.nodes) else [1] * len(self.nodes)
        ran = sum(weight for node, weight in zip(self.nodes, weights, strict=True) if node.in_int8)
        return ran / sum(weights) if weights else 0.0

    def failures(self, *, as_planned: bool, int8_share: float | None) -> list[str]:
        """What was asked for and is not so, in words."""
        found = []
        if as_planned and self.mismatches:
            found.append(f"{len(self.mismatches)} layers do not run as planned: {'; '.join(self.mismatches[:3])}")
        if int8_share is not None and self.int8_macs < int8_share:
            found.append(f"{100 * self.int8_macs:.1f} % of the multiply-accumulates run in int8, {100 * int8_share:.1f} % were asked for")
        if self.budget is not None and self.verdict is not None:
            broken = self.verdict.decision == "broken" or (self.verdict.decision == "undecided" and self.verdict.drop > self.budget)
            if broken:
                found.append(f"{self.verdict.drop:.2f} lost, at most {self.budget:.2f} allowed ({self.verdict.decision})")
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        bytes_ = {"quantized": self.file.stat().st_size}
        if self.float_file is not None:
            bytes_["float"] = self.float_file.stat().st_size
        return {
            "file": str(self.file),
            "float_file": None if self.float_file is None else str(self.float_file),
            "executed": {
                "as_planned": None if self.mismatches is None else not self.mismatches,
                "mismatches": list(self.mismatches or ()),
                "int8_macs": self.int8_macs,
                "nodes": [node.to_json() for node in self.nodes],
            },
            "budget": self.budget,
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            "latency": None if self.latency is None else asdict(self.latency),
            "bytes": bytes_,
        }


def examine(
    path: Path, *, target: str | None = None, float_file: Path | None, check: Check | None, threads: int, batch_size: int, seed: int
) -> Examined:
    """Examine a file, or a run directory's, in the runtime of `target` (the plan's own, or else ONNX Runtime).

    Raises ModelError for what is no safe ONNX file, OutputError for a folder without a plan.
    """
    plan = read_plan(path) if path.is_dir() else None
    file = plan_file(plan) if plan is not None else path
    reference = float_file or (plan.float_file if plan is not None else None)
    name = target or (plan.target if plan is not None else "ort-cpu")
    runtime, options = find_runtime(name), find_target(name).SESSION_OPTIONS
    model = open_model(file)
    if reference is not None:
        open_model(reference)
    if check is not None and reference is None:
        raise ModelError(f"data, and no float file to hold {file} against", "the network before it was quantized", "pass --float FILE")
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        nodes, mismatches = weighted_nodes(model, runtime.kernels(file, options, Path(folder))), None
        if plan is not None:
            placement = find_target(plan.target).place(plan.graph, plan.schemes)
            mismatches = runtime.read_executed(file, plan.graph, placement, options, Path(folder)).mismatches
    budget = verdict = latency = None
    if reference is not None:
        example = random_feeds(reference)
        if check is not None:
            before, after = (
                evaluate(runtime.open_file(each, threads=0, options=options), check.items, batch_size) for each in (reference, file)
            )
            labels = None if check.metric.reference == "float" else check.items.labels()
            truth = before if labels is None else labels
            budget = None if check.budget is None else check.budget.points(check.metric.score(before, truth))
            verdict = judge(check.metric, before, after, labels, 0.0 if budget is None else budget, seed)
            batch = len(next(iter(example.values())))
            example = feeds(next(iter(check.items.batches(batch))), tuple(example))
        if runtime.TIMES:
            sessions = [runtime.open_file(each, threads=threads, options=options, example=example) for each in (reference, file)]
            latency = time_sessions(sessions, example)[1]
    return Examined(file, reference, nodes, mismatches, budget, verdict, latency)


def weighted_nodes(model: onnx.ModelProto, kernels: Mapping[str, Kernel]) -> tuple[WeightedNode, ...]:
    """The nodes of `model` that hold constant weights, with the kernels that run for them."""
    view, shapes = View(model), _shapes(model)
    found = []
    for node in view.of_kind(*WEIGHTED):
        weight = next((shape for name in node.input[1:] if (shape := _weight_shape(view, name)) is not None), None)
        if weight is None or view.is_computed_from_constants(read(node, 0)):
            continue  # of the latter kind are nodes that unpack narrow codes
        # The names of what follows, too: a layer that is fused with its activation is called after that.
        names = [title(node), *node.output]
        behind = view.readers[node.output[0]] if node.output else []
        names += [
            name
            for reader, _ in behind
            if reader.op_type in ("Relu", "Clip", "Add", "QuantizeLinear")
            for name in (title(reader), *reader.output)
        ]
        kernel = next((kernels[plain(name)] for name in names if plain(name) in kernels), None)
        found.append(WeightedNode(title(node), node.op_type, kernel, _macs(node, weight, shapes)))
    return tuple(found)


def random_feeds(path: Path) -> dict[str, Any]:
    """Inputs of the shapes that the file wants, symbols being 1: for time, not for accuracy."""
    session = ort_cpu.open_file(path, threads=1, options={})
    random = np.random.default_rng(0)
    kinds: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
    found = {}
    for entry in session.handle.get_inputs():
        shape = [side if isinstance(side, int) else 1 for side in entry.shape]
        if entry.type not in kinds:
            raise ModelError(f"input {entry.name!r} is a {entry.type}", f"one of {', '.join(kinds)}", "pass --data")
        found[entry.name] = random.standard_normal(shape).astype(kinds[entry.type])
    return found


def _weight_shape(view: View, name: str) -> tuple[int, ...] | None:
    quantizer = view.dequantizer(name, through=False)
    array = view.constant(quantizer.source if quantizer is not None else name)
    if array is not None:
        return array.shape if array.ndim > 1 else None
    if quantizer is not None and view.has_constant_codes(quantizer) and quantizer.scale is not None:
        producer = view.producers.get(quantizer.source)
        source = None if producer is None else view.constant(read(producer, 1 if producer.op_type == "Reshape" else 0))
        if source is not None and producer is not None:
            return tuple(int(side) for side in source) if producer.op_type == "Reshape" else source.shape
    return None


def _macs(node: onnx.NodeProto, weight: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    sides = shapes.get(node.output[0]) if node.output else None
    if sides is None:
        return 0
    outputs = prod(max(side, 1) for side in sides[1:])
    if "Conv" in node.op_type:
        return outputs * prod(weight[1:])
    return outputs * (prod(weight) // max(sides[-1], 1))


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    values = [*inferred.graph.value_info, *inferred.graph.output]
    return {value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim) for value in values}
