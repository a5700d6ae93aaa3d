"""Target `ort-cpu`: ONNX Runtime's CPU provider on x86-64 and what it really runs (1.22 and later, probed on 1.32).

Activations are unsigned 8-bit per tensor, zero point at the lowest value, so that ReLU and Clip are absorbed; weights signed
symmetric per output channel. Convolution, Add and Concat run in int8 only if all their inputs and their output carry
Q/DQ; Gemm with an int32 bias may leave float. Nothing is tied but what the graph itself shares: a weight used twice.
Linear layers over tokens may quantize their activations in each call instead (DynamicQuantizeMatMul, MatMulIntegerToFloat): the range is
that of the whole tensor, so the file answers each item as the simulation does only where items are given one by one. Weights in blocks
run in MatMulNBits, at accuracy level 4 where activations are quantized by blocks in each call, at 1 where they stay float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from quantkit.core.graph import Graph, Group, Layer, Mover, Unsupported
from quantkit.core.spec import BLOCK_SIZES, PerBlock, PerTensor, QuantSpec, Scheme
from quantkit.targets import common
from quantkit.targets.common import adapt_to_integers, check_schemes, isolate_layers, quantized_in_call, stored_narrow, weight_bytes_stored
from quantkit.targets.placement import Adapted, Barrier, Placement, Slot, Storage

__all__ = ["adapt", "check_schemes", "groups", "isolate", "place", "product_rows", "weight_bytes"]

NAME = "ort-cpu"
OPSET = 21  # INT4 initializers; the IR version that goes with it
PACKAGE, MINIMUM_RUNTIME = "onnxruntime", "1.22"
SCHEMES = (
    "fp32", "w8a8", "w7a8", "w6a8", "w5a8", "w4a8", "w3a8", "w2a8", "c6a8", "c5a8", "c4a8", "c3a8", "c2a8",
    "w8d8", "w7d8", "w6d8", "w5d8", "w4d8", "w3d8", "w2d8", "c6d8", "c5d8", "c4d8", "c3d8", "c2d8",
    "w8b32d8", "w4b128d8", "w4b32d8", "w4b128a32", "w4b32a32",
    "w6g16a8", "w5g16a8", "w4g16a8", "w3g16a8", "w2g16a8",
    "w16a32", "w8a32", "w7a32", "w6a32", "w5a32", "w4a32", "w3a32", "w2a32",
    "c6a32", "c5a32", "c4a32", "c3a32", "c2a32",
)  # fmt: skip
# Narrow codes are made INT8 by nodes that the runtime folds while the session loads, so every width runs in the int8 kernel.
STORAGE: Mapping[int, Storage] = {8: "int8", 4: "int4", **dict.fromkeys((2, 3, 5, 6, 7), "bit_stream")}
ACTIVATIONS = QuantSpec(8, signed=False, symmetric=False, granularity=PerTensor())
MAX_POOL, MAP_AXES = "max_pool", 3  # channels, rows and columns of an item
AVERAGE, POOL = "mean.dim", "global_pool"  # in float both are one operation, of which the runtime makes no int8 kernel
CLIPS = ("relu.default", "relu6.default", "hardtanh.default", "clamp.default")
BATCH_NORM = "_native_batch_norm_legit_no_training.default"
LAYER_NORM = "layer_norm"
WEIGHTED = ("conv", "linear", "addmm", "matmul", "mm")  # of operations that are no layers, those that may still hold a constant weight
# Operations that are no layers as they stand and that the runtime would run in int8 all the same, in other arithmetic or slower.
TAKEN = (*WEIGHTED, "avg_pool", "softmax", "_softmax", "add.Tensor")
SESSION_OPTIONS: Mapping[str, str] = {}  # nothing is needed: what keeps a float layer float lies in the file


def groups(graph: Graph, schemes: Sequence[Scheme]) -> tuple[Group, ...]:
    """As `common.groups`; activations are quantized in each call by linear layers over tokens alone; the same names store a table.

    Blocks are for linear layers whose products they divide.
    """
    dynamic = {scheme.name for scheme in schemes if scheme.is_dynamic}
    blocks = {scheme.name for scheme in schemes if scheme.has_blocks}
    found = []
    for group in common.groups(graph, schemes):
        layers = [graph.layer(name) for name in group.layers]
        takes = all(layer.is_table or _may_quantize_in_call(layer) for layer in layers)
        refused = frozenset[str]() if takes else dynamic - blocks
        refused |= frozenset() if all(map(_may_have_blocks, layers)) else blocks
        found.append(replace(group, schemes=tuple(name for name in group.schemes if name not in refused)))
    return tuple(found)


def place(graph: Graph, allocation: Mapping[str, Scheme]) -> Placement:
    """Where Q/DQ go when each layer (by name) has the given scheme."""
    tables = {layer.name for layer in graph.layers if layer.is_table}
    schemes = {name: scheme for name, scheme in allocation.items() if not scheme.reads_float and name not in tables}
    int8_readers = {graph.source(tensor) for layer in graph.layers if layer.name in schemes for tensor in layer.inputs}
    outputs = frozenset(
        layer.name for layer in graph.layers if layer.name in schemes and (not _may_leave_float(layer) or layer.output in int8_readers)
    )
    coded = {layer.output for layer in graph.layers if layer.name in outputs}
    inputs = {(layer.name, slot) for layer in graph.layers if layer.name in schemes for slot in range(len(layer.inputs))}
    means = [(entry.node, entry.inputs[0]) for entry in graph.unsupported if entry.operation == AVERAGE]
    means += [(layer.node, layer.inputs[0]) for layer in graph.layers if layer.kind == POOL and layer.name not in schemes]
    averages = {node for node, source in means if graph.source(source) in coded}
    pools = _float_pools(graph, schemes)
    barriers = _barriers(graph, schemes, int8_readers, coded)
    barriers |= {(pool.node, 0): "max" for pool in pools if graph.source(pool.input) in coded}
    in_call = {
        name: scheme
        for name, scheme in quantized_in_call(graph, allocation).items()
        if scheme.has_blocks or _may_quantize_in_call(graph.layer(name))
    }
    return Placement(
        schemes, frozenset(inputs), outputs, barriers, frozenset(averages), _float_biases(graph, schemes), STORAGE,
        stored=stored_narrow(graph, allocation), dynamic=in_call, sums=_sums(graph, schemes), pools=frozenset(p.node for p in pools),
    )  # fmt: skip


def adapt(graph: Graph, allocation: Mapping[str, Scheme]) -> Adapted:  # noqa: ARG001 - every target's
    """The allocation of another target's plan, by layer, as this one can run it."""
    return adapt_to_integers(allocation)


