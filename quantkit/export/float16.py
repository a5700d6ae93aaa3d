"""A float graph, Q/DQ already in it, made strongly typed: everything computes in half but given islands of float32.

The rule is that of `Placement`: a layer computes as it is told; a QuantizeLinear takes what it reads as it is, a DequantizeLinear
gives what its reader computes in, their scales being of that type; every other node computes in half unless all that it reads was made
in float32. So a Cast stands only where precision changes, and none behind a DequantizeLinear. Which operands of an operator may be half
(the sizes of a Resize may not), ONNX's own schemas say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from quantkit.core.errors import ContractError
from quantkit.core.numerics.affine import HALF_MAX
from quantkit.export.editor import Editor, array_of, read

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
ADMITS = "tensor(float16)"
TYPES = ("to", "dtype", "output_dtype")  # attributes that name the type of a result


def compute_in_half(model: ir.Model, editor: Editor, islands: Mapping[ir.Node, bool]) -> None:
    """Change the types of the graph of `editor`; inputs and outputs stay as they are, their Casts inside.

    `islands` tells of every node of a layer whether it is to stay float32.

    Raises ContractError for a network with control flow, whose inner graphs are not followed.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph, opset = model.graph, model.opset_imports.get("", 1)
    floats = {value for value in _values(graph) if value.dtype == FLOAT}
    wide = _in_float32(graph, islands, floats)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()):
            raise ContractError(f"{node.name} is a {node.op_type}", "a network without control flow for a target that computes in half")
        given, made = _admitted(node, opset)
        for slot, value in enumerate(node.inputs):
            if value in floats:
                wanted = HALF if node not in wide and given[slot] else FLOAT
                node.replace_input_with(slot, _typed(graph, editor, casts, value, wanted))
        if node not in wide:
            _retype(node, [value for value, admitted in zip(node.outputs, made, strict=True) if value in floats and admitted])
    for value in list(graph.outputs):
        if value in floats and value.dtype == HALF:
            _cast_output(editor, value)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _in_float32(graph: ir.Graph, islands: Mapping[ir.Node, bool], floats: set[ir.Value]) -> set[ir.Node]:
    """The nodes that compute in float32."""
    wide = {node for node, stays in islands.items() if stays}
    flowing: set[ir.Value] = set(graph.inputs)
    for node in graph:
        reads = [value for value in node.inputs if value in flowing and value in floats]
        if node.op_type == "QuantizeLinear":
            source = read(node, 0)
            if source.producer() in wide or source in graph.inputs:
                wide.add(node)
        elif node not in islands and node.op_type != "DequantizeLinear" and reads and all(value.producer() in wide for value in reads):
            wide.add(node)
        if any(value in flowing for value in node.inputs):
            flowing |= set(node.outputs)
    for node in graph:
        if node.op_type == "DequantizeLinear" and any(reader in wide for reader, _ in node.outputs[0].uses()):
            wide.add(node)
    return wide


def _admitted(node: ir.Node, opset: int) -> tuple[list[bool], list[bool]]:
    """Which inputs and outputs of the node may be half; none of an operator that ONNX does not define."""
    counts = len(node.inputs), len(node.outputs)
    if node.domain or not onnx.defs.has(node.op_type, opset):
        return [False] * counts[0], [False] * counts[1]
    schema = onnx.defs.get_schema(node.op_type, opset)
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    found = []
    for count, parameters in zip(counts, (schema.inputs, schema.outputs), strict=True):
        kinds = [parameters[min(place, len(parameters) - 1)].type_str for place in range(count)]  # the last may stand for many
        found.append([ADMITS in allowed.get(kind, (kind,)) for kind in kinds])
    return found[0], found[1]


def _typed(
    graph: ir.Graph, editor: Editor, casts: dict[tuple[ir.Value, ir.DataType], ir.Value], value: ir.Value, wanted: ir.DataType
) -> ir.Value:
    """`value` in the wanted type: itself, a twin of a constant, or behind a Cast that all readers share."""
    if value.dtype == wanted:
        return value
    if (value, wanted) not in casts:
        if value.const_value is not None:
            casts[value, wanted] = editor.constant(f"{value.name}_half", halves(array_of(value)))
        else:
            node = ir.node("Cast", [value], attributes={"to": int(wanted)}, name=f"{value.name}_to_{wanted.name.lower()}")
            cast = node.outputs[0]
            cast.name, cast.shape, cast.type = f"{value.name}_{wanted.name.lower()}", value.shape, ir.TensorType(wanted)
            producer = value.producer()
            if producer is not None:
                graph.insert_after(producer, node)
            else:
                graph.insert_before(graph[0], node)
            casts[value, wanted] = cast
    return casts[value, wanted]


def _retype(node: ir.Node, results: list[ir.Value]) -> None:
    """Let the node give halves, where an attribute says what it gives too."""
    for value in results:
        value.type = ir.TensorType(HALF)  # a new one: values made alike share theirs
    for name, attribute in list(node.attributes.items()):
        if results and name in TYPES and attribute.as_int() == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(HALF))
        elif results and node.op_type == "ConstantOfShape" and name == "value":
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(halves(attribute.as_tensor().numpy())))


def _cast_output(editor: Editor, value: ir.Value) -> None:
    """An output of the network goes out in float32, under its name."""
    node, producer = ir.node("Cast", [value], attributes={"to": int(FLOAT)}, name=f"{value.name}_to_float"), value.producer()
    assert producer is not None
    editor.take_over(value, node, producer, "half")
    node.outputs[0].type = ir.TensorType(FLOAT)


def halves(array: NDArray[Any]) -> NDArray[Any]:
    """The nearest halves. What is finite stays so: masks of the lowest float32 become the lowest half."""
    saturated = np.where(np.isfinite(array), np.clip(array, -HALF_MAX, HALF_MAX), array)
    return np.asarray(saturated.astype(np.float16))
