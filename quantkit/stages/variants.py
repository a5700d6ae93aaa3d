"""The network's other forms under the plan: a file each, compared with its simulation and timed beside its own float file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantkit.core.errors import CaptureError, ContractError, ModelError
from quantkit.core.graph import Graph
from quantkit.core.spec import FLOAT, Allocation
from quantkit.data import Batch, collect, whole
from quantkit.export.float_onnx import export_float
from quantkit.export.onnx_file import saved, size_bytes
from quantkit.export.qdq import emit
from quantkit.export.renaming import rename
from quantkit.loading.any_length import ANY_LENGTH
from quantkit.loading.model import Variant
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.quantization.weights import WeightBank
from quantkit.runs.result import LengthRow, VariantRow
from quantkit.runs.workbench import Workbench
from quantkit.runtimes.evaluation import Feeds, feeds
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.verification.parity import Parity, compare_outputs, compare_simulation
from quantkit.verification.verify import Latency, time_in_turn


def write_variants(bench: Workbench, request: Request, candidates: Candidates, allocation: Allocation) -> tuple[VariantRow, ...]:
    """Each variant's files in the run directory, named after it, and what was measured of them.

    Layers with weights take the plan's schemes, by name; operations without weights stay float. What cannot be captured is left out with a
    note: the network's own result stands. Raises ModelError where a layer has another weight than the network's layer of that name.
    """
    variants = request.model.variants
    if not variants:
        return ()
    with bench.timed("variants", f"write {', '.join(variants)}"):
        rows = [_tried(bench, request, candidates, allocation, name, variant) for name, variant in variants.items()]
        return tuple(row for row in rows if row is not None)


def _tried(
    bench: Workbench, request: Request, candidates: Candidates, allocation: Allocation, name: str, variant: Variant
) -> VariantRow | None:
    try:
        return _write(bench, request, candidates, allocation, name, variant)
    except CaptureError as error:
        bench.progress.note(f"{name}.onnx is not written: {error}")
        return None


def _write(
    bench: Workbench, request: Request, candidates: Candidates, allocation: Allocation, name: str, variant: Variant
) -> VariantRow:
    folder, target, runtime = bench.store.folder, candidates.target, candidates.runtime
    final, float_file = folder / f"{name}.onnx", folder / f"{name}-float.onnx"
    for key, axes in variant.dynamic.items():
        if any(variant.example[key].shape[axis] < 2 for axis in axes):
            got = f"the variant {name} has a dynamic axis of size 1 in its example of {key!r}"
            raise ModelError(got, "at least 2, as torch.export takes a 1 for a constant", "enlarge the example, and give `typical` inputs")
    captured = capture(variant.module, variant.example, variant.dynamic)
    graph, bank = captured.graph, _bank(captured, candidates.weights(allocation), candidates.graph, name)
    planned = {layer: allocation[group.name] for group in candidates.groups for layer in group.layers}
    named = {layer.name: planned.get(layer.name, FLOAT) if layer.weight else FLOAT for layer in graph.layers}
    placement = target.place(graph, named)
    with saved(float_file) as temporary:
        export_float(captured, temporary, target.OPSET)
    with saved(final) as temporary:
        emitted = emit(float_file, graph, placement, bank, temporary)
    scratch, options = candidates.folder, target.SESSION_OPTIONS
    ran = runtime.read_executed(final, graph, placement, options, scratch)

    def measure(given: Mapping[str, Tensor]) -> tuple[Feeds, Parity, Latency | None]:
        items = whole(collect([Batch(dict(given))]))
        example = feeds(next(network_batches(graph, items, 1)), graph.inputs)
        if runtime.SHOWS_CODES:
            parity = compare_simulation(captured, placement, bank, final, emitted, items, len(items), scratch, _silent, options)
        else:
            session = candidates.open(final, threads=request.options.threads, example=example)
            parity = compare_outputs(captured, placement, bank, session, items, len(items), _silent)
        timing, files = candidates.timing(request.options.threads, example), [float_file, final]
        return example, parity, bench.device.run(time_in_turn, files, timing)[1] if runtime.TIMES else None

    example, parity, latency = measure(variant.typical or variant.example)
    lengths = []
    for length, weight in request.options.shape if name == ANY_LENGTH else ():
        _, at_length, time = measure(variant.of_length(length))
        lengths.append(LengthRow(length, weight, time, at_length.layers_exact, at_length.exact))
    for path in (float_file, final):
        _rename(candidates, path, graph, variant, example)
    ratio = size_bytes(final) / size_bytes(float_file)
    return VariantRow(name, final, float_file, ratio, latency, not ran.mismatches, parity.layers_exact, parity.exact, tuple(lengths))


def _bank(captured: Captured, weights: WeightBank, graph: Graph, name: str) -> WeightBank:
    """The plan's rounded weights and the ranges of its layers, by the names in the variant's graph."""
    parameters = {key: value.detach() for key, value in captured.module.named_parameters(remove_duplicate=False)}
    own, tensors = {layer.name: layer for layer in graph.layers if layer.weight}, dict[str, str]()
    for layer in captured.graph.layers:
        twin = own.get(layer.name)
        if twin is None or layer.weight is None:
            continue
        if not torch.equal(parameters[layer.weight], weights.parameter(str(twin.weight))):
            got = f"the weight of {layer.name} in the variant {name} is not the network's"
            raise ModelError(got, "a form of the same network", "share the modules, so that parameters have the same names and values")
        sides = zip(layer.inputs, twin.inputs, strict=True)
        tensors |= {captured.graph.source(mine): graph.source(theirs) for mine, theirs in sides}
        tensors[layer.output] = twin.output
    return weights.for_graph(captured.graph, parameters, tensors)


def _rename(candidates: Candidates, path: Path, graph: Graph, variant: Variant, example: Feeds) -> None:
    """Give inputs and outputs their names in the file. Raises ContractError where it then answers otherwise."""
    before = candidates.open(path, threads=1, example=example).run(example)
    rename(path, variant.names, variant.outputs or graph.outputs)
    renamed = {variant.names.get(name, name): array for name, array in example.items()}
    after = candidates.open(path, threads=1, example=renamed).run(renamed)
    if not all(np.array_equal(one, other) for one, other in zip(before, after, strict=True)):
        raise ContractError(f"{path.name} answers otherwise under its new names", "the same bits", "report this network")


def _silent(_: int) -> None:
    """Progress of what takes a second."""
