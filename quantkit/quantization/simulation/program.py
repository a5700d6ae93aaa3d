"""A placement run in torch, in code units: the arithmetic of the runtime's int8 kernels, in their order.

A quantized convolution or linear layer recovers the codes of its input, convolves integers in float32 (exact below 2^24, in
float64 where the layer's bound is higher), adds the int32 bias, multiplies by float32((scale_x · scale_w) / scale_y) and rounds
half to even. Operations without weights follow theirs (`kernels`); Concat requantizes. Exact on CPUs whose u8×s8 products do not
saturate. A layer that quantizes in each call does so item by item, as a file does that is given one item at a time.

Where the placement computes in half, layers multiply what their codes are worth, and the operands and results of every operation are
rounded to half around a sum in float32: the file as it stands, one node after the other. The order in which such
a target's own kernels add is not documented: this is close to them, not equal. Layers of E4M3 or 4-bit weights are computed so everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.core.graph import Layer
from quantkit.core.numerics.affine import (
    QParams,
    bias_codes,
    dequantize,
    fake_quantize,
    fake_quantize_in_call,
    fit_each_item,
    quantize,
    requantize,
)
from quantkit.core.numerics.blocked import convolve
from quantkit.core.numerics.functions import logistic
from quantkit.core.spec import FloatFormat, PerBlock, QuantSpec, Scheme
from quantkit.network.captured import Captured
from quantkit.network.folding import ATEN, operand
from quantkit.network.operations import PADS
from quantkit.quantization.simulation.kernels import KERNELS
from quantkit.quantization.weights import WeightBank
from quantkit.targets.placement import Placement

CONVOLUTION, SIGMOID = ATEN.conv2d.default, ATEN.sigmoid.default
CONVOLUTION_DEFAULTS: tuple[Any, ...] = (None, (1,), (0,), (1,), 1)  # bias, stride, padding, dilation, groups
EXACT = float(1 << 24)  # float32 holds every integer up to here
Environment = dict[str, Any]
Lost = Callable[[Layer, fx.Node, Tensor, QParams, Tensor], Tensor | None]  # of the layer's integer sums, given its input and weight codes


class Simulation:
    """The network under one placement. The captured module is never changed.

    With `block`, float convolutions add up in the runtime's own order (`blocked`), sigmoids are its own (`functions`), and give its bits.
    With `precise`, other float layers add up in float64: of all orders the exact sum is nearest to one that is not known. `lost` says what
    a processor without VNNI loses.
    """

    def __init__(
        self,
        captured: Captured,
        placement: Placement,
        bank: WeightBank,
        *,
        precise: bool = False,
        block: int | None = None,
        lost: Lost | None = None,
    ) -> None:
        module = captured.module
        self._nodes = {node.name: node for node in module.graph.nodes}
        self._state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
        self._graph, self._placement, self._bank = captured.graph, placement, bank
        self._precise, self._block, self._lost = precise, block, lost
        self._layers = {layer.node: layer for layer in captured.graph.layers if layer.name in placement.schemes}
        self._layers |= {layer.node: layer for layer in captured.graph.layers if layer.name in {**placement.floating, **placement.dynamic}}
        self._half = _nodes_in_half(captured, placement)
        self._stored = {layer.node: layer for layer in captured.graph.layers if layer.name in placement.stored}
        self._absorbed = {name for layer in self._layers.values() if layer.name in placement.outputs for name in self._behind(layer)}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> Environment:
        """Every value of the network by node name, `output` among them as a tuple. Activations are real values on their grids."""
        values: Environment = dict(inputs)
        self._walk(values, self._nodes.values())
        return values

    @torch.no_grad()
    def rerun(self, base: Environment, changed: Iterable[str]) -> Environment:
        """The values of the `changed` nodes and all behind them, the others from `base`, which is left as it is."""
        dirty, suffix = set(changed), []
        for node in self._nodes.values():
            if node.name in dirty or any(source.name in dirty for source in node.all_input_nodes):
                dirty.add(node.name)
                suffix.append(node)
        values = dict(base)
        self._walk(values, suffix)
        return values

    @torch.no_grad()
    def advance(self, values: Environment, node: fx.Node) -> None:
        """Adds to `values` what comes of one node, those that it reads being there."""
        self._walk(values, [node])

    @torch.no_grad()
    def layer_output(self, layer: Layer, inputs: Iterable[Tensor]) -> Tensor:
        """What the quantized `layer` makes of the given real inputs, as a file gives them.

        Where the exporter has folded a zero padding into a convolution, the input is the tensor in front of the padding.
        """
        return self._quantized(layer, [self._padded(x, name) for x, name in zip(inputs, layer.inputs, strict=True)])

    def _walk(self, values: Environment, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node.op == "get_attr":
                values[node.name] = self._state[str(node.target)]
            elif node.op == "output":
                values["output"] = tuple(values[leaf.name] for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node))
            elif node.name in self._layers:
                layer = self._layers[node.name]
                place = layer.output if layer.name in self._placement.outputs else node.name
                result = self._quantized(layer, [values[name] for name in layer.inputs])
                values[place] = to_half(result) if node.name in self._half else result
            elif node.name in self._placement.unscaled:
                values[node.name] = self._average(node, values)
            elif node.op == "call_function" and node.name not in self._absorbed:
                values[node.name] = self._float(node, {**values, **self._stored_weight(node)})

    def _stored_weight(self, node: fx.Node) -> Environment:
        """The weight of a layer that computes in float and is stored narrower, by the name of the node that gives it; of others nothing."""
        layer = self._stored.get(node.name)
        if layer is None:
            return {}
        return {weight_node(node, layer.weight_slot): self._bank.stored_weight(layer, self._placement.stored[layer.name])}

    def _float(self, node: fx.Node, values: Environment) -> Any:
        if node.name in self._half:
            return to_half(call(node, lambda source: to_half(values[source.name])))
        if self._block and node.target is CONVOLUTION:
            found = _convolve(node, lambda source: values[source.name], self._block)
            if found is not None:
                return found
        source = operand(node, 0)
        if self._block and node.target is SIGMOID and source is not None and values[source.name].dtype is torch.float32:
            return logistic(values[source.name])
        if not self._precise:
            return call(node, lambda source: values[source.name])
        wide = call(node, lambda source: _cast(values[source.name], torch.float32, torch.float64))
        return _cast(wide, torch.float64, torch.float32)

    def _average(self, node: fx.Node, values: Environment) -> Tensor:
        """An average taken in integer steps, scaled afterwards."""
        source = operand(node, 0)
        assert source is not None
        qparams = self._bank.activations[self._graph.source(source.name)]
        steps = quantize(values[source.name], qparams) - qparams.zero_point
        average: Tensor = call(node, lambda _: steps)
        return average * qparams.scale

    def _quantized(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        """The real output of a layer with quantized inputs: on its grid if it leaves as codes, else without its activation functions."""
        if layer.name in self._placement.dynamic:
            return self._in_call(layer, inputs[0])
        scheme = self._placement.schemes.get(layer.name) or self._placement.floating[layer.name]
        if self._half or layer.name in self._placement.floating or isinstance(scheme.weights, FloatFormat):
            return self._floating(layer, scheme, inputs)
        qparams = [self._bank.input_qparams(layer, slot, scheme.activations) for slot in range(len(inputs))]
        output = self._bank.output_qparams(layer) if layer.name in self._placement.outputs else None
        if layer.weight:
            return self._weighted(layer, inputs[0], qparams[0], output)
        if layer.kind in KERNELS and output is not None:
            codes = [quantize(x, q) for x, q in zip(inputs, qparams, strict=True)]
            return dequantize(KERNELS[layer.kind](self._nodes[layer.node], codes, qparams, output), output)
        coded = [(layer.name, slot) in self._placement.inputs for slot in range(len(inputs))]
        real = iter([fake_quantize(x, q) if quantized else x for x, q, quantized in zip(inputs, qparams, coded, strict=True)])
        result: Tensor = call(self._nodes[layer.node], lambda _: next(real))
        return result if output is None else fake_quantize(result, output)

    def _weighted(self, layer: Layer, x: Tensor, x_qparams: QParams, output: QParams | None) -> Tensor:
        """Integer accumulator in units of scale_x · scale_w, then requantized, or made real where `output` is None."""
        spec = self._placement.schemes[layer.name].weights
        assert isinstance(spec, QuantSpec)
        weight = self._bank.weight(layer, spec)
        bias = self._bank.bias(layer)
        node, codes = self._nodes[layer.node], quantize(x, x_qparams)
        lost = self._lost(layer, node, codes, x_qparams, weight.codes) if self._lost else None
        coded = None
        if bias is not None and layer.name not in self._placement.float_bias:
            coded = bias_codes(bias, weight.qparams.scale, x_qparams.scale)
        shape = [1, -1, *[1] * (x.dim() - 2)] if layer.kind == "conv" else [-1]  # of one value a channel
        accumulator = _product(node, codes.sub_(x_qparams.zero_point), weight.codes, x_qparams.spec.bits, coded, shape)
        accumulator = accumulator if lost is None else accumulator.double() + lost
        scale = x_qparams.scale * weight.qparams.scale
        if layer.name in self._placement.float_bias and bias is not None:
            real = accumulator.float() * scale.reshape(shape) + bias.reshape(shape)
            return real if output is None else fake_quantize(real, output)
        if output is None:
            return accumulator.float() * scale.reshape(shape)
        return dequantize(requantize(accumulator.float(), (scale / output.scale).reshape(shape), output), output)

    def _in_call(self, layer: Layer, x: Tensor) -> Tensor:
        """A linear layer whose input is quantized by the range that each item has: its sums made real, and the bias added."""
        scheme = self._placement.dynamic[layer.name]
        assert isinstance(scheme.weights, QuantSpec) and isinstance(scheme.activations, QuantSpec)
        if isinstance(scheme.activations.granularity, PerBlock):
            return self._in_blocks(layer, fake_quantize_in_call(x, scheme.activations), scheme.weights)
        weight, qparams = self._bank.weight(layer, scheme.weights), fit_each_item(x, scheme.activations)
        node, codes = self._nodes[layer.node], quantize(x, qparams)
        lost = self._lost(layer, node, codes, qparams, weight.codes) if self._lost else None
        accumulator = _product(node, codes.sub_(qparams.shaped(qparams.zero_point, x.dim())), weight.codes, qparams.spec.bits)
        accumulator = accumulator if lost is None else accumulator + lost
        real = accumulator.float() * (qparams.shaped(qparams.scale, x.dim()) * weight.qparams.scale)
        bias = self._bank.bias(layer)
        return real if bias is None else real + bias

    def _in_blocks(self, layer: Layer, x: Tensor, spec: QuantSpec) -> Tensor:
        """A linear layer that reads `x` on a grid of blocks: their sums are added in float, in an order that is not known."""
        weight, wide = self._bank.weight(layer, spec), torch.float64 if self._precise else torch.float32
        operation = cast("Callable[..., Tensor]", self._nodes[layer.node].target)
        bias = self._bank.bias(layer)
        real = operation(x.to(wide), dequantize(weight.codes, weight.qparams).to(wide), None if bias is None else bias.to(wide))
        return real.float()

    def _floating(self, layer: Layer, scheme: Scheme, inputs: list[Tensor]) -> Tensor:
        """A layer that multiplies real values: its inputs and its weight on their grids, its bias as it is."""
        spec, real = scheme.activations, []
        for slot, x in enumerate(inputs):
            if spec is not None and spec.granularity is None:
                real.append(to_half(x))
            else:
                quantized = (layer.name, slot) in self._placement.inputs
                real.append(fake_quantize(x, self._bank.input_qparams(layer, slot, spec)) if quantized else x)
        node = self._nodes[layer.node]
        if not layer.weight or scheme.weights is None:
            following = iter([self._read(layer, x) for x in real])
            result: Tensor = call(node, lambda _: next(following))
            return result
        weight = self._bank.weight(layer, scheme.weights, in_float=scheme.is_float)
        bias = self._bank.bias(layer)
        operands = (real[0], dequantize(weight.codes, weight.qparams), bias)
        return cast("Callable[..., Tensor]", node.target)(*(None if x is None else self._read(layer, x) for x in operands), *node.args[3:])

    def _read(self, layer: Layer, value: Tensor) -> Tensor:
        """What `layer` makes of a real value: a half, if it computes in half."""
        return cast("Tensor", to_half(value)) if layer.node in self._half else value

    def _padded(self, x: Tensor, name: str) -> Tensor:
        """`x` behind the padding that makes tensor `name` of it; `x` itself if it has that tensor's shape already."""
        wanted = self._graph.tensor(name).shape
        node, source = self._nodes[name], operand(self._nodes[name], 0)
        if node.target not in PADS or source is None or all(side in (0, got) for side, got in zip(wanted, x.shape[1:], strict=True)):
            return x
        padded: Tensor = call(node, lambda _: self._padded(x, source.name))
        return padded

    def _behind(self, layer: Layer) -> list[str]:
        """The nodes between the layer's operation and its output, the output included."""
        names, node = [], self._nodes[layer.node]
        while node.name != layer.output:
            (node,) = node.users
            names.append(node.name)
        return names


