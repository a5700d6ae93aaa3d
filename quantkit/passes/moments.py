"""Second moments: E[x x'] of what each output of a weighted layer multiplies, from one float pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx

from quantkit.capture import Captured
from quantkit.data import Batch
from quantkit.graph import Layer

MOST_PRODUCTS = 4608  # of one output: 512 channels of 3×3; a matrix of more would take over 85 MB


@torch.no_grad()
def second_moments(captured: Captured, batches: Iterable[Batch], advance: Callable[[int], None]) -> dict[str, Tensor]:
    """By layer name, shape [groups, products, products], products in the order of weight.flatten(1); uncentred, float32.

    Layers of more than MOST_PRODUCTS products are left out. Sums over batches run in float64; `advance(items)` after each.
    """
    wanted = {layer.node: layer for layer in captured.graph.layers if layer.weight and _products(layer) <= MOST_PRODUCTS}
    total: dict[str, Tensor] = {}
    outputs: dict[str, int] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.name in wanted:
                layer, (arguments, _) = wanted[n.name], self.fetch_args_kwargs_from_env(n)
                columns = _columns(n, layer, cast("Tensor", arguments[0]))
                moments = (columns @ columns.mT).double()
                total[layer.name] = total[layer.name] + moments if layer.name in total else moments
                outputs[layer.name] = outputs.get(layer.name, 0) + columns.shape[-1]
            return super().run_node(n)

    for batch in batches:
        Watch(captured.module).run(*[batch.inputs[name] for name in captured.graph.inputs])
        advance(batch.size)
    return {name: (moments / outputs[name]).float() for name, moments in total.items()}


def _products(layer: Layer) -> int:
    return layer.weight_count // layer.weight_shape[layer.weight_axis]


def _columns(node: fx.Node, layer: Layer, x: Tensor) -> Tensor:
    """What each output multiplies, shape [groups, products, outputs of all items]: a convolution with one-hot weights tells."""
    products = _products(layer)
    if layer.kind != "conv":
        return x.reshape(1, -1, products).mT.float()
    channels = x.shape[1] // layer.groups
    one_hot = torch.eye(products, device=x.device).reshape(products, channels, *layer.weight_shape[2:])
    operation, settings = cast("Callable[..., Tensor]", node.target), node.args[3:6]  # stride, padding, dilation
    patches = operation(x.reshape(-1, channels, *x.shape[2:]).float(), one_hot, None, *settings)
    return patches.reshape(len(x), layer.groups, products, -1).permute(1, 2, 0, 3).flatten(2)
