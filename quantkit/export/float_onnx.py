"""The float graph as ONNX, by torch's exporter: made once, and every plan's file is cut from it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from quantkit.core.errors import CaptureError, ContractError
from quantkit.core.graph import Graph
from quantkit.export.onnx_file import opened, save
from quantkit.network.capture import quiet
from quantkit.network.captured import Captured

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
    for value, name in zip(graph.outputs, captured.graph.outputs, strict=True):
        if name not in outputs:
            value.name = name
    outputs = {value.name for node in graph for value in node.outputs}
    lost = [layer.name for layer in captured.graph.layers if layer.node not in outputs or layer.output not in outputs]
    if lost:
        raise ContractError(f"the exporter lost the names of {', '.join(lost[:5])}", "every layer found in the file", "report this network")
    _name_nodes(graph, captured.graph)
    _fold_transposed_weights(graph)
    forget_traces(graph)
    save(program.model, path)


def forget_traces(graph: ir.Graph) -> None:
    """Remove what torch's exporter notes of where a graph came from: the paths and lines of the user's machine."""
    for node in graph:
        for key in TRACES:
            node.metadata_props.pop(key, None)
    made = [value for node in graph for value in node.outputs]
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values(), *made]:
        value.metadata_props.clear()


def read_parameters(path: Path, graph: Graph) -> dict[str, Tensor]:
    """The weights and biases of the layers, by parameter name, as the network had them. Raises ContractError where one is not a constant.

    They are found through the layers' nodes: the exporter merges equal initializers and transposes weights over tokens.
    """
    with opened(path) as model:
        produced = {str(value.name): node for node in model.graph for value in node.outputs}
        found: dict[str, Tensor] = {}
        for layer in graph.layers:
            if not layer.weight:
                continue
            last = produced[layer.node]
            node = next((made for made in map(_producer, last.inputs) if made is not None and made.name == product_name(layer.node)), last)
            weight = _constant(node.inputs[layer.weight_slot], layer.name)
            plain = layer.is_table or node.op_type == "Conv" or (node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)))
            found[layer.weight] = weight if plain else weight.T.contiguous()
            if layer.bias:
                read = last.inputs if node is not last else node.inputs[2:]
                biases = [value for value in read if value is not None and value.const_value]
                channels = layer.weight_shape[layer.weight_axis]
                found[layer.bias] = _constant(biases[0], layer.name) if biases else torch.zeros(channels)
        return found


def input_types(path: Path) -> dict[str, str]:
    """By input of the file the name of its numpy type."""
    with opened(path) as model:
        return {str(value.name): value.dtype.numpy().name for value in model.graph.inputs if value.dtype is not None}


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _constant(value: ir.Value | None, layer: str) -> Tensor:
    if value is None or value.const_value is None:
        raise ContractError(f"a parameter of {layer} is not a constant in the float file", "an initializer", "report this network")
    return torch.from_numpy(value.const_value.numpy().copy())


def _name_nodes(target: ir.Graph, graph: Graph) -> None:
    """Name each layer's node after it: where the exporter rewrites one (it drops a bias of zeros), only the value keeps its name.

    A linear layer over tokens becomes a MatMul and the Add that keeps its name: the product is named after it.
    """
    produced = {value.name: node for node in target for value in node.outputs}
    for layer in graph.layers:
        node = produced[layer.node]
        node.name = f"node_{layer.node}"
        if layer.kind == "linear" and node.op_type == "Add":
            for value in node.inputs:
                product = value.producer() if value is not None else None
                if product is not None and product.op_type == "MatMul":
                    product.name = product_name(layer.node)


def _fold_transposed_weights(target: ir.Graph) -> None:
    """The exporter leaves a large weight that several linear layers share behind a Transpose each: it is stored transposed, once."""
    transposed: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    for node in list(target):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.name not in target.initializers or source.const_value is None:
            continue
        array = source.const_value.numpy()
        order = node.attributes.get_ints("perm", tuple(range(array.ndim))[::-1])
        key = (str(source.name), tuple(order))
        if key not in transposed:
            name = str(node.outputs[0].name)
            value = ir.Value(name=f"{name}_stored", const_value=ir.tensor(array.transpose(order).copy(), name=f"{name}_stored"))
            value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
            target.register_initializer(value)
            transposed[key] = value
        node.outputs[0].replace_all_uses_with(transposed[key])
        target.remove(node, safe=True)
    for name, _ in transposed:
        if not target.initializers[name].uses() and not target.initializers[name].is_graph_output():
            del target.initializers[name]


def product_name(node: str) -> str:
    """The name of the MatMul in front of the Add that bears the name of a linear layer over tokens."""
    return f"node_{node}_product"
