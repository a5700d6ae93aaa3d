"""From the request to a calibrated network whose plans can become files."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

import quantkit
from quantkit import __version__
from quantkit.allocation.prediction.predictor import PLAN, WEIGHTS
from quantkit.calibration.equalization import equalize
from quantkit.calibration.ranges import BY_OUTPUT, NEAR, SETTLED, Ranges, calibrate
from quantkit.core.environment import describe
from quantkit.core.errors import ContractError, SchemeError, unknown
from quantkit.core.graph import Graph, Group
from quantkit.core.spec import FLOAT, is_float, parse_scheme
from quantkit.core.store import fingerprint, write_atomically
from quantkit.data import Batch
from quantkit.export.float_onnx import export_float
from quantkit.loading import LoadedModel
from quantkit.network.capture import capture, check_inputs
from quantkit.network.captured import Captured
from quantkit.quantization.moments import second_moments
from quantkit.quantization.rounding import BLIND, ROUNDINGS
from quantkit.quantization.weights import WeightBank
from quantkit.runs.history import shortened
from quantkit.runs.workbench import Workbench, stage_key
from quantkit.runtimes.evaluation import Feeds, feeds
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.sensitivity.passes.outputs import divergence
from quantkit.sensitivity.passes.ranges import choose_by_output
from quantkit.settings.options import Options
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.targets import find_target, other_widths

T = TypeVar("T")
CALIBRATION_BATCH = 32
EQUALIZATION_ITEMS, RANGE_ITEMS = 64, 16
MOMENT_ITEMS, MOMENT_BATCH = 64, 4  # a batch takes nine times the activations of its largest 3×3 layer
UNIFORM = "w8a8"  # the baseline that others would ship


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The captured network, the same on the device where torch is to compute, its float file and its program in the run directory, and the
    fingerprint of all that made them.
    """

    captured: Captured
    on_device: Captured
    float_file: Path
    program_file: Path
    target: ModuleType
    key: str

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files in the run directory."""
        return self.float_file.name, self.program_file.name


def job_fingerprint(request: Request) -> str:
    """Stands for the network, the data and every option that changes the result."""
    options = {key: value for key, value in asdict(request.options).items() if key not in ("output", "run")}
    splits = [subset.fingerprint() for subset in (request.splits.calibration, request.splits.search, request.splits.gate)]
    metric = (request.metric.name, request.metric.source)
    variants = {name: variant.describe() for name, variant in request.model.variants.items()}
    return fingerprint(request.model.digest, splits, metric, asdict(request.budget), options, variants, _versions())


def request_inputs(request: Request, network: Network) -> dict[str, str]:
    """Everything that a result hangs on, by name, as the history keeps it."""
    options = {key: value for key, value in asdict(request.options).items() if key not in ("output", "run", "bounds")}
    bounds = {f"max {name}": f"{bound.value:g}{'x' if bound.relative else ''}" for name, bound in request.options.bounds.given().items()}
    host, versions = describe(), _versions()
    split = {name: getattr(request.splits, name).fingerprint() for name in ("calibration", "search", "gate")}
    inputs: dict[str, Any] = {
        "weights of the network": request.model.digest,
        "code of the network": network.captured.module.code,
        **{f"{name} data": stands_for for name, stands_for in split.items()},
        "metric": [request.metric.name, request.metric.source] if request.metric.source else request.metric.name,
        "max drop": f"{request.budget.value:g}{'%' if request.budget.kind == 'relative' else ''}",
        **bounds, **options,
        "code of quantkit": versions.pop("code"), **versions, "processor": host["cpu"], "integer instructions": host["isa"],
    }  # fmt: skip
    return {name: shortened(value) for name, value in inputs.items()}


def write_request(request: Request, network: Network, folder: Path) -> None:
    """request.json and graph.json in the run directory: what was asked, of which data, and the canonical graph that it is about."""
    splits = {"calibration": request.splits.calibration, "search": request.splits.search, "gate": request.splits.gate}
    options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request.options).items()}
    asked = {
        "model": {"name": request.model.name, "source": request.model.source, "digest": request.model.digest},
        "metric": request.metric.name,
        "budget": asdict(request.budget),
        "options": options,
        "preprocessing": request.preprocessing.to_json(),
        "data": {name: {"items": len(part), "fingerprint": part.fingerprint(), **part.describe()} for name, part in splits.items()},
    }
    for name, content in (("request", asked), ("graph", network.captured.graph.to_json())):
        with write_atomically(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1))


def capture_network(bench: Workbench, request: Request) -> Network:
    """Capture, and keep the float file and the program once for all jobs of this run directory that capture the same."""
    target = find_target(request.options.target)
    with bench.timed("capture", "capture the graph"):
        captured = capture(network_of(request.model), request.example or {}, outputs=request.model.outputs)
    # The digest stands for the weights; what is computed with them, only the graph says.
    key = fingerprint(request.model.digest, captured.module.code, _versions(), target.OPSET)
    if request.options.equalization != "none":
        items = request.splits.calibration.first(EQUALIZATION_ITEMS)
        key = fingerprint(key, request.options.equalization, items.fingerprint())
        with bench.progress.stage("equalize channels", len(items), "items") as advance:
            batches = network_batches(captured.graph, items, CALIBRATION_BATCH)
            captured = equalize(captured, _advanced(batches, advance))
    float_file = bench.store.folder / f"float-{key[:8]}.onnx"
    if not float_file.exists():
        with bench.timed("export", "export the float file"), write_atomically(float_file) as temporary:
            export_float(captured, temporary, target.OPSET)
    program_file = bench.store.folder / f"captured-{key[:8]}.pt2"
    if not program_file.exists():
        _keep_program(captured.program, program_file, bench)
    device = torch.device(request.options.device)
    on_device = captured if device.type == "cpu" else replace(captured, module=copy.deepcopy(captured.module).to(device))
    return Network(captured, on_device, float_file, program_file, target, key)


def _keep_program(program: ExportedProgram, path: Path, bench: Workbench) -> None:
    """Write the program to `path`; one that torch cannot store is noted, as only `quantkit verify --parity` will miss it."""
    stored = io.BytesIO()
    try:
        torch.export.save(program, stored)
    except (RuntimeError, TypeError, ValueError) as error:
        bench.progress.note(f"torch cannot store the captured program ({str(error).splitlines()[0][:200]}): no parity without it")
        return
    with write_atomically(path) as temporary:
        temporary.write_bytes(stored.getvalue())


def network_of(model: LoadedModel) -> nn.Module | ExportedProgram:
    """What of the model is captured: its program where it has one."""
    network = model.program or model.module
    if network is None:
        raise ContractError(f"model {model.name} was loaded as nothing", "a module or a program")
    return network


def find_groups(graph: Graph, options: Options) -> tuple[Group, ...]:
    """The target's groups under the allowed schemes; a pinned or excluded group has a menu of one.

    Raises SchemeError for a pin or pattern that meets no group or layer, and for a scheme that the group cannot take.
    """
    target = find_target(options.target)
    groups: tuple[Group, ...] = target.groups(graph, target.check_schemes(options.menu))
    owner = {name: group.name for group in groups for name in (group.name, *group.layers)}
    floats = {g.name: min(filter(is_float, g.schemes), key=lambda scheme: scheme != FLOAT.name) for g in groups}  # or fp16
    pinned: dict[str, str] = {}
    for pattern in options.exclude:
        found = fnmatch.filter(owner, pattern)
        if not found:
            raise SchemeError(*unknown("group in --exclude", pattern, owner))
        pinned.update({owner[name]: floats[owner[name]] for name in found})
    for name, scheme in options.fix:
        if name not in owner:
            raise SchemeError(*unknown("group in --fix", name, owner))
        pinned[owner[name]] = scheme
    possible = target.groups(graph, target.check_schemes([*options.menu, *pinned.values()]))  # a pin may name what --schemes leaves out
    return tuple(
        _pinned(wider, pinned[group.name]) if group.name in pinned else group for group, wider in zip(groups, possible, strict=True)
    )


def calibrate_ranges(bench: Workbench, request: Request, network: Network) -> Ranges:
    """Ranges of every activation, on the calibration split."""
    items = request.splits.calibration
    graph, options = network.captured.graph, request.options

    check_inputs(network.captured, next(network_batches(graph, items, 1)).inputs)

    def compute() -> Ranges:
        with bench.progress.stage("calibrate", len(items), "items") as advance:
            batches = network_batches(graph, items, min(options.batch_size, CALIBRATION_BATCH), options.device)
            return calibrate(network.on_device, _advanced(batches, advance))

    depends_on = {"network": network.key, "calibration data": items.fingerprint()}
    ranges = bench.keep("ranges", depends_on, compute, Ranges.from_json)
    bench.progress.note(
        f"calibrated on {ranges.items} items: {SETTLED:.0%} of the ranges were within {NEAR:.0%} of their last width "
        + (f"after {ranges.settled}" if ranges.settled else "only with the last of them; more calibration items would make them surer")
    )
    return ranges if options.observer != BY_OUTPUT else _choose_ranges(bench, request, network, ranges, depends_on)


def _choose_ranges(bench: Workbench, request: Request, network: Network, ranges: Ranges, depends_on: Mapping[str, Any]) -> Ranges:
    """The ranges with those that move the outputs least, for every width of the target's activations."""
    graph, target, device = network.captured.graph, network.target, request.options.device
    items, measure = request.splits.calibration.first(RANGE_ITEMS), divergence(request.metric.curvature)
    specs = {target.ACTIVATIONS.bits: target.ACTIVATIONS, **other_widths(target)}
    bank = WeightBank(graph, {}, {}, target.product_rows)

    def compute() -> Ranges:
        with bench.progress.stage("choose ranges by the outputs", len(items) * len(specs), "items") as advance:
            chosen = {}
            for bits, spec in specs.items():
                batches = network_batches(graph, items, MOMENT_BATCH, device)
                chosen[bits] = choose_by_output(network.on_device, bank, ranges, spec, batches, measure, advance)
            return Ranges({}, chosen)

    widths = {str(bits): asdict(spec) for bits, spec in specs.items()}
    depends_on = {**depends_on, "metric's curvature": request.metric.curvature, "widths of activations": widths}
    return replace(ranges, chosen=bench.keep("output_ranges", depends_on, compute, Ranges.from_json).chosen)


