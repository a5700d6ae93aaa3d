"""A copy of an emitted file that also answers with its codes, so that every layer can be compared given its own inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantkit.core.errors import ModelError
from quantkit.export.onnx_file import opened, save


def expose(path: Path, names: Iterable[str], watched: Path) -> None:
    """Write `path` with the values of those names as further graph outputs. Raises ModelError where it lacks one."""
    with opened(path) as model:
        values = {str(value.name): value for node in model.graph for value in node.outputs}
        present = {str(value.name) for value in model.graph.outputs}
        for name in dict.fromkeys(names):
            if name not in values and name not in present:
                raise ModelError(f"{path} has no value {name!r}", "the file that its plan writes", "`quantkit export RUN` writes it again")
            if name not in present:
                model.graph.outputs.append(values[name])
        save(model, watched)
