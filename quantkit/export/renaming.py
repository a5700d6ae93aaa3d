"""Inputs and outputs of a file under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from quantkit.core.store import write_atomically
from quantkit.export.editor import opened


def rename(path: Path, inputs: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Write the file again with these names: `inputs` by their present ones, as far as they are to change, `outputs` in order."""
    with opened(path) as model, write_atomically(path) as temporary:
        for value in model.graph.inputs:
            value.name = inputs.get(str(value.name), value.name)
        for value, name in zip(model.graph.outputs, outputs, strict=True):
            value.name = name
        ir.save(model, temporary)
