"""The file that takes the place of the user's own ONNX file, and the two side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import ContractError
from quantkit.core.run_files import DROP_IN
from quantkit.export.float_onnx import input_types
from quantkit.export.joining import write_in_place
from quantkit.loading.from_onnx.opening import data_files, file_bytes
from quantkit.loading.from_onnx.rest import OnnxFile
from quantkit.runs.result import VariantRow
from quantkit.runs.workbench import Workbench
from quantkit.runtimes.evaluation import Feeds
from quantkit.runtimes.timing import Timing
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, example_feeds
from quantkit.stages.verify import Verified
from quantkit.verification.verify import Latency, time_sessions


def write_drop_in(
    bench: Workbench, request: Request, network: Network, candidates: Candidates, verified: Verified
) -> tuple[VariantRow, ...]:
    """drop-in.onnx in the run directory: the plan's file under the names of the user's file, with what stands behind the network there.

    Measured beside the user's file itself, which is its float file. Nothing for a network that came from elsewhere. Raises ContractError
    where it answers otherwise than the plan's file.
    """
    file = request.model.file
    if file is None:
        return ()
    path, final = bench.store.folder / f"{DROP_IN}.onnx", verified.files.onnx
    if data_files(final):
        bench.progress.note(f"{path.name} is not written: {final.name} keeps its weights in another file")
        return ()
    with bench.timed("drop-in", f"write {path.name}"):
        example = example_feeds(request, network)
        given = {file.inputs.get(name, name): array for name, array in example.items()}
        shown = candidates.folder / f"{DROP_IN}-shown.onnx"
        write_in_place(final, file, shown, shows_read=True)
        wanted = candidates.open(final, threads=1, example=example).run(example)
        found = candidates.open(shown, threads=1, example=given).run(given)[: len(wanted)]
        same = all(np.array_equal(one, other) for one, other in zip(wanted, found, strict=True))
        if not same and candidates.runtime.SHOWS_CODES:
            raise ContractError(f"{path.name} answers otherwise than {final.name}", "the same bits", "report this network")
        write_in_place(final, file, path)
        latency = _time(bench, request, candidates, file, path, given)
    ratio = path.stat().st_size / file_bytes(file.path)
    agrees = float(same)
    return (VariantRow(DROP_IN, path, file.path.resolve(), ratio, latency, not verified.executed.mismatches, agrees, agrees),)


def _time(bench: Workbench, request: Request, candidates: Candidates, file: OnnxFile, path: Path, given: Feeds) -> Latency | None:
    """The user's file and the drop-in, timed; None for inputs of another type."""
    types = input_types(file.path)
    if not candidates.runtime.TIMES or any(types.get(name) != array.dtype.name for name, array in given.items()):
        return None
    found: Latency = bench.device.run(time_beside, [file.path, path], candidates.timing(request.options.threads, given))
    return found


def time_beside(paths: Sequence[Path], _: Path, timing: Timing) -> Latency:
    """A task of a `Device`: the second file beside the first, on one item, or on the batch that the first is fixed to."""
    theirs = timing.open(paths[0])
    timing = replace(timing, feeds=_repeated(timing.feeds, theirs.batch or 1))
    return time_sessions([theirs, timing.open(paths[1])], timing.feeds)[1]


def _repeated(given: Feeds, items: int) -> Mapping[str, NDArray[np.generic]]:
    return {name: array if len(array) == items else np.repeat(array[:1], items, axis=0) for name, array in given.items()}