def prepare_candidates(
    bench: Workbench, request: Request, network: Network, groups: tuple[Group, ...], ranges: Ranges, folder: Path
) -> Candidates:
    """Whatever a plan needs to become a file: weights rounded under every scheme of every menu, and under that of the uniform baseline."""
    graph, target, options = network.captured.graph, network.target, request.options
    state = {name: value.detach().cpu() for name, value in network.captured.module.named_parameters(remove_duplicate=False)}
    activations = ranges.qparams(options.observer, graph, target.ACTIVATIONS)
    widths = {bits: ranges.qparams(options.observer, graph, spec) for bits, spec in other_widths(target).items()}
    schemes = {name: dict.fromkeys([*group.schemes, UNIFORM]) for group in groups for name in group.layers}

    def compute() -> Mapping[str, NDArray[Any]]:
        items, moments = request.splits.calibration.first(MOMENT_ITEMS), {}
        if options.rounding not in BLIND:
            with bench.progress.stage("second moments", len(items), "items") as advance:
                moments = second_moments(network.on_device, network_batches(graph, items, MOMENT_BATCH, options.device), advance)
        bank = WeightBank(
            graph, state, activations, target.product_rows, rounding=ROUNDINGS[options.rounding], moments=moments, widths=widths
        )
        pairs = [(layer, parse_scheme(scheme)) for layer in graph.layers if layer.weight for scheme in schemes[layer.name]]
        with bench.progress.stage("round weights", len(pairs), "weights") as advance:
            return bank.to(torch.device(options.device)).rounded(_counted(pairs, advance))

    menus = [[group.name, list(group.layers), list(group.schemes)] for group in groups]
    depends_on = {
        "network": network.key, "schemes of each group": menus, "observer": options.observer, "rounding": options.rounding,
        "calibration data": request.splits.calibration.fingerprint(),
    }  # fmt: skip
    key = stage_key(WEIGHTS, depends_on)
    rounded = bench.keep_arrays(WEIGHTS, depends_on, compute)
    bank = WeightBank(
        graph, state, activations, target.product_rows, rounding=ROUNDINGS[options.rounding], rounded=rounded, widths=widths
    )
    return Candidates(network.float_file, graph, groups, target, bank, folder, key)


