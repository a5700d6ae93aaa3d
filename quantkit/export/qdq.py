"""Emit: the float file + a placement + weight codes → a quantized file, Q/DQ inserted by name (0.1 s a plan).

One QuantizeLinear a tensor, one DequantizeLinear a reader. Weight codes lie in the file at their width (`storage.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.errors import ContractError
from quantkit.core.graph import Graph, Layer
from quantkit.core.numerics.affine import QParams, bias_codes
from quantkit.core.spec import FloatFormat, Format, PerBlock, QuantSpec
from quantkit.export.editor import Editor, array_of, code_type, read
from quantkit.export.float16 import compute_in_half
from quantkit.export.float_onnx import product_name
from quantkit.export.onnx_file import opened, save
from quantkit.export.storage import from_half, in_blocks, make_codes, make_float
from quantkit.quantization.weights import QuantizedWeight, WeightBank
from quantkit.targets.placement import Barrier, Placement, Slot

LOWEST = np.array(-3e38, np.float32)  # max(x, this) is x, and no pattern of the runtime sees through it
CONTRIBUTED = "com.microsoft"  # ONNX Runtime's own operators
FLOAT_SUMS, INTEGER_SUMS = 1, 4  # accuracy levels of MatMulNBits: activations as they are, or in int8 by blocks
NOTE = "mixed precision; narrow weight codes are unpacked while the session loads"


@dataclass(frozen=True, slots=True)
class Emitted:
    """Names in the file: the codes that each (layer, slot) reads, and what each layer writes (codes, or a float value).

    A layer that quantizes in each call reads and writes float values.
    """

    inputs: Mapping[Slot, str]
    outputs: Mapping[str, str]


def emit(float_file: Path, graph: Graph, placement: Placement, bank: WeightBank, path: Path) -> Emitted:
    """Write the quantized network to `path` (the caller renames). Raises ContractError for a name that the float file lacks."""
    with opened(float_file) as model:
        editor = Editor(model.graph)
        layers = [layer for layer in graph.layers if layer.name in placement.schemes]
        tied = frozenset(str(layer.weight) for layer in graph.layers if layer.is_table and placement.made)
        islands = {node: layer.name in (placement.float32 or ()) for layer in graph.layers for node in _nodes(editor, layer)}
        for layer in layers:
            if layer.kind == "global_pool" and isinstance(placement.schemes[layer.name].activations, QuantSpec):
                editor.become(editor.producer(layer.node), "GlobalAveragePool", 1)
        for name in placement.pools:
            _hold_in_front(editor, name)
        for layer in layers:  # outputs first, so that inputs find them dequantized
            if layer.name in placement.outputs:
                _quantize_output(editor, layer, bank.output_qparams(layer))
        for layer in graph.layers:
            if layer.bias and layer.name in {**placement.schemes, **placement.dynamic, **placement.floating}:
                _move_bias(editor, layer, bank)
        for layer in layers:
            _quantize_inputs(editor, layer, placement, bank)
            if layer.weight:
                _store_weight(editor, layer, placement, bank, tied)
        in_call: dict[str, str] = {}
        for layer in graph.layers:
            if layer.name in placement.floating:
                _store_weight(editor, layer, placement, bank, tied)
            elif layer.name in placement.stored:
                _store_float_weight(editor, layer, placement, bank, tied)
            elif layer.name in placement.dynamic:
                in_call[layer.name] = _quantize_in_call(editor, layer, placement, bank, tied)
        for name in placement.sums:
            editor.become(editor.producer(name), "Sum", 2)
        for (name, slot), barrier in placement.barriers.items():
            _set_barrier(editor, _operation(editor, name), slot, barrier)
        sources = {entry.node: entry.inputs for entry in graph.unsupported} | {layer.node: layer.inputs for layer in graph.layers}
        for node, inputs in sources.items():
            if node in placement.unscaled:
                _scale_afterwards(editor, node, bank.activations[graph.source(inputs[0])])
        if placement.float32 is not None:
            compute_in_half(model, editor, islands)
        editor.tidy()
        model.metadata_props["quantkit"] = NOTE
        save(model, path)
        return _names(editor, graph, placement, in_call)


def _quantize_output(editor: Editor, layer: Layer, qparams: QParams) -> None:
    value = editor.value(layer.output)
    readers = list(value.uses())
    editor.quantize(value, qparams)
    for reader, slot in readers:
        editor.dequantize(value, reader, slot)
    editor.dequantize_output(value)


def _quantize_inputs(editor: Editor, layer: Layer, placement: Placement, bank: WeightBank) -> None:
    node = _operation(editor, layer.node)
    for slot in range(len(layer.inputs)):
        value = read(node, slot)
        if (layer.name, slot) in placement.inputs and not _is_dequantized(value):
            qparams = bank.input_qparams(layer, slot, placement.schemes[layer.name].activations)
            editor.quantize(value, qparams)
            editor.dequantize(value, node, slot, qparams.spec)


def _move_bias(editor: Editor, layer: Layer, bank: WeightBank) -> None:
    """The bias that was chosen together with the layer's codes, if one was, in place of the float network's."""
    moved, node = bank.moved_bias(layer), _operation(editor, layer.node)
    if moved is None:
        return
    node, slots = (editor.producer(layer.node), range(2)) if node.op_type == "MatMul" else (node, range(2, 3))
    for slot in slots:
        value = node.inputs[slot]
        if value is not None and value.const_value is not None:
            editor.rewrite(value, moved.cpu().numpy())


def _store_weight(editor: Editor, layer: Layer, placement: Placement, bank: WeightBank, tied: frozenset[str]) -> None:
    node, in_float = _operation(editor, layer.node), layer.name in placement.floating
    spec = (placement.floating if in_float else placement.schemes)[layer.name].weights
    assert spec is not None
    quantized = bank.weight(layer, spec, in_float=in_float)
    old, codes, axis = _lying(node, layer, quantized.codes)
    scale, blocks = quantized.qparams.scale, quantized.qparams.spec.granularity
    stem = f"{layer.weight}_w{spec.label}"
    if isinstance(spec, FloatFormat):
        stem = f"{layer.weight}_{spec.name}"
        stored = editor.constant(f"{stem}_codes", codes.astype(code_type(spec)))
    else:
        stored = _codes(editor, stem, codes, axis, spec, placement, node, turned=layer.weight in tied and axis == 1)
    if isinstance(blocks, PerBlock):
        scales = scale.numpy() if axis == layer.weight_axis else scale.numpy().T
        inputs = [stored, editor.constant(f"{stem}_scale", np.ascontiguousarray(scales))]
        attributes = {"axis": 1 - axis, "block_size": blocks.size}
    else:  # QGemm wants the zero point spelled out; all layers of one width share it.
        zeros = editor.constant(f"zeros_{codes.shape[axis]}", np.zeros(codes.shape[axis], _weight_type(spec, quantized, placement)))
        inputs, attributes = [stored, editor.constant(f"{stem}_scale", scale.numpy()), zeros], {"axis": axis}
    node.replace_input_with(1, editor.insert("DequantizeLinear", inputs, f"{node.name}_weight", node, old, attributes=attributes))
    if in_float:
        return
    if layer.name in placement.float_bias:
        if node.op_type == "MatMul":
            _spread_bias(editor, layer)
    elif layer.bias and layer.name not in placement.outputs:
        bias = bank.bias(layer)
        assert bias is not None
        _store_bias(editor, layer, node, bias, scale, bank.input_qparams(layer, 0).scale)


def _store_float_weight(editor: Editor, layer: Layer, placement: Placement, bank: WeightBank, tied: frozenset[str]) -> None:
    """The weight of a layer that computes in float, made float32 while the session loads; the runtime would not fold a DequantizeLinear."""
    node, scheme = _operation(editor, layer.node), placement.stored[layer.name]
    if layer.is_table and isinstance(scheme.weights, QuantSpec):
        _gather_codes(editor, node, layer, scheme.weights, placement, bank.under(layer, scheme))
        return
    if isinstance(scheme.weights, QuantSpec) and isinstance(scheme.weights.granularity, PerBlock):
        _multiply_blocks(editor, node, layer, bank.under(layer, scheme), FLOAT_SUMS)
        return
    if isinstance(scheme.weights, QuantSpec):
        spec, stem = scheme.weights, f"{layer.weight}_w{scheme.weights.label}"
        quantized = bank.under(layer, scheme)
        values, scale = quantized.codes, quantized.qparams.scale
    else:
        values, scale = bank.stored_weight(layer, scheme), None
    _, lying, axis = _lying(node, layer, values)
    turned = layer.weight in tied and axis == 1  # a matrix that is a table too lies there once, as the table has it
    lying, axis = (lying.T, 0) if turned else (lying, axis)
    if scale is None:
        weight = from_half(editor, f"{layer.weight}_w16", lying, node)
    else:
        spread = scale.numpy().reshape([-1 if place == axis else 1 for place in range(lying.ndim)])
        weight = make_float(editor, stem, lying.astype(np.int8), spread, spec, placement, node)
    node.replace_input_with(layer.weight_slot, editor.fold("Transpose", [weight], node) if turned else weight)


def _gather_codes(editor: Editor, node: ir.Node, layer: Layer, spec: QuantSpec, placement: Placement, quantized: QuantizedWeight) -> None:
    """Rows of codes, made float by the scales of those rows: no more of the table becomes float than is asked for."""
    stem, indices = f"{layer.weight}_w{spec.label}", read(node, 1)
    _, codes, axis = _lying(node, layer, quantized.codes)
    stored = make_codes(editor, stem, codes.astype(np.int8), axis, spec, placement, node)
    scales = editor.constant(f"{stem}_scale", quantized.qparams.scale.numpy()[:, None])
    rows = editor.insert("Gather", [stored, indices], f"{node.name}_rows", node)
    real = editor.insert("Cast", [rows], f"{node.name}_real", node, attributes={"to": ir.DataType.FLOAT})
    node.replace_input_with(0, real)
    node.replace_input_with(1, editor.insert("Gather", [scales, indices], f"{node.name}_scales", node))
    editor.become(node, "Mul", 2)


def _quantize_in_call(editor: Editor, layer: Layer, placement: Placement, bank: WeightBank, tied: frozenset[str]) -> str:
    """MatMulInteger on what DynamicQuantizeLinear makes, its sums made real by both scales; the runtime has one kernel for all of it.

    The name of what it reads: the exporter drops operations that do nothing, and a name with each.
    """
    node, spec = _operation(editor, layer.node), placement.dynamic[layer.name].weights
    assert isinstance(spec, QuantSpec)
    quantized, stem = bank.weight(layer, spec), f"{layer.weight}_w{spec.label}"
    if isinstance(spec.granularity, PerBlock):
        source = read(node, 0)
        _multiply_blocks(editor, node, layer, quantized, INTEGER_SUMS)
        return str(source.name)
    _, codes, axis = _lying(node, layer, quantized.codes)
    stored = _codes(editor, stem, codes, axis, spec, placement, node, turned=layer.weight in tied and axis == 1)
    source = read(node, 0)
    given, scale, zero_point = editor.quantize_in_call(source, f"{node.name}_call")
    sums = editor.insert("MatMulInteger", [given, stored, zero_point], f"{node.name}_sums", node)
    real = editor.insert("Cast", [sums], f"{node.name}_real", node, attributes={"to": ir.DataType.FLOAT})
    own = editor.constant(f"{stem}_scale", quantized.qparams.scale.numpy())
    scales = editor.insert("Mul", [scale, own], f"{node.name}_scales", node)
    for slot, value in enumerate((real, scales)):
        node.replace_input_with(slot, value)
    editor.become(node, "Mul", 2)
    return str(source.name)


def _multiply_blocks(editor: Editor, node: ir.Node, layer: Layer, quantized: QuantizedWeight, accuracy_level: int) -> None:
    """ONNX Runtime's MatMulNBits, which reads the codes as they lie there, also in memory."""
    spec, (rows, products) = quantized.qparams.spec, quantized.codes.shape
    assert isinstance(spec, QuantSpec) and isinstance(spec.granularity, PerBlock)
    _lying(node, layer, quantized.codes)
    stem, size = f"{layer.weight}_w{spec.label}", spec.granularity.size
    codes = editor.constant(f"{stem}_codes", in_blocks(quantized.codes.numpy().astype(np.int8), spec.bits, size))
    inputs = [read(node, 0), codes, editor.constant(f"{stem}_scale", quantized.qparams.scale.numpy())]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    attributes = {"K": products, "N": rows, "bits": spec.bits, "block_size": size, "accuracy_level": accuracy_level}
    editor.exchange(node, "MatMulNBits", [*inputs, *([None, None, bias] if bias is not None else [])], attributes, CONTRIBUTED)


