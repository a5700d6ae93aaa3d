"""A file examined, whoever made it: what the runtime runs in int8, what it loses against its float file, how fast it is.

Of a run directory it is the plan's own file: what runs is held against the plan, layer by layer, and what that computes against the
simulation. Every session is opened with the options of a `session.json` beside the file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from quantkit import probe
from quantkit.capture import check_inputs
from quantkit.environment import describe
from quantkit.errors import ConfigError, ModelError
from quantkit.evaluation import Session, evaluate, feeds, open_session
from quantkit.export.executed import INTEGER, owners, plain, read_executed
from quantkit.export.integer_weights import layers_at_risk
from quantkit.latency.timing import Feeds
from quantkit.lint.opening import open_model
from quantkit.lint.view import View, read, title
from quantkit.parity import Parity, compare_simulation, random_items
from quantkit.passes.batches import network_batches
from quantkit.request import Check
from quantkit.statistics import Verdict
from quantkit.stored import StoredPlan, read_plan, simulate
from quantkit.targets import find_target
from quantkit.verify import Latency, judge, time_files

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
PLAN_FILE = "model.onnx"
SESSION_FILE = "session.json"
SIMULATED = "ort-cpu"  # the target whose kernels the simulation computes
NO_RUN = "a run directory of `quantkit allocate`, which keeps the plan and the network"
RUNTIME_ERRORS = (
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NotImplemented,
    runtime.RuntimeException,
)


@dataclass(frozen=True, slots=True)
class WeightedNode:
    """A node with a constant weight: what runs for it, and its multiply-accumulates for one item (0: its shape is not known)."""

    name: str
    kind: str
    kernel: str | None
    macs: int

    @property
    def in_int8(self) -> bool:
        """Whether an integer kernel runs; a node that the optimised graph does not show counts as float."""
        return self.kernel is not None and bool(INTEGER.fullmatch(self.kernel))

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        precision = "int8" if self.in_int8 else "float"
        return {"node": self.name, "kind": self.kind, "kernel": self.kernel, "precision": precision, "macs": self.macs}


@dataclass(frozen=True, slots=True)
class Saturation:
    """Whether 16-bit sums saturate on this processor, and the layers of which some can, on processors that add in pairs."""

    here: bool
    layers_at_risk: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """The parity with the simulation over that many items; `random`: drawn here, as there were no others."""

    parity: Parity
    items: int
    random: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {**asdict(self.parity), "items": self.items, "random_items": self.random, "notes": list(self.parity.notes())}


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """What was seen. `mismatches` is None for a file without a plan; `verdict` without data, `latency` without a float file, and `compared`
    unless asked for are None.
    """

    file: Path
    float_file: Path | None
    nodes: tuple[WeightedNode, ...]
    mismatches: tuple[str, ...] | None
    budget: float | None
    verdict: Verdict | None
    latency: Latency | None
    saturation: Saturation
    session_options: Mapping[str, str]
    compared: Compared | None

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
        if self.compared is not None and self.compared.parity.parted:
            parted = self.compared.parity.parted
            found.append(f"{len(parted)} layers do not compute what the simulation does, first {parted[0]}")
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
            "saturation": asdict(self.saturation),
            "session_options": dict(self.session_options),
            "parity": None if self.compared is None else self.compared.to_json(),
        }


def examine(
    path: Path, *, float_file: Path | None, check: Check | None, threads: int, batch_size: int, seed: int, parity: bool = False
) -> Examined:
    """Examine a file, or a run directory's. Raises ModelError for what is no safe ONNX file, OutputError for a folder without a plan."""
    if parity and not path.is_dir():
        raise ModelError(f"--parity for {path}, which is no run", NO_RUN, "pass the run itself")
    plan = read_plan(path) if path.is_dir() else None
    file = path / PLAN_FILE if plan is not None else path
    reference = float_file or (plan.float_file if plan is not None else None)
    model, options = open_model(file), read_session(file.parent / SESSION_FILE)
    if reference is not None:
        open_model(reference)
    if check is not None and reference is None:
        raise ModelError(f"data, and no float file to hold {file} against", "the network before it was quantized", "pass --float FILE")
    compared = mismatches = None
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        _opened(file, threads, options, optimized)
        nodes = weighted_nodes(model, optimized)
        at_risk = layers_at_risk(optimized, {} if plan is None else owners(plan.graph))
        if plan is not None:
            placement = find_target(plan.target).place(plan.graph, plan.schemes)
            mismatches = read_executed(optimized, plan.graph, placement).mismatches
            if parity:
                compared = compare(plan, file, check, batch_size, seed, options, Path(folder))
    budget = verdict = latency = None
    if reference is not None:
        session = _opened(reference, threads, options)
        if check is not None:
            before, after = (evaluate(_opened(each, 0, options), check.items, batch_size) for each in (reference, file))
            labels = None if check.metric.reference == "float" else check.items.labels()
            truth = before if labels is None else labels
            budget = None if check.budget is None else check.budget.points(check.metric.score(before, truth))
            verdict = judge(check.metric, before, after, labels, 0.0 if budget is None else budget, seed)
            example: Feeds = feeds(next(iter(check.items.batches(session.batch or 1))), session.input_names)
        else:
            example = random_feeds(session)
        latency = time_files([reference, file], example, threads, options)[1]
    saturation = Saturation(probe.saturates(), at_risk)
    return Examined(file, reference, nodes, mismatches, budget, verdict, latency, saturation, options, compared)


