"""The whole job as one call: `quantkit.allocate`, `quantkit.inspect` and `quantkit.gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit import gating, pipeline
from quantkit.core.progress import Progress, Silent
from quantkit.runs.result import Result
from quantkit.settings.arguments import Arguments, Gating, Inspected, given, spelled_out
from quantkit.settings.request import Source, resolve_model

if TYPE_CHECKING:
    from typing_extensions import Unpack


@spelled_out(Arguments)
def allocate(model: Source, *, progress: Progress | None = None, **options: Unpack[Arguments]) -> Result:
    """The plan for `model` that keeps the promise, its file, and what was measured on that file.

    `model` is a module, a recipe, or whatever the command line takes; it is left as it was. `data` is a DataLoader, any iterable of
    batches, tensors (inputs, labels), a dataset, a path, or a mapping with `calibration`, `search` and `gate`. What is left out
    comes from the recipe or, for a network from a file, from the configuration file here, else from `quantkit.Options`.
    Raises RequestError for a wrong request; a promise that no plan keeps is not an error: see `Result.kept`.
    """
    return pipeline.allocate(model, options, progress or Silent())


@spelled_out(Inspected)
def inspect(model: Source, **options: Unpack[Inspected]) -> pipeline.Inspection:
    """The groups of `model` and what stays float, without a promise and, where the input's shape is known, without data."""
    return pipeline.inspect(*resolve_model(model, given(options)))


@spelled_out(Gating)
def gate(
    path: str | Path,
    *,
    float_file: str | Path | None = None, against: str | Path | None = None, lock: str | Path | None = None,
    progress: Progress | None = None, **options: Unpack[Gating],
) -> gating.Gated:  # fmt: skip
    """Whether a file, or a run directory's, keeps these conditions, or by default those of its lock file: see `Gated.kept`.

    Takes any ONNX file. A broken condition is not an error; raises RequestError for a wrong request.
    """
    files = {"float_file": float_file, "against": against, "lock": lock}
    others = {name: None if value is None else Path(value) for name, value in files.items()}
    return gating.gate(gating.ask(Path(path), options, **others), progress or Silent())
