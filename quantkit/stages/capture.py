"""The captured network, its float file and its program: what every other stage rests on."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.export import ExportedProgram

from quantkit.calibration.equalization import equalize
from quantkit.core.environment import versions
from quantkit.core.errors import ContractError
from quantkit.core.sources import code_of
from quantkit.core.store import fingerprint, write_atomically
from quantkit.data import Batch
from quantkit.export.float_onnx import export_float
from quantkit.export.onnx_file import saved
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.runs.workbench import Workbench
from quantkit.runtimes.evaluation import Feeds, feeds
from quantkit.sensitivity.passes.batches import cached_batch, network_batches
from quantkit.targets import find_target

if TYPE_CHECKING:
    from quantkit.loading import LoadedModel
    from quantkit.settings.request import Request

EQUALIZATION_ITEMS = 64


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


def capture_network(bench: Workbench, request: Request) -> Network:
    """Capture, and keep the float file and the program once for all jobs of this run directory that capture the same."""
    target, file = find_target(request.options.target), request.model.file
    if file is not None and file.rest is not None:
        kept, read = ", ".join(file.rest.kinds), ", ".join(file.outputs)
        bench.progress.note(f"behind the network {kept} stays as it is in {file.path.name}; answers are judged on what it reads: {read}")
    with bench.timed("capture", "capture the graph"):
        captured = capture(network_of(request.model), request.example or {}, outputs=request.model.outputs)
    # The digest stands for the weights; what is computed with them, only the graph says.
    key = fingerprint(request.model.digest, captured.module.code, versions(), code_of(__name__), target.OPSET)
    if request.options.equalization != "none":
        items = request.splits.calibration.first(EQUALIZATION_ITEMS)
        key = fingerprint(key, request.options.equalization, items.fingerprint())
        with bench.progress.stage("equalize channels", len(items), "items") as advance:
            batches = network_batches(captured.graph, items, cached_batch(captured.graph))
            captured = equalize(captured, advanced(batches, advance))
    float_file = bench.store.folder / f"float-{key[:8]}.onnx"
    if not float_file.exists():
        with bench.timed("export", "export the float file"), saved(float_file) as temporary:
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
        temporary.write_bytes(stored.getbuffer())


def network_of(model: LoadedModel) -> nn.Module | ExportedProgram:
    """What of the model is captured: its program where it has one."""
    network = model.program or model.module
    if network is None:
        raise ContractError(f"model {model.name} was loaded as nothing", "a module or a program")
    return network


def example_feeds(request: Request, network: Network) -> Feeds:
    """One item (or one fixed batch) as the files are fed while they are timed."""
    graph = network.captured.graph
    return feeds(next(network_batches(graph, request.splits.calibration, 1)), graph.inputs)


def advanced(batches: Iterator[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    """The batches; each counts as done when the next is asked for."""
    for batch in batches:
        yield batch
        advance(batch.size)