def compare(
    plan: StoredPlan, file: Path, check: Check | None, batch_size: int, seed: int, options: Mapping[str, str], folder: Path
) -> Compared:
    """The run's file against the simulation of its plan, over the data, or over random items. Raises RequestError for what a run lacks."""
    if plan.target != SIMULATED:
        raise ModelError(f"--parity for a plan of target {plan.target}", f"one of {SIMULATED}, whose kernels the simulation computes")
    found = simulate(plan, folder / "again.onnx")
    items = random_items(found.captured, plan.bounds, seed) if check is None else check.items
    check_inputs(found.captured, next(network_batches(plan.graph, items, 1)).inputs)
    told = compare_simulation(
        found.captured, found.placement, found.bank, file, found.emitted, items, batch_size, folder, lambda _: None, options
    )
    return Compared(told, len(items), check is None)


def read_session(path: Path) -> dict[str, str]:
    """The options in a `session.json`; none where there is none.

    Raises ConfigError for what is no such file, names other files to the runtime, or asks for a newer runtime than this.
    """
    try:
        told: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {"session_options": {}}
        options, least = dict(told["session_options"]), str(told.get("onnxruntime", ""))
        wanted = tuple(int(part) for part in least.removeprefix(">=").split(".") if part)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "session options as `quantkit allocate` writes them", "remove it") from error
    for name, value in options.items():
        if not isinstance(value, str) or any(word in name.lower() for word in ("file", "path", "folder")):
            raise ConfigError(f"{path}: session option {name!r} is {value!r}", "text, and no option that names files", "remove it")
    have = str(describe()["onnxruntime"])
    if wanted > tuple(int(part) for part in have.split(".")[: len(wanted)]):
        raise ConfigError(f"{path} wants onnxruntime {least}", f"at most {have}, which is installed", "install a newer onnxruntime")
    return options


def weighted_nodes(model: onnx.ModelProto, optimized: Path) -> tuple[WeightedNode, ...]:
    """The nodes of `model` that hold constant weights, with the kernels that run for them in its optimised graph."""
    view, shapes = View(model), _shapes(model)
    kernels: dict[str, str] = {}
    for node in onnx.load(optimized, load_external_data=False).graph.node:
        for name in (node.name, *node.output):
            kernels.setdefault(plain(name), node.op_type)
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


def random_feeds(session: Session) -> dict[str, Any]:
    """Inputs of the shapes that the file wants, symbols being 1: for time, not for accuracy."""
    random = np.random.default_rng(0)
    kinds: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
    found = {}
    for entry in session.handle.get_inputs():
        shape = [side if isinstance(side, int) else 1 for side in entry.shape]
        if entry.type not in kinds:
            raise ModelError(f"input {entry.name!r} is a {entry.type}", f"one of {', '.join(kinds)}", "pass --data")
        found[entry.name] = random.standard_normal(shape).astype(kinds[entry.type])
    return found


def _opened(path: Path, threads: int, options: Mapping[str, str], optimized: Path | None = None) -> Session:
    try:
        return open_session(path, threads=threads, options=options, optimized=optimized)
    except RUNTIME_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"ONNX Runtime does not load {path}: {reason}", "", "`quantkit lint` may say why") from error


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
