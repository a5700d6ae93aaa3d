"""Random networks from real building blocks, drawn from a seed, with heads that spread their answers over the classes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 8
ITEMS = 208
LEAST_CLASSES = 5
REDRAWN = 100_000  # between a seed and the next that is tried in its place
SIDE, LENGTH = 10, 24
Step = Callable[[Tensor], Tensor]


class Drawn(nn.Module):
    """One input of images or of sequences, or two of images; what happens to them is drawn from `seed`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = np.random.default_rng(seed)
        self.modules_drawn = nn.ModuleList()
        self.flat = bool(self.random.random() < 0.15)
        self.two_inputs = not self.flat and bool(self.random.random() < 0.15)
        channels, self.steps = self._stem(), []
        self.blocks: list[str] = []
        if self.two_inputs:
            self.second = self._conv(3, channels, 3)
        for _ in range(int(self.random.integers(2, 6))):
            names = ["plain", "residual", "dense", "strided", "divided"] if self.flat else list(BLOCKS)
            name = str(self.random.choice(names))
            self.blocks.append(name)
            step, channels = BLOCKS[name](self, channels)
            self.steps.append(step)
        self.hidden = nn.Linear(channels, 12) if self.random.random() < 0.3 else None
        self.head = nn.Linear(12 if self.hidden is not None else channels, CLASSES)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.activation(self.stem(x))
        if y is not None:
            x = x + self.second(y)
        for step in self.steps:
            x = step(x)
        x = x.mean(tuple(range(2, x.dim())))
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        return self.head(x)

    def add(self, module: nn.Module) -> nn.Module:
        """Register a module that a step uses."""
        self.modules_drawn.append(module)
        return module

    def conv(self, inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Module:
        """A registered convolution that keeps the size of its input at stride 1, sometimes with a batch norm behind it."""
        return self.add(self._conv(inputs, outputs, size, **options))

    def function(self) -> Callable[[Tensor], Tensor]:
        """An activation function, or none."""
        functions = [F.relu, F.relu6, F.hardswish, F.silu, F.relu, F.relu, F.gelu, F.leaky_relu, lambda x: x]
        return functions[int(self.random.integers(len(functions)))]  # type: ignore[return-value]

    def width(self) -> int:
        """A number of channels, odd ones among them."""
        return int(self.random.choice([4, 5, 6, 7, 8, 12, 16]))

    def _stem(self) -> int:
        channels = self.width()
        self.stem = self._conv(3, channels, 3)
        self.activation = self.function()
        return channels

    def _conv(self, inputs: int, outputs: int, size: int, **options: int) -> nn.Module:
        kind = nn.Conv1d if self.flat else nn.Conv2d
        padding = options.get("dilation", 1) * (size - 1) // 2
        norm = self.random.random() < 0.4
        found = kind(inputs, outputs, size, padding=padding, bias=bool(not norm or self.random.random() < 0.5), **options)  # type: ignore[arg-type]
        behind = (nn.BatchNorm1d if self.flat else nn.BatchNorm2d)(outputs)
        return nn.Sequential(found, behind) if norm else found


def plain(net: Drawn, channels: int) -> tuple[Step, int]:
    outputs = net.width()
    dilation = int(net.random.choice([1, 1, 2]))
    conv, function = net.conv(channels, outputs, int(net.random.choice([1, 3])), dilation=dilation), net.function()
    return lambda x: function(conv(x)), outputs


def strided(net: Drawn, channels: int) -> tuple[Step, int]:
    outputs = net.width()
    conv, function = net.conv(channels, outputs, stride=2), net.function()
    return lambda x: function(conv(x)), outputs


def grouped(net: Drawn, channels: int) -> tuple[Step, int]:
    outputs, groups = 8, 2 if channels % 2 == 0 else channels if 8 % channels == 0 else 1
    conv, function = net.conv(channels, outputs, groups=groups), net.function()
    return lambda x: function(conv(x)), outputs


def residual(net: Drawn, channels: int) -> tuple[Step, int]:
    one, two, inner, outer = net.conv(channels, channels), net.conv(channels, channels), net.function(), net.function()
    return lambda x: outer(two(inner(one(x))) + x), channels


def projected(net: Drawn, channels: int) -> tuple[Step, int]:
    outputs = net.width()
    one, shortcut, outer = net.conv(channels, outputs, stride=2), net.conv(channels, outputs, 1, stride=2), net.function()
    return lambda x: outer(shortcut(x) + one(x)), outputs


def inverted(net: Drawn, channels: int) -> tuple[Step, int]:
    wide = 2 * channels
    expand, depth, project = net.conv(channels, wide, 1), net.conv(wide, wide, groups=wide), net.conv(wide, channels, 1)
    return lambda x: project(F.relu6(depth(F.relu6(expand(x))))) + x, channels


def dense(net: Drawn, channels: int) -> tuple[Step, int]:
    grown = net.width()
    conv, function = net.conv(channels, grown), net.function()
    return lambda x: torch.cat([x, function(conv(x))], 1), channels + grown


def branches(net: Drawn, channels: int) -> tuple[Step, int]:
    sizes = [net.width() for _ in range(3)]
    one, two, three = (net.conv(channels, size, kernel) for size, kernel in zip(sizes, (1, 3, 1), strict=True))
    functions = [net.function() for _ in range(2)]

    def step(x: Tensor) -> Tensor:
        return torch.cat([functions[0](one(x)), functions[1](two(x)), F.relu(three(F.max_pool2d(x, 3, 1, 1)))], 1)

    return step, sum(sizes)


def excited(net: Drawn, channels: int) -> tuple[Step, int]:
    down, up = net.add(nn.Conv2d(channels, 4, 1)), net.add(nn.Conv2d(4, channels, 1))
    gate = F.hardsigmoid if net.random.random() < 0.5 else torch.sigmoid
    return lambda x: x * gate(up(F.relu(down(F.adaptive_avg_pool2d(x, 1))))), channels


def gated(net: Drawn, channels: int) -> tuple[Step, int]:
    """An inverted residual of an EfficientNet."""
    wide = 2 * channels
    expand, depth, project = net.conv(channels, wide, 1), net.conv(wide, wide, groups=wide), net.conv(wide, channels, 1)
    down, up = net.add(nn.Conv2d(wide, 4, 1)), net.add(nn.Conv2d(4, wide, 1))

    def step(x: Tensor) -> Tensor:
        wider = F.silu(depth(F.silu(expand(x))))
        return project(wider * torch.sigmoid(up(F.silu(down(wider.mean((2, 3), keepdim=True)))))) + x

    return step, channels


def divided(net: Drawn, channels: int) -> tuple[Step, int]:
    """Half of the channels goes through, one way or another."""
    half = channels // 2
    conv, function = net.conv(half, half), net.function()
    product = net.random.random() < 0.5

    def step(x: Tensor) -> Tensor:
        one, other = x.split([half, channels - half], 1)
        moved = function(conv(one))
        return torch.cat([other, moved * torch.sigmoid(one) if product else moved], 1)

    return step, channels


def twice(net: Drawn, channels: int) -> tuple[Step, int]:
    conv = net.conv(channels, channels)
    return lambda x: F.relu(conv(F.relu(conv(x)))), channels


def pooled(net: Drawn, channels: int) -> tuple[Step, int]:
    if net.random.random() < 0.5:
        return lambda x: F.max_pool2d(x, 3, 1, 1), channels
    counts = bool(net.random.random() < 0.5)
    return lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=counts), channels


