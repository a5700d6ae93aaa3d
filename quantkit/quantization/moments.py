"""Second moments of what each output of a weighted layer multiplies: E[x x'] in the float network, from one pass over the data, and, for
one layer, what it reads in a quantized network beside what it reads in float (`PairedMoments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from quantkit.core.graph import Graph, Layer
from quantkit.data.batch import Batch, of_tokens
from quantkit.network.captured import Captured

MOST_PRODUCTS = 4608  # of one output: 512 channels of 3×3; a matrix of more would take over 85 MB
POSITIONS = 256  # outputs of an item that are looked at where a quantized network is compared: neighbours say much the same


@torch.no_grad()
def second_moments(captured: Captured, batches: Iterable[Batch], advance: Callable[[int], None]) -> dict[str, Tensor]:
    """By layer name, shape [groups, products, products], products in the order of weight.flatten(1); uncentred, float32.

    They are `shrunk`. Layers of more than MOST_PRODUCTS products are left out, and padding. Linear layers that read one tensor (queries,
    keys and values) have one matrix, the same object. Sums over batches run in float64; `advance(items)` after each.
    """
    wanted = {layer.node: layer for layer in captured.graph.layers if layer.inputs and layer.weight and _products(layer) <= MOST_PRODUCTS}
    first: dict[str, str] = {}
    whose = {one.name: first.setdefault(one.name if one.kind == "conv" else f"tensor {one.inputs[0]}", one.name) for one in wanted.values()}
    total: dict[str, Tensor] = {}
    outputs: dict[str, int] = {}

    class Watch(fx.Interpreter):
        counted: Tensor | None = None

        def run_node(self, n: fx.Node) -> Any:
            if n.name in wanted and whose[wanted[n.name].name] == wanted[n.name].name:
                layer, (arguments, _) = wanted[n.name], self.fetch_args_kwargs_from_env(n)
                x = cast("Tensor", arguments[0])
                x = of_tokens(x, self.counted) if layer.kind == "linear" else x
                rows = columns(n, layer, x).permute(1, 2, 0, 3).flatten(2)
                moments = (rows @ rows.mT).double()
                total[layer.name] = total[layer.name] + moments if layer.name in total else moments
                outputs[layer.name] = outputs.get(layer.name, 0) + rows.shape[-1]
            return super().run_node(n)

    for batch in batches:
        watch = Watch(captured.module)
        watch.counted = batch.counted
        watch.run(*[batch.inputs[name] for name in captured.graph.inputs])
        advance(batch.size)
    found = {name: shrunk(total.pop(name) / outputs[name], outputs[name]).float() for name in list(total)}
    return {name: found[other] for name, other in whose.items()}


def shrunk(moments: Tensor, outputs: int) -> Tensor:
    """`moments` [groups, products, products] of so many outputs, with K / N of the mean energy on the diagonal: K products, N outputs.

    Of no more outputs than products they say nothing of most directions, and weights that are free to move along these fit the items at
    hand and no others (MobileNetV2, 160 items, w4a8: 0.0001 nats on them and 0.19 on others; so 0.007 and 0.17).
    """
    energy = moments.diagonal(dim1=1, dim2=2).mean(dim=1) * (moments.shape[1] / outputs)
    return moments + torch.diag_embed(energy[:, None].expand(-1, moments.shape[1]))


class PairedMoments:
    """What a layer multiplies in the float network, f, and in a quantized one, q, for the same outputs; added up in float64.

    Of each item at most `POSITIONS` outputs are taken, the same ones of both.
    """

    def __init__(self, node: fx.Node, layer: Layer, device: torch.device) -> None:
        self._node, self._layer, self._count = node, layer, 0
        shape = (layer.groups if layer.kind == "conv" else 1, _products(layer))
        self._sums = [torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2)]
        self._squares = [torch.zeros((*shape, shape[1]), dtype=torch.float64, device=device) for _ in range(2 if self.is_whole else 0)]

    @property
    def is_whole(self) -> bool:
        """Whether products are few enough for second moments; otherwise there are means alone."""
        return _products(self._layer) <= MOST_PRODUCTS

    def add(self, plain: Tensor, quantized: Tensor, counted: Tensor | None) -> None:
        """What the layer reads of one batch, in both networks; padding is left out."""
        pair = (of_tokens(x, counted) if self._layer.kind == "linear" else x for x in (plain, quantized))
        f, q = (columns(self._node, self._layer, x, POSITIONS).permute(1, 2, 0, 3).flatten(2) for x in pair)
        for total, rows in zip(self._sums, (f, q), strict=True):
            total += rows.sum(dim=2).double()
        for square, rows in zip(self._squares, (f, q), strict=False):
            square += (rows @ q.mT).double()
        self._count += f.shape[2]

    def means(self) -> tuple[Tensor, Tensor]:
        """E[f] and E[q], shape [groups, products]."""
        f, q = self._sums
        return f / self._count, q / self._count

    def moments(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """E[f q'] and E[q q'], shape [groups, products, products]; with `centred`, of what differs from the means. Both `shrunk` alike."""
        (f, q), (cross, own) = self.means(), self._squares
        cross, own = cross / self._count, own / self._count
        if centred:
            cross, own = cross - f[:, :, None] * q[:, None, :], own - q[:, :, None] * q[:, None, :]
        return cross + (shrunk(own, self._count) - own), shrunk(own, self._count)


def without_moments(graph: Graph) -> tuple[str, ...]:
    """The layers that `second_moments` leaves out, by name: rounding knows nothing of what they multiply, and takes the nearest codes."""
    return tuple(layer.name for layer in graph.layers if layer.inputs and layer.weight and _products(layer) > MOST_PRODUCTS)


def _products(layer: Layer) -> int:
    return layer.weight_count // layer.weight_shape[layer.weight_axis]


def columns(node: fx.Node, layer: Layer, x: Tensor, most: int | None = None) -> Tensor:
    """What each output of the layer multiplies, shape [items, groups, products, positions]; products in the order of weight.flatten(1).

    With `most`, of a convolution no more positions of an item than that, drawn once for every map of a size.
    """
    if layer.kind != "conv":
        return x.reshape(len(x), 1, -1, _products(layer)).mT.float()
    kernel = layer.weight_shape[2:]
    given = [*node.args[3:6], *((1,), (0,), (1,))[len(node.args[3:6]) :]]  # stride, padding, dilation
    stride, padding, dilation = (list(cast("Sequence[int]", sides)) * (len(kernel) // len(cast("Sequence[int]", sides))) for sides in given)
    if len(kernel) == 1:
        x, kernel, stride, padding, dilation = x.unsqueeze(2), (1, *kernel), [1, *stride], [0, *padding], [1, *dilation]
    seen = F.pad(x.float(), (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x.float()
    for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        seen = seen.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]  # a view; F.unfold takes two to six times as long
    seen = seen.permute(0, 1, 4, 5, 2, 3)
    height, width = seen.shape[-2:]
    if most is not None and height * width > most:
        drawn = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))[:most].sort().values.to(x.device)
        seen = seen[..., drawn // width, drawn % width]
    return seen.reshape(len(x), layer.groups, _products(layer), -1)