def plan_frame(request: Request, network: Network, candidates: Candidates, ranges: Ranges) -> dict[str, Any]:
    """plan.json but for which layer takes what: all that it takes, beside graph.json and the files it names, to write a plan's file."""
    observer, widths = request.options.observer, other_widths(network.target)
    return {
        "schema": 1,
        "target": request.options.target,
        "float_onnx": network.float_file.name,
        "program": network.program_file.name,
        "weights": candidates.key,
        "rounded": candidates.rounded[0].key if candidates.rounded else None,  # for each plan, or apart
        "bounds": ranges.bounds(observer, network.captured.graph, network.target.ACTIVATIONS),
        "bounds_by_bits": {bits: ranges.bounds(observer, network.captured.graph, spec) for bits, spec in widths.items()},
    }


def write_plan(bench: Workbench, candidates: Candidates, frame: Mapping[str, Any], allocation: Mapping[str, str]) -> None:
    """plan.json in the run directory."""
    layers = {name: allocation[group.name] for group in candidates.groups for name in group.layers}
    with write_atomically(bench.store.folder / PLAN) as temporary:
        temporary.write_text(json.dumps({**frame, "weights": candidates.weights_key(allocation), "layers": layers}, indent=1))


def example_feeds(request: Request, network: Network) -> Feeds:
    """One item (or one fixed batch) as the files are fed while they are timed."""
    graph = network.captured.graph
    return feeds(next(network_batches(graph, request.splits.calibration, 1)), graph.inputs)


def _advanced(batches: Iterator[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(batch.size)


def _counted(pairs: Sequence[T], advance: Callable[[int], None]) -> Iterator[T]:
    for pair in pairs:
        yield pair
        advance(1)


def _pinned(group: Group, scheme: str) -> Group:
    if scheme not in group.schemes:
        raise SchemeError(*unknown(f"scheme for group {group.name}", scheme, group.schemes))
    return replace(group, schemes=(scheme,), reason="pinned by the user")


def _versions() -> dict[str, Any]:
    """What computes: the versions, and this very code, so that no stage's result outlives a change of it."""
    told, package = describe(), Path(quantkit.__file__).parent
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(package.rglob("*.py"))]
    return {"quantkit": __version__, "torch": told["torch"], "onnxruntime": told["onnxruntime"], "openvino": told["openvino"], "code": code}
