"""How large a plan's file will be, before it is written: the float plan's file, and what the emitter puts in and takes out.

Weights, scales and biases as the target counts them (`allocation.costs.counted.byte_costs`); nodes and constants by the lengths of their
names, which on a small network take as much. Protocol buffers: a field has a tag and a length of one byte each, but for the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quantkit.core.graph import Graph, Layer
from quantkit.core.spec import FLOAT, PerGroup, QuantSpec, Scheme
from quantkit.targets.placement import Placement

Sized = Callable[[Layer, Scheme], int]
FOLDED = len("f99")  # a name that `Editor.fold` gives
# The nodes that spread a stream of bits, and the constant that each reads.
STREAM = (
    ("BitShift", "shifts"), ("BitwiseAnd", "one_bit"), ("Reshape", "rows_5"), ("MatMulInteger", "powers_5"), ("Reshape", "shape_32x16x3x3"),
)  # fmt: skip
ATTRIBUTES = {"BitShift": 23, "Cast": 11}
POOLED = 77  # a ReduceMean's attributes and axes, which a GlobalAveragePool of codes has not
BLOCKS, CONTRIBUTED = 93, 19  # the domain and the attributes of MatMulNBits; the import of its operators
INDICES = len("input_ids")  # what a table is mostly asked by
AXIS, BATCH = 13, 3  # the attribute of a weight's DequantizeLinear; the name of the batch axis


def promised_bytes(plain_bytes: int, graph: Graph, placement: Placement, weight_bytes: Sized) -> int:
    """The bytes of the plan's file, if that of the plan which leaves everything float takes `plain_bytes`."""
    total = plain_bytes + sum(_quantizers(graph, placement)) + sum(_barriers(graph, placement))
    total -= POOLED * sum(layer.kind == "global_pool" and layer.name in placement.outputs for layer in graph.layers)
    total += sum(_quantizing_in_call(graph, placement))
    contributed = 0
    shared: dict[str, int] = {}  # constants that several layers read
    counted, tables = set[str](), {layer.weight for layer in graph.layers if layer.is_table and placement.made}
    for layer in graph.layers:
        scheme = placement.schemes.get(layer.name) or placement.stored.get(layer.name) or placement.dynamic.get(layer.name)
        if not layer.weight or not scheme:
            continue
        if scheme.has_blocks:
            total += _reading_blocks(layer, scheme)
            contributed = CONTRIBUTED
        else:
            reading = _reading_rows if layer.is_table else _reading_in_call if scheme.is_dynamic else _reading
            total += reading(layer, scheme) + sum(_unpacking(layer, scheme, placement))
            shared |= _shared(layer, scheme, placement)
        if layer.weight in tables and layer.kind == "linear" and len(layer.output_shape) > 1:  # its float weight lies there, transposed
            total += _node("Transpose", FOLDED, FOLDED, FOLDED) - 4 * layer.weight_count - _constant(len(layer.weight), 2)
            if not scheme.is_float:  # the product wants its scales in one axis, the table in two
                total += 4 * layer.weight_shape[0] + _constant(len(layer.weight) + len("_w8_scale_2"), 1)
        if layer.weight not in counted:
            counted.add(layer.weight)
            total += weight_bytes(layer, scheme) - weight_bytes(layer, FLOAT) + _constants(layer, scheme, placement)
        if layer.bias and layer.name in placement.float_bias:
            total += len("_spread") + 4
        elif layer.bias and layer.name in placement.schemes and layer.name not in placement.outputs:
            name, own = len(layer.bias), len(f"node_{layer.node}_bias")
            total += 4 * layer.weight_shape[layer.weight_axis] + 6 + _constant(name + 6, 1)
            total += _node("DequantizeLinear", name + 6, name + 6, own, own) + AXIS + own - name + _typed(own, 1)
    return total + contributed + sum(_constant(len(name), 1) + content for name, content in shared.items())