def shuffled(net: Drawn, channels: int) -> tuple[Step, int]:
    conv, even = net.conv(channels, channels), channels % 2 == 0

    def step(x: Tensor) -> Tensor:
        x = F.relu(conv(x))
        return x.unflatten(1, (2, channels // 2)).transpose(1, 2).flatten(1, 2) if even else x

    return step, channels


def resized(net: Drawn, channels: int) -> tuple[Step, int]:
    down, up, function = net.conv(channels, channels, stride=2), net.conv(channels, channels), net.function()

    def step(x: Tensor) -> Tensor:
        return torch.cat([x, function(up(F.interpolate(down(x), size=x.shape[2:], mode="nearest")))], 1)

    return step, 2 * channels


DRAWN = (
    plain, strided, grouped, residual, projected, inverted, dense, branches, excited, gated, divided, twice, pooled, shuffled, resized,
)  # fmt: skip
BLOCKS: dict[str, Callable[[Drawn, int], tuple[Step, int]]] = {block.__name__: block for block in DRAWN}


def draw(seed: int) -> tuple[Drawn, dict[str, Tensor]]:
    """A network in evaluation mode and ITEMS inputs for it, on which it answers with at least LEAST_CLASSES classes.

    One that says the same to nearly everything (its activations died) would prove nothing: the next is drawn instead.
    """
    for again in count():
        net, inputs = _drawn(seed + again * REDRAWN)
        with torch.no_grad():
            if len(net(**inputs).argmax(1).unique()) >= LEAST_CLASSES:
                break
    return net, inputs


def _drawn(seed: int) -> tuple[Drawn, dict[str, Tensor]]:
    torch.manual_seed(seed)
    net = Drawn(seed).eval()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    names = ["x", "y"] if net.two_inputs else ["x"]
    shape = (3, LENGTH) if net.flat else (3, SIDE, SIDE)
    scales = 0.3 + 2 * torch.rand(ITEMS, 3).reshape(ITEMS, 3, *[1] * (len(shape) - 1))
    inputs = {name: torch.randn(ITEMS, *shape) * scales + torch.randn_like(scales) for name in names}
    with torch.no_grad():  # centred and scaled scores: else one class would answer for all
        scores = net(**inputs)
        spread = scores.std(0).clamp(min=1e-4)
        net.head.weight.div_(spread[:, None])
        net.head.bias.copy_((net.head.bias - scores.mean(0)) / spread)
    return net, inputs