def _weight_type(spec: Format, quantized: QuantizedWeight, placement: Placement) -> Any:
    """Of the codes that a DequantizeLinear is given: those in the file, where they are computed with as they lie there."""
    plain = isinstance(spec, QuantSpec) and placement.storage[spec.bits] == "plain"
    return code_type(quantized.qparams.spec, narrow=plain)


def _codes(
    editor: Editor, stem: str, codes: NDArray[np.float32], axis: int, spec: QuantSpec, placement: Placement, node: ir.Node, *, turned: bool
) -> ir.Value:
    """The codes as the kernel reads them; of a matrix that is a table too (`turned`), they lie in the file once, as the table has them."""
    lying = codes.astype(code_type(spec))
    if turned:
        return editor.fold("Transpose", [make_codes(editor, stem, lying.T, 0, spec, placement, node)], node)
    return make_codes(editor, stem, lying, axis, spec, placement, node)


def _lying(node: ir.Node, layer: Layer, weight: Tensor) -> tuple[ir.Value, NDArray[np.float32], int]:
    """The weight in the file, this one as it lies there, and the axis of its output channels. Raises ContractError where they differ."""
    old = read(node, layer.weight_slot)
    if old.const_value is None:
        raise ContractError(f"the weight of {layer.name} is not a constant in the float file", "an initializer", "report this network")
    values, axis = weight.numpy(), layer.weight_axis
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)):
        values, axis = values.T, 1
    if tuple(old.const_value.shape) != values.shape:
        got = f"the weight of {layer.name} is {old.const_value.shape} in the file"
        raise ContractError(got, f"{values.shape}", "report this network")
    return old, values, axis


