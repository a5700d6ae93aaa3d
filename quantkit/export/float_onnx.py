"""The float graph as ONNX, by torch's exporter: made once, and every plan's file is cut from it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch

from quantkit.capture import Captured, quiet
from quantkit.errors import CaptureError, ContractError
from quantkit.graph import Graph

TRACES = (
    "pkg.torch.onnx.stack_trace",
    "pkg.torch.onnx.fx_node",
    "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.onnx.name_scopes",
    "namespace",
)
EXPLAINED = "<class '"  # the exporter's messages list the classes of what went wrong, the first cause first


def export_float(captured: Captured, path: Path, opset: int) -> None:
    """Write the float network to `path`. Every layer's node keeps its name; nothing of the author's source stays in the file.

    Raises CaptureError for an operation that the exporter cannot write, ContractError if it lost the name of a layer.
    """
    try:
        with quiet():
            program = torch.onnx.export(captured.program, dynamo=True, opset_version=opset, optimize=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        lines = [line.partition(">: ")[2] for line in str(error).splitlines() if line.startswith(EXPLAINED)]
        reason = lines[0] if lines else str(error).splitlines()[0]
        raise CaptureError(f"torch.onnx.export refuses the network: {reason[:300]}", "what it can write", "replace it") from error
    assert program is not None
    graph = program.model.graph
    outputs = {value.name for node in graph for value in node.outputs}
    lost = [layer.name for layer in captured.graph.layers if layer.node not in outputs or layer.output not in outputs]
    if lost:
        raise ContractError(f"the exporter lost the names of {', '.join(lost[:5])}", "every layer found in the file", "report this network")
    for value, name in zip(graph.outputs, captured.graph.outputs, strict=True):
        if name not in outputs:
            value.name = name
    _name_products(graph, captured.graph)
    for node in graph:
        for key in TRACES:
            node.metadata_props.pop(key, None)
    for value in [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]:
        value.metadata_props.clear()
    ir.save(program.model, path)


def _name_products(target: ir.Graph, graph: Graph) -> None:
    """A linear layer over tokens becomes a MatMul and the Add that keeps its name: the product is named after it."""
    produced = {value.name: node for node in target for value in node.outputs}
    for layer in graph.layers:
        node = produced[layer.node]
        if layer.kind == "linear" and node.op_type == "Add":
            for value in node.inputs:
                product = value.producer() if value is not None else None
                if product is not None and product.op_type == "MatMul":
                    product.name = product_name(layer.node)


def product_name(node: str) -> str:
    """The name of the MatMul in front of the Add that bears the name of a linear layer over tokens."""
    return f"node_{node}_product"
