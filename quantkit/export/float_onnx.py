"""The float graph as ONNX, by torch's exporter: made once, and every plan's file is cut from it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch

from quantkit.capture import Captured
from quantkit.errors import ContractError

TRACES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes", "namespace")


def export_float(captured: Captured, path: Path, opset: int) -> None:
    """Write the float network to `path`. Every layer's node keeps its name; nothing of the author's source stays in the file.

    Raises ContractError if the exporter lost the name of a layer.
    """
    with _quiet():
        program = torch.onnx.export(captured.program, dynamo=True, opset_version=opset, optimize=True, verbose=False)
    assert program is not None
    model = program.model
    outputs = {value.name for node in model.graph for value in node.outputs}
    lost = [layer.name for layer in captured.graph.layers if layer.node not in outputs or layer.output not in outputs]
    if lost:
        raise ContractError(f"the exporter lost the names of {', '.join(lost[:5])}", "every layer found in the file", "report this network")
    for node in model.graph:
        for key in TRACES:
            node.metadata_props.pop(key, None)
    for value in [*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs)]:
        value.metadata_props.clear()
    ir.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on stdout and by logging; both would end in our results."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