def to_half(value: Any) -> Any:
    """The float32 tensors of `value` rounded to half, still as float32."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.half().float() if tensor.dtype == torch.float32 else tensor, value)


def _nodes_in_half(captured: Captured, placement: Placement) -> frozenset[str]:
    """The nodes that compute in half, by the rule of `Placement`."""
    if placement.float32 is None:
        return frozenset()
    layers = {name: layer.name for layer in captured.graph.layers for name in (layer.node, layer.output)}
    flowing = {node.name for node in captured.module.graph.nodes if node.op == "placeholder"}
    half: set[str] = set()
    made: set[str] = set()  # in float32
    for node in captured.module.graph.nodes:
        if node.op != "call_function" or isinstance(node.meta.get("val"), (int, torch.SymInt)):
            continue
        read = [source.name for source in node.all_input_nodes if source.name in flowing]
        flowing |= {node.name} if read else set()
        stays = layers[node.name] in placement.float32 if node.name in layers else bool(read) and made.issuperset(read)
        (made if stays else half).add(node.name)
    return frozenset(half)


def weight_node(node: fx.Node, slot: int) -> str:
    """The name of the node that gives `node` its weight."""
    weight = operand(node, slot)
    assert weight is not None
    return weight.name


def call(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """The operation of `node` on the values of the nodes that it reads, however these lie in memory."""
    arguments, keywords = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
    operation = torch.reshape if node.target is ATEN.view.default else node.target
    return cast("Callable[..., Any]", operation)(*arguments, **keywords)


def _convolve(node: fx.Node, value: Callable[[fx.Node], Any], block: int) -> Tensor | None:
    """The convolution of `node` in the runtime's order; None where that is not known."""
    arguments: list[Any] = [value(entry) if isinstance(entry, fx.Node) else entry for entry in node.args]
    x, weight, bias, stride, padding, dilation, groups = [*arguments, *CONVOLUTION_DEFAULTS[len(arguments) - 2 :]]
    stride, padding, dilation = (list(given) * (2 if len(given) == 1 else 1) for given in (stride, padding, dilation))
    return convolve(x, weight, bias, stride, padding, dilation, groups, block)


def _product(node: fx.Node, steps: Tensor, weight: Tensor, bits: int, bias: Tensor | None = None, shape: Sequence[int] = ()) -> Tensor:
    """The operation of `node` on integers, in a type wide enough for every sum.

    `steps` are codes of so many bits from the zero point; a `bias` has `shape` beside the products.
    """
    largest = weight.abs().flatten(1).sum(1).max()
    bound = largest * ((1 << bits) - 1)
    bound = bound if bound < EXACT else largest * steps.abs().max()
    wide = torch.float32 if bound < EXACT else torch.float64
    operation = partial(cast("Callable[..., Tensor]", node.target), steps.to(wide), weight.to(wide))
    if bias is None or wide is torch.float64 or bound + bias.abs().max() < EXACT:
        return operation(None if bias is None else bias.to(wide), *node.args[3:])
    return operation(None, *node.args[3:]).double() + bias.reshape(list(shape))


def _cast(value: Any, one: torch.dtype, other: torch.dtype) -> Any:
    """`value` in type `other` if it is a tensor of type `one`."""
    return value.to(other) if isinstance(value, Tensor) and value.dtype == one else value
