"""Inputs and outputs of a file under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantkit.export.onnx_file import opened, save, saved


def rename(path: Path, inputs: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Write the file again with these names: `inputs` by their present ones, as far as they are to change, `outputs` in order."""
    with opened(path) as model, saved(path) as temporary:
        for value in model.graph.inputs:
            value.name = inputs.get(str(value.name), value.name)
        for value, name in zip(model.graph.outputs, outputs, strict=True):
            value.name = name
        save(model, temporary)
