"""A placement run in torch, in code units: the arithmetic of the runtime's int8 kernels, in their order.

A quantized convolution or linear layer recovers the codes of its input, convolves integers in float32 (exact below 2^24, in
float64 where the layer's bound is higher), adds the int32 bias, multiplies by float32((scale_x · scale_w) / scale_y) and rounds
half to even. Add follows the kernel's fused multiply-add; Concat requantizes. Exact on CPUs whose u8×s8 products do not saturate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.affine import QParams, bias_codes, dequantize, fake_quantize, quantize, requantize
from quantkit.capture import Captured
from quantkit.graph import Layer
from quantkit.quantization import QuantizedWeight, WeightBank
from quantkit.targets.placement import Placement

EXACT = float(1 << 24)  # float32 holds every integer up to here
Environment = dict[str, Any]


class Simulation:
    """The network under one placement. The captured module is never changed."""

    def __init__(self, captured: Captured, placement: Placement, bank: WeightBank) -> None:
        module = captured.module
        self._nodes = list(module.graph.nodes)
        self._state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
        self._graph, self._placement, self._bank = captured.graph, placement, bank
        self._layers = {layer.node: layer for layer in captured.graph.layers if layer.name in placement.schemes}
        by_name = {node.name: node for node in self._nodes}
        self._node_of = {layer.name: by_name[layer.node] for layer in self._layers.values()}
        self._absorbed = {name for layer in self._layers.values() if layer.name in placement.outputs for name in _behind(by_name, layer)}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> Environment:
        """Every value of the network by node name, `output` among them as a tuple. Activations are real values on their grids."""
        values: Environment = dict(inputs)
        self._walk(values, self._nodes)
        return values

    @torch.no_grad()
    def rerun(self, base: Environment, changed: Iterable[str]) -> Environment:
        """The values of the `changed` nodes and all behind them, the others from `base`, which is left as it is."""
        dirty, suffix = set(changed), []
        for node in self._nodes:
            if node.name in dirty or any(source.name in dirty for source in node.all_input_nodes):
                dirty.add(node.name)
                suffix.append(node)
        values = dict(base)
        self._walk(values, suffix)
        return values

    @torch.no_grad()
    def layer_output(self, layer: Layer, inputs: Iterable[Tensor]) -> Tensor:
        """What the quantized `layer` makes of the given real inputs."""
        return self._quantized(layer, list(inputs))

    def _walk(self, values: Environment, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node.op == "get_attr":
                values[node.name] = self._state[str(node.target)]
            elif node.op == "output":
                values["output"] = tuple(values[leaf.name] for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node))
            elif node.op == "call_function" and node.name in self._layers:
                layer = self._layers[node.name]
                place = layer.output if layer.name in self._placement.outputs else node.name
                values[place] = self._quantized(layer, [values[name] for name in layer.inputs])
            elif node.name in self._placement.unscaled:
                qparams = self._bank.activations[self._graph.source(node.args[0].name)]  # type: ignore[union-attr]
                steps = quantize(values[node.args[0].name], qparams) - qparams.zero_point  # type: ignore[union-attr]
                values[node.name] = node.target(steps, *node.args[1:], **node.kwargs) * qparams.scale  # type: ignore[operator]
            elif node.op == "call_function" and node.name not in self._absorbed:
                arguments, keywords = pytree.tree_map_only(fx.Node, lambda source: values[source.name], (node.args, node.kwargs))
                values[node.name] = node.target(*arguments, **keywords)  # type: ignore[operator]

    def _quantized(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        """The real output of a layer with quantized inputs: on its grid if it leaves as codes, else without its activation functions."""
        node = self._node_of[layer.name]
        qparams = [self._bank.input_qparams(layer, slot) for slot in range(len(inputs))]
        output = self._bank.output_qparams(layer) if layer.name in self._placement.outputs else None
        if layer.weight:
            spec = self._placement.schemes[layer.name].weights
            assert spec is not None
            bias = self._bank.parameter(layer.bias) if layer.bias else None
            return _weighted(node, inputs[0], qparams[0], self._bank.weight(layer, spec), bias, output)
        if layer.kind == "add" and output is not None:
            return _add(inputs, qparams, output)
        real = iter([fake_quantize(x, q) for x, q in zip(inputs, qparams, strict=True)])
        arguments, keywords = pytree.tree_map_only(fx.Node, lambda _: next(real), (node.args, node.kwargs))
        result: Tensor = node.target(*arguments, **keywords)  # type: ignore[operator]
        return result if output is None else fake_quantize(result, output)


def _weighted(
    node: fx.Node, x: Tensor, input_qparams: QParams, weight: QuantizedWeight, bias: Tensor | None, output: QParams | None
) -> Tensor:
    """Integer accumulator in units of scale_x · scale_w, then requantized, or made real where `output` is None."""
    codes = quantize(x, input_qparams) - input_qparams.zero_point
    steps = input_qparams.spec.code_max - input_qparams.spec.code_min
    bound = weight.codes.abs().flatten(1).sum(1).max() * steps
    wide = torch.float32 if bound < EXACT else torch.float64
    accumulator: Tensor = node.target(codes.to(wide), weight.codes.to(wide), None, *node.args[3:])  # type: ignore[operator]
    channels = 1 if accumulator.dim() > 2 and "conv" in str(node.target) else accumulator.dim() - 1
    shape = [-1 if axis == channels else 1 for axis in range(accumulator.dim())]
    scale = weight.qparams.scale
    if bias is not None:
        steps_of_bias = bias_codes(bias, scale, input_qparams.scale)
        if bound + steps_of_bias.abs().max() >= EXACT:
            accumulator = accumulator.double()
        accumulator = accumulator + steps_of_bias.to(accumulator.dtype).reshape(shape)
    accumulator = accumulator.float()
    if output is None:
        return accumulator * (input_qparams.scale * scale).reshape(shape)
    return dequantize(requantize(accumulator, (input_qparams.scale * scale / output.scale).reshape(shape), output), output)


def _add(inputs: list[Tensor], qparams: list[QParams], output: QParams) -> Tensor:
    """QLinearAdd: fma(a, s_a/s_c, fma(b, s_b/s_c, z_c − (s_a/s_c·z_a + s_b/s_c·z_b))), each fma rounded once to float32."""
    (a, b), (qa, qb) = [quantize(x, q).double() for x, q in zip(inputs, qparams, strict=True)], qparams
    ratio_a, ratio_b = qa.scale / output.scale, qb.scale / output.scale
    fixed = output.zero_point - (ratio_a * qa.zero_point + ratio_b * qb.zero_point)
    inner = (b * ratio_b.double() + fixed.double()).float()
    total = (a * ratio_a.double() + inner.double()).float()
    codes = total.round().clamp(output.spec.code_min, output.spec.code_max)
    return dequantize(codes, output)


def _behind(nodes: Mapping[str, fx.Node], layer: Layer) -> list[str]:
    """The nodes between the layer's operation and its output, the output included."""
    names, node = [], nodes[layer.node]
    while node.name != layer.output:
        (node,) = node.users
        names.append(node.name)
    return names
