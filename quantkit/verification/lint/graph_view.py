"""A quantized graph as the rules read it: what makes a value, what reads it, where it is dequantized and quantized again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

Array = NDArray[np.generic]
MOVERS = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Identity", "DepthToSpace", "SpaceToDepth"}
)
CLIPS = frozenset({"Relu", "Clip"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, eq=False)
class Quantizer:
    """A QuantizeLinear or DequantizeLinear: `source` is what it reads; scale and zero point where they are constants.

    `bits` and `signed` say what its codes are (0 bits: unknown, or no integers), `float8` that they are floats of 8 bits.
    """

    node: NodeProto
    source: str
    scale: Array | None
    zero_point: Array | None
    bits: int
    signed: bool
    float8: bool = False

    @property
    def at_lowest(self) -> bool:
        """Whether the zero point is the lowest code, so that a ReLU in front of it changes nothing."""
        lowest = -(1 << (self.bits - 1)) if self.signed else 0
        return self.bits > 0 and (not self.signed if self.zero_point is None else bool((self.zero_point.astype(int) == lowest).all()))


_INTEGERS = {
    TensorProto.INT8: (8, True), TensorProto.UINT8: (8, False), TensorProto.INT16: (16, True), TensorProto.UINT16: (16, False),
    TensorProto.INT4: (4, True), TensorProto.UINT4: (4, False), TensorProto.INT32: (32, True),
}  # fmt: skip
_FLOATS8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class View:
    """The main graph of a model, indexed. Anything may be missing from a bad file: what is absent is None or empty."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for slot, name in enumerate(node.input):
                self.readers[name].append((node, slot))
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: tensor.data_type for name, tensor in self.initializers.items()}
        self._constants: dict[str, Array | None] = {}

    def of_kind(self, *kinds: str) -> Iterator[NodeProto]:
        """The nodes of these operations."""
        return (node for node in self.nodes if node.op_type in kinds)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or a Constant node; None if it is none, or cannot be read."""
        if name not in self._constants:
            tensor = self.initializers.get(name)
            producer = self.producers.get(name)
            if tensor is None and producer is not None and producer.op_type == "Constant":
                tensor = next((entry.t for entry in producer.attribute if entry.name == "value"), None)
            self._constants[name] = None if tensor is None else _array(tensor)
        return self._constants[name]

    def dequantizer(self, name: str, through: bool = True) -> Quantizer | None:
        """The DequantizeLinear that `name` comes from, behind movers if `through`."""
        node, seen = self.producers.get(name), 0
        while through and node is not None and node.op_type in MOVERS and seen < len(self.nodes):
            node, seen = self.producers.get(read(node, 0)), seen + 1
        return self.quantizer(node) if node is not None and node.op_type == "DequantizeLinear" else None

    def requantizer(self, name: str) -> tuple[Quantizer, list[NodeProto]] | None:
        """The QuantizeLinear that alone reads `name`, and the clips between; None if there is none, or others read it."""
        clips: list[NodeProto] = []
        while len(self.readers[name]) == 1 and name not in self.outputs and len(clips) <= len(self.nodes):
            node, slot = self.readers[name][0]
            if node.op_type == "QuantizeLinear" and slot == 0:
                return self.quantizer(node), clips
            if node.op_type not in CLIPS or slot or not node.output:
                return None
            clips.append(node)
            name = node.output[0]
        return None

    def has_constant_codes(self, quantizer: Quantizer) -> bool:
        """Whether a DequantizeLinear reads constants, however they are unpacked: a weight or a bias."""
        return self.is_computed_from_constants(quantizer.source)

    def is_computed_from_constants(self, name: str) -> bool:
        """Whether no input of the network reaches that value; constants themselves are such."""
        waiting: list[str] = [name]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            node = self.producers.get(name)
            if name in seen or name in self.initializers:
                continue
            if node is None:
                return False
            seen.add(name)
            waiting += [source for source in node.input if source]
        return True

    def quantizer(self, node: NodeProto) -> Quantizer:
        """What a QuantizeLinear or DequantizeLinear does."""
        scale, zero = self.constant(read(node, 1)), self.constant(read(node, 2))
        kinds = [
            self.types.get(read(node, 2)),
            self.types.get(read(node, 0) if node.op_type == "DequantizeLinear" else _first(node.output)),
        ]
        producer = self.producers.get(read(node, 0))
        if node.op_type == "DequantizeLinear" and producer is not None and producer.op_type == "QuantizeLinear":
            kinds.append(self.types.get(read(producer, 2)))
        kinds.append(attribute(node, "output_dtype", 0) if node.op_type == "QuantizeLinear" else None)
        float8 = any(kind in _FLOATS8 for kind in kinds)
        unknown = (0, False) if float8 or read(node, 2) else (8, False)
        bits, signed = next((_INTEGERS[kind] for kind in kinds if kind in _INTEGERS), unknown)
        return Quantizer(node, read(node, 0), scale, zero, bits, signed, float8)

    def mixed_types(self) -> Iterator[NodeProto]:
        """The nodes with floats of different types where the operator's definition wants one. Types are followed by those definitions."""
        types = {name: kind for name, kind in self.types.items() if kind in _FLOATS}
        for node in self.nodes:
            inputs, outputs = _parameters(node, self.opset)
            bound: dict[str, set[int]] = defaultdict(set)
            for name, kind in zip(node.input, inputs, strict=False):
                if name in types:
                    bound[kind].add(types[name])
            if any(len(kinds) > 1 for kinds in bound.values()):
                yield node
            chosen = attribute(node, "to", 0)
            for name, kind in zip(node.output, outputs, strict=False):
                found = {chosen} if node.op_type == "Cast" else bound[kind]
                if len(found) == 1 and found <= set(_FLOATS):
                    types.setdefault(name, next(iter(found)))


def read(node: NodeProto, slot: int) -> str:
    """The name of what `node` reads at `slot`; empty if nothing."""
    return node.input[slot] if slot < len(node.input) else ""


def title(node: NodeProto) -> str:
    """What a person finds the node by."""
    return node.name or _first(node.output) or node.op_type


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def _parameters(node: NodeProto, opset: int) -> tuple[list[str], list[str]]:
    """The type that the operator's definition gives each input and output: names that stand for one type; empty for unknown operators."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except (onnx.defs.SchemaError, TypeError):
        return [], []
    counts = len(node.input) if schema.inputs else 0, len(node.output) if schema.outputs else 0
    sides = zip(counts, (schema.inputs, schema.outputs), strict=True)
    one, other = ([given[min(place, len(given) - 1)].type_str for place in range(count)] for count, given in sides)  # the last may repeat
    return one, other


def _first(names: Iterable[str]) -> str:
    return next(iter(names), "")


def _array(tensor: TensorProto) -> Array | None:
    try:
        array: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError):  # a bad file: the checker names it
        return None
    return array