def _store_bias(editor: Editor, layer: Layer, node: ir.Node, bias: Tensor, weight_scale: Tensor, input_scale: Tensor) -> None:
    """Without a Q behind it, a Gemm with a float bias would run in float: the runtime must find int32 codes.

    One without a bias needs none: the exporter drops a bias of zeros.
    """
    if len(node.inputs) < 3:
        return
    steps = bias_codes(bias, weight_scale, input_scale).numpy().astype(np.int32)
    codes = editor.constant(f"{layer.bias}_codes", steps)
    scale = editor.constant(f"{layer.bias}_scale", (input_scale * weight_scale).numpy())
    bias_value = editor.insert("DequantizeLinear", [codes, scale], f"{node.name}_bias", node, read(node, 2), attributes={"axis": 0})
    node.replace_input_with(2, bias_value)


def _spread_bias(editor: Editor, layer: Layer) -> None:
    """A bias of three axes: where all shapes are fixed, the runtime would make a Gemm of the MatMul and an Add of one axis."""
    node = editor.producer(layer.node)
    for slot, value in enumerate(node.inputs):
        if value is not None and value.const_value is not None:
            node.replace_input_with(slot, editor.constant(f"{layer.bias}_spread", array_of(value).reshape(1, 1, -1)))


def _set_barrier(editor: Editor, node: ir.Node, slot: int, barrier: Barrier) -> None:
    """A DequantizeLinear with a vector of equal scales, or a Max that changes nothing: the runtime fuses neither."""
    value = read(node, slot)
    channels = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    if barrier == "vector" and isinstance(channels, int) and _is_dequantized(value):
        codes, scale, zero_point = _dequantizer(value)
        scales = editor.constant(f"{node.name}_scales", np.full(channels, array_of(scale)))
        zeros = editor.constant(f"{node.name}_zero_points", np.full(channels, array_of(zero_point)))
        guarded = editor.insert("DequantizeLinear", [codes, scales, zeros], f"{node.name}_vector", node, value, attributes={"axis": 1})
        node.replace_input_with(slot, guarded)
        editor.remove_unread(value)
    else:
        guarded = editor.insert("Max", [value, editor.constant("lowest", LOWEST)], f"{node.name}_barrier", node, value)
        node.replace_input_with(slot, guarded)


