"""Measure any ONNX file: what the runtime runs in int8, the loss against its float file, latency.

Of a run directory it is the plan's own file: what runs is compared with the plan, layer by layer, and what that computes with the
simulation. Every session is opened with the options of a `session.json` beside the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import onnx

from quantkit.core.errors import DataError, ModelError
from quantkit.core.graph import Graph
from quantkit.core.statistics import Verdict, stands
from quantkit.export.executed_layers import owners, plain
from quantkit.export.integer_weights import layers_at_risk
from quantkit.export.session_file import read_session
from quantkit.loading.from_onnx.opening import open_model
from quantkit.network.capture import check_inputs
from quantkit.runs.stored_plan import StoredPlan, plan_file, read_plan, simulate
from quantkit.runtimes import Kernel, Runtime, find_runtime, ort_cpu
from quantkit.runtimes.evaluation import Feeds, evaluate, feeds
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.settings.bounds import show_drop
from quantkit.settings.request import Check
from quantkit.targets import Placement, find_target
from quantkit.verification import probe
from quantkit.verification.lint.graph_view import View, read, title
from quantkit.verification.parity import Parity, compare_simulation, random_items
from quantkit.verification.side_by_side import random_feeds
from quantkit.verification.sittings import TimedFile
from quantkit.verification.verify import Latency, judge, time_files

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
SIMULATED = "ort-cpu"  # the target whose kernels the simulation computes
NO_RUN = "a run directory of `quantkit allocate`, which keeps the plan and the network"


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


@dataclass(frozen=True, slots=True)
class Saturation:
    """Whether 16-bit sums saturate on this processor, and the layers of which some can, on processors that add in pairs."""

    here: bool
    layers_at_risk: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """The parity with the simulation; `random`: the items were drawn here, as there were no others."""

    parity: Parity
    random: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {**asdict(self.parity), "random_items": self.random, "notes": list(self.parity.notes())}


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """What was measured. `mismatches` is None for a file without a plan; `verdict` without data, `latency` without a float file, and
    `compared` unless requested are None, and `saturation` for another runtime than ONNX Runtime.
    """

    file: Path
    float_file: Path | None
    nodes: tuple[WeightedNode, ...]
    mismatches: tuple[str, ...] | None
    budget: float | None
    verdict: Verdict | None
    latency: Latency | None
    saturation: Saturation | None
    session_options: Mapping[str, str]
    compared: Compared | None

    @property
    def int8_macs(self) -> float:
        """The share of multiply-accumulates that run in int8; of nodes, where no shape is known."""
        return share_in_int8(self.nodes)

    def failures(self, *, as_planned: bool, int8_share: float | None) -> list[str]:
        """The requirements that are not met, in words."""
        found = []
        if as_planned and self.mismatches:
            found.append(f"{len(self.mismatches)} layers do not run as planned: {'; '.join(self.mismatches[:3])}")
        if int8_share is not None and self.int8_macs < int8_share:
            found.append(f"{100 * self.int8_macs:.1f} % of the multiply-accumulates run in int8, {100 * int8_share:.1f} % are required")
        budget, verdict = self.budget, self.verdict
        if budget is not None and verdict is not None and not stands(verdict.decision, verdict.drop <= budget, "point"):
            found.append(f"{show_drop(verdict.drop)} lost, at most {budget:.2f} allowed ({verdict.decision})")
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
            "saturation": None if self.saturation is None else asdict(self.saturation),
            "session_options": dict(self.session_options),
            "parity": None if self.compared is None else self.compared.to_json(),
        }


def examine(
    path: Path,
    *,
    target: str | None = None,
    float_file: Path | None,
    check: Check | None,
    threads: int,
    batch_size: int,
    seed: int,
    parity: bool = False,
) -> Examined:
    """Examine a file, or a run directory's, in the runtime of `target` (the plan's own, or else ONNX Runtime).

    Raises ModelError for what is not a safe ONNX file, OutputError for a folder without a plan.
    """
    if parity and not path.is_dir():
        raise ModelError(f"--parity for {path}, which is not a run", NO_RUN, "pass the run itself")
    if not path.is_dir():
        return examine_file(
            path, target=target or SIMULATED, float_file=float_file, check=check, threads=threads, batch_size=batch_size, seed=seed
        )
    plan = read_plan(path)
    file = plan_file(plan)
    placement = find_target(plan.target).place(plan.graph, plan.schemes)
    found = examine_file(
        file, target=target or plan.target, planned=(plan.graph, placement), float_file=float_file or plan.float_file, check=check,
        threads=threads, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    return replace(found, compared=compare(plan, file, check, batch_size, seed, found.session_options)) if parity else found


def examine_file(
    file: Path,
    *,
    target: str,
    planned: tuple[Graph, Placement] | None = None,
    float_file: Path | None,
    check: Check | None,
    threads: int,
    batch_size: int,
    seed: int,
) -> Examined:
    """Examine a file in the runtime of `target`; with `planned`, what runs is held against that plan, layer by layer."""
    runtime, options = find_runtime(target), read_session(file.parent, find_target(target))
    model = open_model(file)
    if float_file is not None:
        open_model(float_file)
    if check is not None and float_file is None:
        raise ModelError(f"data, and no float file to compare {file} with", "the float ONNX file", "pass --float FILE")
    mismatches = saturation = budget = verdict = latency = None
    with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
        folder = Path(name)
        nodes = weighted_nodes(model, runtime.kernels(file, options, folder))
        if planned is not None:
            mismatches = runtime.read_executed(file, *planned, options, folder).mismatches
        if target == SIMULATED:
            names = {} if planned is None else owners(planned[0])
            saturation = Saturation(probe.saturates(), layers_at_risk(ort_cpu.optimize(file, options, folder), names))
    if float_file is not None:
        example: Feeds = random_feeds(float_file)
        if check is not None:
            check_items(float_file, check)
            budget, verdict = judge_files(runtime, options, (float_file, file), check, batch_size, seed)
            example = feeds(next(iter(check.items.batches(len(next(iter(example.values())))))), tuple(example))
        if runtime.TIMES:
            latency = time_files(runtime, [TimedFile(each, options) for each in (float_file, file)], example, threads)[1]
    return Examined(file, float_file, nodes, mismatches, budget, verdict, latency, saturation, options, None)


def compare(plan: StoredPlan, file: Path, check: Check | None, batch_size: int, seed: int, options: Mapping[str, str]) -> Compared:
    """The run's file against the simulation of its plan, over the data, or over random items. Raises RequestError for what a run lacks."""
    if plan.target != SIMULATED:
        raise ModelError(
            f"--parity for a plan of target {plan.target}",
            f"one of {SIMULATED}, whose kernels the simulation computes",
            f"leave --parity out, or allocate with --target {SIMULATED}",
        )
    with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
        folder = Path(name)
        found = simulate(plan, folder / "again.onnx")
        items = random_items(found.captured, plan.bounds, seed) if check is None else check.items
        check_inputs(found.captured, next(network_batches(plan.graph, items, 1)).inputs)
        told = compare_simulation(
            found.captured, found.placement, found.bank, file, found.emitted, items, batch_size, folder, lambda _: None, options
        )
    return Compared(told, check is None)


