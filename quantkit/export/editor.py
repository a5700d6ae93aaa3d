"""Surgery on an ONNX graph: quantizers and constants put in by name. Knows nothing of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantkit.core.errors import ContractError
from quantkit.core.numerics.affine import QParams
from quantkit.core.spec import FloatFormat, Format


class Editor:
    """The graph in the making. Remembers the codes of each value that has a QuantizeLinear: there is one a tensor and format."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values = {str(value.name): value for node in graph for value in node.outputs}
        self._codes: dict[tuple[ir.Value, str], ir.Value] = {}  # by value, and what the format adds to names
        self._in_call: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._folded = count()

    def value(self, name: str) -> ir.Value:
        """The value that bore that name in the float file. Raises ContractError if there is none."""
        if name not in self._values:
            raise ContractError(f"the float file has no value {name!r}", "the names of the canonical graph", "export the network again")
        return self._values[name]

    def producer(self, name: str) -> ir.Node:
        """The node that makes the value of that name."""
        node = self.value(name).producer()
        assert node is not None
        return node

    def codes(self, value: ir.Value) -> ir.Value:
        """The codes of a value that `quantize` was called on."""
        return self._codes[value, ""]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer of that content; one that is there under that name is taken if its content is the same."""
        for number in count(1):
            free = name if number == 1 else f"{name}_{number}"
            known = self._graph.initializers.get(free)
            if known is None:
                break
            if _same(array_of(known), array):
                return known
        tensor = ir.tensor(array, name=free)
        value = ir.Value(name=free, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self._graph.register_initializer(value)
        return value

    def rewrite(self, value: ir.Value, array: NDArray[Any]) -> None:
        """Gives an initializer another content, under its own name."""
        value.const_value = ir.tensor(array, name=value.name)

    def insert(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        before: ir.Node,
        like: ir.Value | None = None,
        attributes: Mapping[str, int | str] | None = None,
    ) -> ir.Value:
        """The output of a new node in front of `before`, of the shape and type of `like`."""
        node = ir.node(kind, inputs, attributes=attributes or {}, name=name)
        self._name_output(node, name, like)
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def fold(self, kind: str, inputs: Sequence[ir.Value], before: ir.Node, attributes: Mapping[str, int | str] | None = None) -> ir.Value:
        """As `insert`, of a node that the runtime folds while it loads: nobody asks for its name, so it is short."""
        name = f"f{next(self._folded)}"
        while name in self._values:
            name = f"f{next(self._folded)}"
        return self.insert(kind, inputs, name, before, attributes=attributes)

    def quantize(self, value: ir.Value, qparams: QParams) -> None:
        """Give `value` a QuantizeLinear of that format, right behind its producer, unless it has one."""
        suffix = name_suffix(qparams.spec)
        if (value, suffix) in self._codes:
            return
        stem = f"{value.name}{suffix}"
        scale = self.constant(f"{stem}_scale", qparams.scale.numpy())
        zero_point = self.constant(f"{stem}_zero_point", qparams.zero_point.numpy().astype(code_type(qparams.spec, narrow=True)))
        node = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{stem}_QuantizeLinear")
        codes = node.outputs[0]
        codes.name, codes.shape, codes.type = f"{stem}_quantized", value.shape, zero_point.type
        self._put_behind(value, node)
        self._codes[value, suffix] = codes

    def quantize_in_call(self, value: ir.Value, name: str) -> tuple[ir.Value, ...]:
        """Codes, scale and zero point of `value`, by its range in each call; `name` is that of the node where there is none yet."""
        if value not in self._in_call:
            node = ir.node("DynamicQuantizeLinear", [value], name=name, num_outputs=3)
            for output, suffix in zip(node.outputs, ("quantized", "scale", "zero_point"), strict=True):
                output.name = f"{value.name}_call_{suffix}"
            self._put_behind(value, node)
            self._in_call[value] = tuple(node.outputs)
        return self._in_call[value]

    def dequantize(self, value: ir.Value, reader: ir.Node, slot: int, spec: Format | None = None) -> None:
        """Let `reader` read a quantized `value` at `slot` through a DequantizeLinear of its own; `spec` says which of its formats."""
        inputs = self._dequantizer_inputs(value, "" if spec is None else name_suffix(spec))
        reader.replace_input_with(slot, self.insert("DequantizeLinear", inputs, f"{reader.name}_input_{slot}", reader, value))

    def dequantize_output(self, value: ir.Value) -> None:
        """If a quantized `value` is an output of the graph, let what is read from its codes go out under its name."""
        if any(output is value for output in self._graph.outputs):
            node = ir.node("DequantizeLinear", self._dequantizer_inputs(value), name=f"{value.name}_DequantizeLinear")
            quantizer = self.codes(value).producer()
            assert quantizer is not None
            self.take_over(value, node, quantizer, "float")

    def scale_behind(self, value: ir.Value, scale: ir.Value) -> None:
        """Multiply `value` by `scale` for all its readers, the graph's outputs among them."""
        readers, producer = list(value.uses()), value.producer()
        assert producer is not None
        node = ir.node("Mul", [value, scale], name=f"{value.name}_scaled")
        self.take_over(value, node, producer, "steps")
        for reader, slot in readers:
            reader.replace_input_with(slot, node.outputs[0])

    def become(self, node: ir.Node, kind: str, inputs: int) -> None:
        """Make `node` another operation, which reads the first `inputs` only and has no attributes; its name and its result's stay."""
        self.exchange(node, kind, [read(node, slot) for slot in range(inputs)])

    def exchange(
        self,
        node: ir.Node,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int] | None = None,
        domain: str = "",
    ) -> None:
        """Put another operation in the place of `node`, whose name and whose result's name it takes; `domain` "" is the standard's."""
        (old,) = node.outputs
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)
        fresh = ir.node(kind, inputs, attributes=attributes or {}, domain=domain, name=node.name)
        fresh.outputs[0].name, fresh.outputs[0].shape, fresh.outputs[0].type = old.name, old.shape, old.type
        self._graph.insert_before(node, fresh)
        old.replace_all_uses_with(fresh.outputs[0], replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        self._values[str(old.name)] = fresh.outputs[0]

    def remove_unread(self, value: ir.Value) -> None:
        """Remove the node of `value` if nothing reads it."""
        node = value.producer()
        if node is not None and not value.uses():
            self._graph.remove(node, safe=True)

    def tidy(self) -> None:
        """Drop the float weights that codes have replaced; of constants the types, which their contents tell once more, and the notes."""
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]
            elif not value.is_graph_output():
                value.type = value.shape = None
                value.metadata_props.clear()

    def _dequantizer_inputs(self, value: ir.Value, suffix: str = "") -> list[ir.Value | None]:
        codes = self._codes[value, suffix]
        quantizer = codes.producer()
        assert quantizer is not None
        return [codes, *quantizer.inputs[1:]]

    def take_over(self, value: ir.Value, node: ir.Node, behind: ir.Node, suffix: str) -> None:
        """Put `node` in behind another and give its output the name of `value`, and its place among the graph's outputs."""
        name = str(value.name)
        value.name = f"{name}_{suffix}"
        self._name_output(node, name, value)
        self._graph.insert_after(behind, node)
        for place, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[place] = node.outputs[0]

    def _put_behind(self, value: ir.Value, node: ir.Node) -> None:
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)

    def _name_output(self, node: ir.Node, name: str, like: ir.Value | None) -> None:
        output = node.outputs[0]
        output.name = name
        if like is not None:
            output.shape, output.type = like.shape, like.type


def name_suffix(spec: Format) -> str:
    """What tells the codes of this format from a tensor's codes of 8 bits."""
    return "_e4m3" if isinstance(spec, FloatFormat) else "" if spec.bits == 8 else f"_a{spec.bits}"


def code_type(spec: Format, *, narrow: bool = False) -> Any:
    """How codes of that format are held in arrays: in bytes, or, with `narrow`, in 4 bits where they fit."""
    if isinstance(spec, FloatFormat):
        return ml_dtypes.float8_e4m3fn
    if narrow and spec.bits <= 4:
        return ml_dtypes.int4 if spec.signed else ml_dtypes.uint4
    if spec.bits > 8:
        return np.int16 if spec.signed else np.uint16
    return np.int8 if spec.signed else np.uint8


def read(node: ir.Node, slot: int) -> ir.Value:
    """What `node` reads at `slot`. Raises ContractError where it reads nothing."""
    value = node.inputs[slot]
    if value is None:
        raise ContractError(f"node {node.name} has no input {slot}", "the layer's own inputs, in order", "report this network")
    return value


def array_of(value: ir.Value) -> NDArray[Any]:
    """The content of a constant value."""
    assert value.const_value is not None
    return value.const_value.numpy()


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