def isolate(graph: Graph, layers: Sequence[str], scheme: Scheme) -> Placement:
    """As `common.isolate_layers`, biases as `place` leaves them, and outputs as codes where no layer reads them, who would count that.

    Behind activation functions they are left out.
    """
    placed = isolate_layers(graph, layers, scheme, _float_biases(graph, layers))
    read = {graph.source(tensor) for layer in graph.layers for tensor in layer.inputs}
    unread = [graph.layer(name) for name in placed.schemes if graph.layer(name).output not in read]
    return replace(placed, outputs=frozenset(layer.name for layer in unread if not (layer.activation or _may_leave_float(layer))))


def weight_bytes(layer: Layer, scheme: Scheme) -> int:
    """Bytes that the layer's weight, its scales and its bias take in the file."""
    return weight_bytes_stored(layer, scheme, STORAGE)


def product_rows(layer: Layer, weight: Tensor) -> tuple[Tensor, bool]:
    """The weight as [output channels, products], in the order in which the int8 kernel adds them, and whether it adds them in pairs.

    Convolutions run channels-last, so neighbours are input channels of one tap. The depthwise kernel widens each product first.
    """
    rows = weight.movedim(1, -1).reshape(weight.shape[0], -1)
    return rows, not (layer.kind == "conv" and layer.groups == weight.shape[0])


def _sums(graph: Graph, schemes: Mapping[str, Scheme]) -> frozenset[str]:
    """Float additions that only a layer norm reads: the runtime would make SkipLayerNormalization of both, which takes longer than the two.

    On MiniLM-L6 (AVX512-VNNI, 1.32) a fifth of the whole plan's time (docs/targets/ort-cpu.md).
    """
    norms = {entry.inputs[0]: entry.node for entry in graph.unsupported if entry.operation.startswith(LAYER_NORM)}
    normalized = {name for name, norm in norms.items() if graph.readers(name) == {norm}}
    layers = {layer.node for layer in graph.layers if layer.kind == "add" and layer.name not in schemes and layer.output in normalized}
    return frozenset(layers | {entry.node for entry in graph.unsupported if entry.operation == "add.Tensor" and entry.node in normalized})