def _quantizers(graph: Graph, placement: Placement) -> Iterator[int]:
    """Of each quantized tensor its QuantizeLinear with two constants, and a DequantizeLinear for each reader."""
    coded = {graph.layer(name).output for name in placement.outputs}
    read = [(graph.layer(name).inputs[slot], _operation(graph.layer(name))) for name, slot in placement.inputs]
    readers = {(tensor, node) for tensor, node in read if tensor not in coded}
    operations = {layer.node: _operation(layer) for layer in graph.layers}
    readers |= {(tensor, operations.get(node, f"node_{node}")) for tensor in coded for node in graph.tensor(tensor).consumers}
    for tensor in {tensor for tensor, _ in readers} | coded:
        name, rank = len(tensor), len(graph.tensor(tensor).shape) + 1
        yield _node("QuantizeLinear", name, name + 6, name + 11, name + 10, name + 15) + _typed(name + 10, rank) + BATCH
        yield _constant(name + 6, 0) + 4 + _constant(name + 11, 0) + 1
        if tensor in coded and graph.tensor(tensor).is_output:
            yield _node("DequantizeLinear", name + 10, name + 6, name + 11, name, name + 17) + 12 + _typed(name + 6, rank) + BATCH
    for tensor, node in readers:
        name, own = len(tensor), len(f"{node}_input_0")
        yield _node("DequantizeLinear", name + 10, name + 6, name + 11, own, own)
        yield own - name + _typed(own, len(graph.tensor(tensor).shape) + 1) + BATCH


def _reading(layer: Layer, scheme: Scheme) -> int:
    """The node that makes a real weight of its codes."""
    weight = len(str(layer.weight))
    if not isinstance(scheme.weights, QuantSpec):
        return FOLDED - weight
    if scheme.is_float:
        return FOLDED - weight + _node("Mul", FOLDED, weight + 9, FOLDED, FOLDED)
    suffix, own = len(f"_w{scheme.weights.label}"), len(f"{_operation(layer)}_weight")
    node = _node("DequantizeLinear", weight + suffix + 6, weight + suffix + 6, 8, own, own)
    return node + AXIS + _typed(own, len(layer.weight_shape)) + own - weight


def _reading_in_call(layer: Layer, scheme: Scheme) -> int:
    """The nodes that multiply codes and make the sums real, less what the product's own node no longer takes."""
    assert isinstance(scheme.weights, QuantSpec)
    codes = len(str(layer.weight)) + len(f"_w{scheme.weights.label}") + 6
    name, given, own = len(layer.inputs[0]), len("_call_quantized"), len(_operation(layer))
    sums, real, scales = own + 5, own + 5, own + 7
    found = _node("MatMulInteger", name + given, codes, name + given + 1, sums, sums)  # the zero point's name is one longer
    found += _node("Cast", sums, real, real) + _node("Mul", name + given - 4, codes, scales, scales)
    return found + len("Mul") - len("MatMul") + real + scales - name - len(str(layer.weight))


def _reading_blocks(layer: Layer, scheme: Scheme) -> int:
    """MatMulNBits in the place of the product: its domain, attributes, codes and scales."""
    assert isinstance(scheme.weights, QuantSpec)
    named = len(str(layer.weight)) + len(f"_w{scheme.weights.label}") + 6
    is_product = layer.kind == "linear" and len(layer.output_shape) > 1
    name = len("MatMulNBits") - (len("MatMul") if is_product else len("Gemm"))
    return name + BLOCKS + 2 * named + 2 - len(str(layer.weight)) + (0 if is_product or not layer.bias else 4)


def _reading_rows(layer: Layer, scheme: Scheme) -> int:
    """The nodes that make rows of codes real, in place of a Gather from the table."""
    weight, own = len(str(layer.weight)), len(_operation(layer))
    if not isinstance(scheme.weights, QuantSpec):
        return FOLDED - weight
    codes, rows, real, scales = weight + len(f"_w{scheme.weights.label}") + 6, own + 5, own + 5, own + 7
    found = _node("Gather", codes, INDICES, rows, rows) + _node("Gather", codes, INDICES, scales, scales) + _node("Cast", rows, real, real)
    return found + len("Mul") - len("Gather") - AXIS + real + scales - weight - INDICES


def _quantizing_in_call(graph: Graph, placement: Placement) -> Iterator[int]:
    """The DynamicQuantizeLinear of each tensor that is quantized in each call."""
    readers = {layer.inputs[0]: layer for layer in reversed(graph.layers) if _ranges_in_call(layer, placement)}
    for tensor, first in readers.items():
        name = len(tensor) + len("_call_quantized")
        yield _node("DynamicQuantizeLinear", len(tensor), name, name - 4, name + 1, len(_operation(first)) + 5)


def _ranges_in_call(layer: Layer, placement: Placement) -> bool:
    """Whether a node of its own finds the range of what the layer reads."""
    return layer.name in placement.dynamic and not placement.dynamic[layer.name].has_blocks


def _constants(layer: Layer, scheme: Scheme, placement: Placement) -> int:
    """What the names of codes, scales, multipliers and levels take, in place of the weight's own."""
    weight, rank = len(str(layer.weight)), len(layer.weight_shape)
    if not isinstance(scheme.weights, QuantSpec):
        return len("_w16_codes")
    suffix = len(f"_w{scheme.weights.label}")
    if scheme.has_blocks:
        return suffix + 6 + _constant(weight + suffix + 6, 2)
    more = _constant(weight + suffix + 7, 1) if _form(layer, scheme.weights, placement) else 0
    return suffix + 6 + _constant(weight + suffix + 6, rank if scheme.is_float or layer.is_table else 1) + more