def _hold_in_front(editor: Editor, name: str) -> None:
    """A Max that changes nothing behind the operation: the runtime moves no quantizer over it."""
    value, node = editor.value(name), editor.producer(name)
    readers = list(value.uses())
    guard = ir.node("Max", [value, editor.constant("lowest", LOWEST)], name=f"{name}_held")
    editor.take_over(value, guard, node, "pooled")
    for reader, slot in readers:
        reader.replace_input_with(slot, guard.outputs[0])


def _scale_afterwards(editor: Editor, name: str, qparams: QParams) -> None:
    """mean((codes − zero_point) · scale) becomes mean(codes − zero_point) · scale."""
    average, node = editor.value(name), editor.producer(name)
    if not _is_dequantized(read(node, 0)):  # a mover lies between
        source = read(node, 0)
        editor.quantize(source, qparams)
        editor.dequantize(source, node, 0)
    value = read(node, 0)
    codes, scale, zero_point = _dequantizer(value)
    one = editor.constant("one", np.array(1, np.float32))
    node.replace_input_with(0, editor.insert("DequantizeLinear", [codes, one, zero_point], f"{name}_steps_input", node, value))
    editor.scale_behind(average, scale)
    editor.remove_unread(value)


def _names(editor: Editor, graph: Graph, placement: Placement, in_call: Mapping[str, str]) -> Emitted:
    inputs, outputs = {}, {}
    for layer in graph.layers:
        if layer.name in placement.dynamic:
            inputs[layer.name, 0], outputs[layer.name] = in_call[layer.name], str(editor.value(layer.node).name)
        if layer.name not in placement.schemes:
            continue
        for slot in (slot for slot in range(len(layer.inputs)) if (layer.name, slot) in placement.inputs):
            inputs[layer.name, slot] = str(_dequantizer(read(_operation(editor, layer.node), slot))[0].name)
        coded = layer.name in placement.outputs
        outputs[layer.name] = str((editor.codes(editor.value(layer.output)) if coded else editor.value(layer.node)).name)
    return Emitted(inputs, outputs)


def _operation(editor: Editor, name: str) -> ir.Node:
    """The operation of that node: a linear layer over tokens is a MatMul in front of the Add that keeps its name."""
    node = editor.producer(name)
    if node.op_type == "Add":
        products = [value.producer() for value in node.inputs if value is not None]
        node = next((made for made in products if made is not None and made.name == product_name(name)), node)
    return node


def _nodes(editor: Editor, layer: Layer) -> set[ir.Node]:
    """The nodes of a layer in the file: its operation, its bias where that has a node of its own, its activation functions."""
    found, waiting = {_operation(editor, layer.node)}, [editor.producer(layer.output)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [made for value in node.inputs if value is not None and (made := value.producer()) is not None]
    return found


def _is_dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _dequantizer(value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes, scale and zero point behind a dequantized `value`."""
    producer = value.producer()
    assert producer is not None and producer.op_type == "DequantizeLinear"
    return read(producer, 0), read(producer, 1), read(producer, 2)
