"""ONNX Runtime's int8 kernels without weights: the codes that they make of codes, by kind of layer.

What is not here copies codes, or takes them to another grid, as a concatenation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import Tensor, fx

from quantkit.core.numerics.affine import QParams, add_codes, average_codes, dequantize, mul_codes, quantize, requantize
from quantkit.core.numerics.functions import average, logistic
from quantkit.network.operations import pool_settings

# node, codes and qparams of each input, qparams of the output -> codes of the output
Kernel = Callable[[fx.Node, Sequence[Tensor], Sequence[QParams], QParams], Tensor]


def _add(_: fx.Node, codes: Sequence[Tensor], qparams: Sequence[QParams], output: QParams) -> Tensor:
    return add_codes(codes[0], qparams[0], codes[1], qparams[1], output)


def _mul(_: fx.Node, codes: Sequence[Tensor], qparams: Sequence[QParams], output: QParams) -> Tensor:
    return mul_codes(codes[0], qparams[0], codes[1], qparams[1], output)


def _sigmoid(_: fx.Node, codes: Sequence[Tensor], qparams: Sequence[QParams], output: QParams) -> Tensor:
    return quantize(logistic(dequantize(codes[0], qparams[0])), output)


def _leaky_relu(node: fx.Node, codes: Sequence[Tensor], qparams: Sequence[QParams], output: QParams) -> Tensor:
    return quantize(_in_float(node, dequantize(codes[0], qparams[0])), output)


def _avg_pool(node: fx.Node, codes: Sequence[Tensor], qparams: Sequence[QParams], output: QParams) -> Tensor:
    kernel, stride, padding, _, padding_counts = pool_settings(node)
    sides = _in_float(node, codes[0]).shape[2:]
    return average_codes(average(dequantize(codes[0], qparams[0]), kernel, stride, padding, sides, padding_counts), output)


def _global_pool(node: fx.Node, codes: Sequence[Tensor], qparams: Sequence[QParams], output: QParams) -> Tensor:
    """An exact sum over the map, requantized by scale / (output scale · values of the map)."""
    total = (codes[0] - qparams[0].zero_point).double().sum(cast("list[int]", node.args[1]), keepdim=True).float()
    return requantize(total, qparams[0].scale / (output.scale * float(codes[0][0, 0].numel())), output)


def _in_float(node: fx.Node, x: Tensor) -> Tensor:
    """The operation of `node`, which reads one tensor, on `x`."""
    return cast("Callable[..., Tensor]", node.target)(x, *node.args[1:])


KERNELS: Mapping[str, Kernel] = {
    "add": _add, "mul": _mul, "sigmoid": _sigmoid, "leaky_relu": _leaky_relu, "avg_pool": _avg_pool, "global_pool": _global_pool,
}  # fmt: skip