def _float_pools(graph: Graph, schemes: Mapping[str, Scheme]) -> list[Mover]:
    """Max pools of maps that an int8 layer reads and that no chain of int8 convolutions makes channels-last.

    The runtime moves a quantizer in front of a max pool, and its kernel for codes is fast only where channels are last (SqueezeNet with a
    float stem, AVX512-VNNI, 1.32, `quantkit bench`: 3.4 of 4.9 ms in one pool; in float it takes 0.04 of 1.4). The codes are the same.
    """
    makers, movers = {layer.output: layer for layer in graph.layers}, {mover.node: mover for mover in graph.movers}

    def is_channels_last(name: str) -> bool:
        layer = makers.get(graph.source(name))
        if layer is None or layer.name not in schemes:
            return False
        return layer.kind == "conv" or all(map(is_channels_last, layer.inputs))

    found = dict[str, Mover]()
    for name in (tensor for layer in graph.layers if layer.name in schemes for tensor in layer.inputs):
        while mover := movers.get(name):
            if mover.kind == MAX_POOL and len(graph.tensor(mover.node).shape) == MAP_AXES and not is_channels_last(mover.input):
                found[mover.node] = mover
            name = mover.input
    return list(found.values())


def _may_leave_float(layer: Layer) -> bool:
    """Whether int8 may end in a float output: a 2-D Gemm, whose bias is then stored as int32."""
    return layer.kind == "linear" and len(layer.output_shape) == 1 and not layer.activation


def _barriers(graph: Graph, schemes: Mapping[str, Scheme], int8_readers: set[str], coded: set[str]) -> dict[Slot, Barrier]:
    """A float operation between a DequantizeLinear and a QuantizeLinear would run in int8, without a plan.

    The QuantizeLinear may stand behind a clip, which the runtime drops where the codes' range lies within its bounds, or behind a batch
    norm that could not be folded here, which it folds.
    """
    sources = {entry.node: [entry.inputs[0]] for entry in graph.unsupported if entry.operation in CLIPS}
    norms = {entry.inputs[0]: entry.node for entry in graph.unsupported if entry.operation == BATCH_NORM}
    for tensor in graph.tensors:
        for reader in norms.keys() & set(tensor.consumers):
            sources.setdefault(norms[reader], []).append(tensor.name)
    quantized, waiting = set(int8_readers), list(int8_readers)
    while waiting:
        behind = {graph.source(name) for name in sources.get(waiting.pop(), ())} - quantized
        quantized |= behind
        waiting += behind
    layers = [layer for layer in graph.layers if layer.name not in schemes and layer.kind != POOL]
    floats = [(layer.node, layer.output, layer.inputs, layer.kind) for layer in layers]
    floats += [(entry.node, entry.node, _operands(entry), "") for entry in graph.unsupported if entry.operation.startswith(TAKEN)]
    found: dict[Slot, Barrier] = {}
    for node, output, reads, kind in floats:
        if output in quantized and reads and all(graph.source(tensor) in coded for tensor in reads):
            found[node, 0] = "vector" if kind == "conv" else "max"
    return found


def _operands(entry: Unsupported) -> tuple[str, ...]:
    """What must be codes for the runtime to take the operation: both summands, otherwise the first input; none where a number is added."""
    if entry.operation == "add.Tensor":
        return entry.inputs if len(entry.inputs) > 1 else ()
    return entry.inputs[:1]


def _float_biases(graph: Graph, names: Iterable[str]) -> frozenset[str]:
    """Of the quantized layers, those over tokens: a MatMul whose product is made real before an Add brings the bias."""
    return frozenset(name for name in names if graph.layer(name).bias and _is_over_tokens(graph.layer(name)))


def _may_quantize_in_call(layer: Layer) -> bool:
    """Whether a range for each item is the range of what a call of one item reads."""
    return _is_over_tokens(layer) and layer.item_first


def _may_have_blocks(layer: Layer) -> bool:
    """Whether MatMulNBits can multiply its weight: a matrix of its own, of rows that blocks divide."""
    return layer.kind == "linear" and PerBlock(1, max(BLOCK_SIZES)).fitting(layer.weight_shape[1]) is not None


def _is_over_tokens(layer: Layer) -> bool:
    """Whether it is a matrix product over the rows of each item: a MatMul in the file, not a Gemm."""
    return layer.kind == "linear" and len(layer.output_shape) > 1
