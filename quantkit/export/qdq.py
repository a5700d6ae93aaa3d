"""Emit: the float file + a placement + weight codes → a quantized file, Q/DQ inserted by name (0.1 s a plan).

One QuantizeLinear a tensor, one DequantizeLinear a reader. Weight codes lie in the file at their width: 8 bits as INT8, 4 bits as
INT4 behind a Cast that the runtime folds while the session loads, so that the int8 kernel runs on the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantkit.affine import QParams, bias_codes
from quantkit.errors import ContractError
from quantkit.graph import Graph, Layer
from quantkit.quantization import WeightBank
from quantkit.targets.placement import Barrier, Placement, Slot

LOWEST = np.array(-3e38, np.float32)  # max(x, this) is x, and no pattern of the runtime sees through it


@dataclass(frozen=True, slots=True)
class Emitted:
    """Names in the file: the codes that each (layer, slot) reads, and what each layer writes (codes, or a float value)."""

    inputs: Mapping[Slot, str]
    outputs: Mapping[str, str]


def emit(float_file: Path, graph: Graph, placement: Placement, bank: WeightBank, path: Path) -> Emitted:
    """Write the quantized network to `path` (the caller renames). Raises ContractError for a name that the float file lacks."""
    model = ir.load(float_file)
    emitter = _Emitter(model.graph, graph, placement, bank)
    emitter.run()
    model.metadata_props["quantkit"] = "mixed precision; 4-bit weight codes are unpacked while the session loads"
    ir.save(model, path)
    return emitter.names()


class _Emitter:
    """The graph in the making. `_codes` remembers the QuantizeLinear output of each value that has one."""

    def __init__(self, target: ir.Graph, graph: Graph, placement: Placement, bank: WeightBank) -> None:
        self._target, self._graph, self._placement, self._bank = target, graph, placement, bank
        self._values = {str(value.name): value for node in target for value in node.outputs}
        self._codes: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Outputs first, so that inputs find them dequantized; then what keeps float layers float."""
        layers = [layer for layer in self._graph.layers if layer.name in self._placement.schemes]
        for layer in layers:
            if layer.name in self._placement.outputs:
                self._quantize_output(layer)
        for layer in layers:
            self._quantize_inputs(layer)
            if layer.weight:
                self._store_weight(layer)
        for (name, slot), barrier in self._placement.barriers.items():
            self._set_barrier(self._node(self._graph.layer(name)), slot, barrier)
        for name in sorted(self._placement.unscaled):
            self._scale_afterwards(name)
        used = {value for node in self._target for value in node.inputs if value is not None}
        for name, value in list(self._target.initializers.items()):
            if value not in used:
                del self._target.initializers[name]

    def names(self) -> Emitted:
        """Where the codes are, for those who compare them."""
        inputs, outputs = {}, {}
        for layer in self._graph.layers:
            if layer.name not in self._placement.schemes:
                continue
            node = self._node(layer)
            for slot in range(len(layer.inputs)):
                producer = _input(node, slot).producer()
                assert producer is not None
                inputs[layer.name, slot] = str(_input(producer, 0).name)
            written = self._values[layer.output if layer.name in self._placement.outputs else layer.node]
            outputs[layer.name] = str(self._codes[written].name if layer.name in self._placement.outputs else written.name)
        return Emitted(inputs, outputs)

    def _quantize_output(self, layer: Layer) -> None:
        value = self._value(layer.output)
        readers = list(value.uses())
        self._quantize(value, self._bank.output_qparams(layer))
        for reader, slot in readers:
            reader.replace_input_with(slot, self._dequantize(value, reader, slot))
        for place, output in enumerate(self._target.outputs):
            if output is value:
                self._target.outputs[place] = self._take_over(value)

    def _quantize_inputs(self, layer: Layer) -> None:
        node = self._node(layer)
        for slot in range(len(layer.inputs)):
            value = _input(node, slot)
            producer = value.producer()
            if producer is None or producer.op_type != "DequantizeLinear":
                self._quantize(value, self._bank.input_qparams(layer, slot))
                node.replace_input_with(slot, self._dequantize(value, node, slot))

    def _store_weight(self, layer: Layer) -> None:
        node = self._node(layer)
        spec = self._placement.schemes[layer.name].weights
        old = _input(node, 1)
        if spec is None or old.const_value is None:
            raise ContractError(f"the weight of {layer.name} is not a constant in the float file", "an initializer", "report this network")
        quantized = self._bank.weight(layer, spec)
        codes, axis = quantized.codes.numpy().astype(np.int8), layer.weight_axis
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)):
            codes, axis = codes.T, 1
        if tuple(old.const_value.shape) != codes.shape:
            raise ContractError(f"the weight of {layer.name} is {old.const_value.shape} in the file", f"{codes.shape}", "report this network")
        stem = f"{layer.weight}_w{spec.bits}"
        scale = self._constant(f"{stem}_scale", quantized.qparams.scale.numpy())
        stored = self._unpacked(stem, codes, spec.bits, node)
        # QGemm wants the zero point spelled out; all layers of one width share it.
        zeros = self._constant(f"zeros_{len(codes) if axis == 0 else codes.shape[1]}", np.zeros(quantized.qparams.scale.shape, np.int8))
        node.replace_input_with(1, self._insert("DequantizeLinear", [stored, scale, zeros], f"{node.name}_weight", node, old, axis=axis))
        if layer.bias and layer.name not in self._placement.outputs:
            # Without a Q behind it, a Gemm with a float bias would run in float: the runtime must find int32 codes.
            input_scale = self._bank.input_qparams(layer, 0).scale
            steps = bias_codes(self._bank.parameter(layer.bias), quantized.qparams.scale, input_scale).numpy().astype(np.int32)
            bias = self._constant(f"{stem}_bias", steps)
            both = self._constant(f"{stem}_bias_scale", (input_scale * quantized.qparams.scale).numpy())
            node.replace_input_with(2, self._insert("DequantizeLinear", [bias, both], f"{node.name}_bias", node, _input(node, 2), axis=0))

    def _unpacked(self, stem: str, codes: NDArray[np.int8], bits: int, before: ir.Node) -> ir.Value:
        """INT8 codes as the DequantizeLinear wants them, however they are stored."""
        if bits == 8:
            return self._constant(f"{stem}_codes", codes)
        packed = self._constant(f"{stem}_codes", codes.astype(ml_dtypes.int4))
        return self._insert("Cast", [packed], f"{stem}_unpacked", before, None, to=int(ir.DataType.INT8))

    def _set_barrier(self, node: ir.Node, slot: int, barrier: Barrier) -> None:
        value = _input(node, slot)
        producer = value.producer()
        channels = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
        if barrier == "vector" and producer is not None and producer.op_type == "DequantizeLinear" and isinstance(channels, int):
            codes, scale, zero_point = (_input(producer, place) for place in range(3))
            scales = self._constant(f"{node.name}_scales", np.full(channels, _array(scale)))
            zeros = self._constant(f"{node.name}_zero_points", np.full(channels, _array(zero_point)))
            guarded = self._insert("DequantizeLinear", [codes, scales, zeros], f"{node.name}_vector", node, value, axis=1)
        else:
            guarded = self._insert("Max", [value, self._constant(f"{node.name}_lowest", LOWEST)], f"{node.name}_barrier", node, value)
        node.replace_input_with(slot, guarded)
        if producer is not None and not value.uses() and producer.op_type == "DequantizeLinear":
            self._target.remove(producer, safe=True)

    def _scale_afterwards(self, name: str) -> None:
        """mean((codes − zero_point) · scale) becomes mean(codes − zero_point) · scale."""
        average = self._value(name)
        node = average.producer()
        assert node is not None
        source = _input(node, 0)
        dequantizer = source.producer()
        assert dequantizer is not None and dequantizer.op_type == "DequantizeLinear"
        codes, scale, zero_point = (_input(dequantizer, place) for place in range(3))
        steps = self._insert("DequantizeLinear", [codes, self._constant("one", np.array(1, np.float32)), zero_point], f"{name}_steps", node, source)
        node.replace_input_with(0, steps)
        readers = list(average.uses())
        scaled = ir.node("Mul", [average, scale], name=f"{name}_scaled")
        scaled.outputs[0].name, scaled.outputs[0].shape, scaled.outputs[0].type = f"{name}_scaled_value", average.shape, average.type
        self._target.insert_after(node, scaled)
        for reader, slot in readers:
            reader.replace_input_with(slot, scaled.outputs[0])
        if not source.uses():
            self._target.remove(dequantizer, safe=True)

    def _quantize(self, value: ir.Value, qparams: QParams) -> None:
        if value in self._codes:
            return
        scale = self._constant(f"{value.name}_scale", qparams.scale.numpy())
        zero_point = self._constant(f"{value.name}_zero_point", qparams.zero_point.numpy().astype(np.uint8))
        node = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{value.name}_QuantizeLinear")
        codes = node.outputs[0]
        codes.name, codes.shape, codes.dtype = f"{value.name}_quantized", value.shape, ir.DataType.UINT8
        producer = value.producer()
        if producer is not None:
            self._target.insert_after(producer, node)
        else:
            self._target.insert_before(self._target[0], node)
        self._codes[value] = codes

    def _dequantize(self, value: ir.Value, reader: ir.Node, slot: int) -> ir.Value:
        quantizer = self._codes[value].producer()
        assert quantizer is not None
        return self._insert("DequantizeLinear", [self._codes[value], *quantizer.inputs[1:]], f"{reader.name}_input_{slot}", reader, value)

    def _take_over(self, value: ir.Value) -> ir.Value:
        """The dequantized twin of a graph output, under its name."""
        name, quantizer = str(value.name), self._codes[value].producer()
        assert quantizer is not None
        value.name = f"{name}_float"
        node = ir.node("DequantizeLinear", [self._codes[value], *quantizer.inputs[1:]], name=f"{name}_DequantizeLinear")
        twin = node.outputs[0]
        twin.name, twin.shape, twin.type = name, value.shape, value.type
        self._target.insert_after(quantizer, node)
        return twin

    def _insert(
        self, kind: str, inputs: list[ir.Value | None], name: str, before: ir.Node, like: ir.Value | None, **attributes: int
    ) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes, name=name)
        output = node.outputs[0]
        output.name = f"{name}_value"
        if like is not None:
            output.shape, output.type = like.shape, like.type
        self._target.insert_before(before, node)
        return output

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        known = self._target.initializers.get(name)
        if known is not None:
            return known
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype  # type: ignore[union-attr, assignment]
        self._target.register_initializer(value)
        return value

    def _value(self, name: str) -> ir.Value:
        if name not in self._values:
            raise ContractError(f"the float file has no value {name!r}", "the names of the canonical graph", "export the network again")
        return self._values[name]

    def _node(self, layer: Layer) -> ir.Node:
        """The layer's operation: a 3-D linear layer is a MatMul in front of the Add that keeps its name."""
        node = self._value(layer.node).producer()
        assert node is not None
        if layer.kind == "linear" and node.op_type == "Add":
            node = next((v.producer() for v in node.inputs if v is not None and v.producer() is not None), node)
        assert node is not None
        return node


def _input(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    if value is None:
        raise ContractError(f"node {node.name} has no input {slot}", "the layer's own inputs, in order", "report this network")
    return value


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