def check_items(file: Path, check: Check) -> None:
    """Raises DataError where the items are not of the shapes that the file takes."""
    wanted = {entry.name: [side.dim_value for side in entry.type.tensor_type.shape.dim][1:] for entry in open_model(file).graph.input}
    for name, array in feeds(next(iter(check.items.batches(1))), tuple(random_feeds(file))).items():
        sides = zip(wanted[name], array.shape[1:], strict=False)
        if len(wanted[name]) != array.ndim - 1 or any(side not in (0, got) for side, got in sides):
            have, shape = f"input {name!r} of shape {list(array.shape[1:])} for each item", [side or "*" for side in wanted[name]]
            raise DataError(have, f"a shape of {shape}", "correct the data, or its --resize and --crop")


def judge_files(
    runtime: Runtime, options: Mapping[str, str], files: tuple[Path, Path], check: Check, batch_size: int, seed: int
) -> tuple[float | None, Verdict]:
    """The budget, if there is one, and the verdict on the second file against the first."""
    before, after = (evaluate(runtime.open_file(file, threads=0, options=options), check.items, batch_size) for file in files)
    labels = None if check.metric.reference == "float" else check.items.labels()
    budget = None if check.budget is None else check.budget.points(check.metric.score(before, before if labels is None else labels))
    return budget, judge(check.metric, before, after, labels, 0.0 if budget is None else budget, seed)


def share_of_file(file: Path, target: str) -> float:
    """The share of multiply-accumulates that the runtime of `target` runs in int8. Raises ModelError where it refuses the file."""
    options = read_session(file.parent, find_target(target))
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        return share_in_int8(weighted_nodes(open_model(file), find_runtime(target).kernels(file, options, Path(folder))))


def share_in_int8(nodes: Sequence[WeightedNode]) -> float:
    """The share of multiply-accumulates that run in int8; of nodes, where no shape is known."""
    weights = [node.macs for node in nodes] if any(node.macs for node in nodes) else [1] * len(nodes)
    ran = sum(weight for node, weight in zip(nodes, weights, strict=True) if node.in_int8)
    return ran / sum(weights) if weights else 0.0


def weighted_nodes(model: onnx.ModelProto, kernels: Mapping[str, Kernel]) -> tuple[WeightedNode, ...]:
    """The nodes of `model` that hold constant weights, with the kernels that run for them."""
    view, shapes = View(model), _shapes(model)
    found = []
    for node in view.of_kind(*WEIGHTED):
        weight = next((shape for name in node.input[1:] if (shape := _weight_shape(view, name, shapes)) is not None), None)
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


def _weight_shape(view: View, name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of a weight, a constant or made of constants; None for what is neither, or has one axis."""
    quantizer = view.dequantizer(name, through=False)
    source = quantizer.source if quantizer is not None else name
    array = view.constant(source)
    found = array.shape if array is not None else shapes.get(source, ()) if view.is_computed_from_constants(source) else ()
    return found if len(found) > 1 and all(found) else None


def _macs(node: onnx.NodeProto, weight: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    sides = shapes.get(node.output[0]) if node.output else None
    if sides is None:
        return 0
    outputs = prod(max(side, 1) for side in sides[1:])
    if "Conv" in node.op_type:
        return outputs * prod(weight[1:])
    if node.op_type == "MatMulNBits":  # its weight lies packed
        return outputs * int(next(entry.i for entry in node.attribute if entry.name == "K"))
    return outputs * (prod(weight) // max(sides[-1], 1))


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    values = [*inferred.graph.value_info, *inferred.graph.output]
    return {value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim) for value in values}