def _unpacking(layer: Layer, scheme: Scheme, placement: Placement) -> Iterator[int]:
    """The nodes that the runtime folds; the first of them reads the codes in the place of the node behind them."""
    spec, cast = scheme.weights, _node("Cast", FOLDED, FOLDED, FOLDED)
    in_float = scheme.is_float and not (layer.is_table and isinstance(spec, QuantSpec))
    stored = len(str(layer.weight)) + len("_w8_codes") - FOLDED if in_float else 0
    if not isinstance(spec, QuantSpec):
        yield cast + stored
        return
    form = _form(layer, spec, placement)
    storage = _storage(spec, placement)
    if storage == "bit_stream":
        yield sum(_node(kind, FOLDED, len(constant), FOLDED, FOLDED) for kind, constant in STREAM) + stored
        if layer.weight_count * spec.bits % 8:
            yield _node("Reshape", FOLDED, 4, FOLDED, FOLDED) + _node("Slice", FOLDED, 5, 9, FOLDED, FOLDED)
    elif storage == "int4" or in_float:
        yield cast + stored
    if storage == "bit_stream" and not form:
        yield cast
    if form == "codebook":
        yield _node("Gather", len(str(layer.weight)) + 10, FOLDED, FOLDED, FOLDED) + (cast if in_float else 0)
    elif form:
        yield 2 * cast + len(str(layer.weight)) + 15 + _node("Mul", *[FOLDED] * 4) + _node("Reshape", FOLDED, 15, FOLDED, FOLDED)


def _shared(layer: Layer, scheme: Scheme, placement: Placement) -> dict[str, int]:
    """The bytes of what constants by name hold that several layers may read."""
    channels, spec = layer.weight_shape[layer.weight_axis], scheme.weights
    found = {} if scheme.reads_float else {f"zeros_{channels}": channels}
    if isinstance(spec, QuantSpec):
        form, streamed = _form(layer, spec, placement), _storage(spec, placement) == "bit_stream"
        if streamed or form == "groups":
            found[f"shape_{'x'.join(map(str, layer.weight_shape))}"] = 8 * len(layer.weight_shape)
        if streamed:
            found |= {"shifts": 8, "one_bit": 1, f"rows_{spec.bits}": 16, f"powers_{spec.bits}": spec.bits}
            if layer.weight_count * spec.bits % 8:
                found |= {"flat": 8, "start": 8, f"end_{layer.weight_count * spec.bits}": 8}
    return found


def _form(layer: Layer, spec: QuantSpec, placement: Placement) -> str:
    """What becomes of narrow codes before the kernel reads them."""
    grouped = isinstance(spec.granularity, PerGroup) and spec.granularity.width(layer.weight_shape[1]) < layer.weight_shape[1]
    return "" if not placement.made else "codebook" if spec.codebook else "groups" if grouped else ""


def _storage(spec: QuantSpec, placement: Placement) -> str:
    return "int8" if spec.label != str(spec.bits) and not placement.made else placement.storage[spec.bits]


def _operation(layer: Layer) -> str:
    """The name of the node that multiplies."""
    tokens = layer.kind == "linear" and layer.bias and len(layer.output_shape) > 1
    return f"node_{layer.node}{'_product' if tokens else ''}"


def _barriers(graph: Graph, placement: Placement) -> Iterator[int]:
    for (node, _), barrier in placement.barriers.items():
        name = len(f"node_{node}")
        layer = next((layer for layer in graph.layers if layer.node == node), None)
        if barrier == "vector" and layer is not None:
            yield 5 * layer.weight_shape[1] * layer.groups + 2 * _constant(name + 10, 1)
        else:
            yield _node("Max", name + 8, 6, name + 8, name + 8) + _typed(name + 8, 4)


def _node(kind: str, *names: int) -> int:
    """A node that has names of these lengths: what it reads and makes, and its own."""
    content = ATTRIBUTES.get(kind, 0) + 2 + len(kind) + sum(2 + name for name in names)
    return content + (2 if content < 128 else 3)


def _constant(name: int, rank: int) -> int:
    """An initializer without its content."""
    return 8 + 2 * rank + name


def _typed(name: int, rank: int) -> int:
    """The type of a value, of so many axes."""
    return 10 + name + 5 * rank
