"""Which channels of a network hang together: those that one positive factor may multiply with nothing else to be changed between layers.

f(s x) = s f(x) for a ReLU, a pooling or an addition, channel by channel. So a factor goes from where a channel is made (a row of a weight)
to wherever it is read (columns of weights); an addition ties the channels of both summands, a concatenation keeps them apart. What no
factor passes through keeps its channels FIXED: bounded functions (clip(s x, 0, 6) = s clip(x, 0, 6 / s), a bound for each channel that no
quantizer holds), sigmoids, the network's inputs and outputs, and all operations that are not named here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import fx

from quantkit.network.folding import ATEN, covers_map, operand

FIXED = 0
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default)
NORMS = (ATEN.layer_norm.default,)
Classes = NDArray[np.int64]  # of each channel, by its number


@dataclass(frozen=True, slots=True)
class Carried:
    """The channels of a tensor: along which axis, and the class of each."""

    axis: int
    classes: Classes


@dataclass(frozen=True, slots=True)
class Use:
    """A layer that makes channels of the classes `made`, of those of `read` (None where what it reads keeps its factors out of it).

    Parameters by name; `groups` of a convolution. A layer that multiplies channel by channel reads none: what goes in is FIXED.
    """

    weight: str
    bias: str | None
    made: Classes
    read: Classes | None
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Channels:
    """By node name what each tensor carries, and who makes and reads it. Classes are final: equal numbers have one factor."""

    tensors: Mapping[str, Carried]
    uses: tuple[Use, ...]
    count: int


@dataclass(slots=True)
class _Walk:
    """Classes so far, a forest in which each points at an older one, or at itself."""

    readers: Mapping[str, int]  # of each parameter
    parents: list[int] = field(default_factory=lambda: [FIXED])
    tensors: dict[str, Carried] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)

    def fresh(self, count: int) -> Classes:
        start = len(self.parents)
        self.parents += range(start, start + count)
        return np.arange(start, start + count)

    def root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = number = self.parents[self.parents[number]]
        return number

    def join(self, one: Classes, other: Classes) -> None:
        for first, second in zip(map(self.root, one), map(self.root, other), strict=True):
            self.parents[max(first, second)] = min(first, second)

    def carried(self, node: fx.Node | None) -> Carried | None:
        return self.tensors.get(node.name) if node is not None else None

    def fix(self, *nodes: fx.Node | None) -> None:
        for carried in filter(None, map(self.carried, nodes)):
            self.join(carried.classes, np.zeros_like(carried.classes))

    def is_fixed(self, carried: Carried) -> bool:
        return all(self.root(number) == FIXED for number in carried.classes)


def find_channels(module: fx.GraphModule) -> Channels:
    """The channels of a canonical network, from its inputs to its outputs."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    reads = (str(node.target) for node in module.graph.nodes if node.op == "get_attr" for _ in node.users)
    walk = _Walk(Counter(name for name in reads if name in parameters))
    for node in module.graph.nodes:
        carried = RULES[node.target](walk, node) if node.op == "call_function" and node.target in RULES else None
        if carried is not None:
            walk.tensors[node.name] = carried
        elif node.op != "get_attr":
            walk.fix(*node.all_input_nodes)
    final = np.array([walk.root(number) for number in range(len(walk.parents))])
    tensors = {name: Carried(one.axis, final[one.classes]) for name, one in walk.tensors.items()}
    uses = tuple(Use(u.weight, u.bias, final[u.made], None if u.read is None else final[u.read], u.groups) for u in walk.uses)
    return Channels(tensors, uses, len(final))


def _weighted(walk: _Walk, node: fx.Node) -> Carried:
    """Rows of the weight make channels, columns read them."""
    value, source = node.meta["val"], operand(node, 0)
    axis = 1 if node.target in CONVOLUTIONS else value.dim() - 1
    carried = walk.carried(source)
    if not _owns(walk, node, 1, 2):
        walk.fix(source)
        return Carried(axis, np.zeros(int(value.shape[axis]), np.int64))
    if carried is not None and carried.axis != axis:
        walk.fix(source)
        carried = None
    groups = cast("int", node.args[6]) if node.target in CONVOLUTIONS and len(node.args) > 6 else 1
    made = walk.fresh(int(value.shape[axis]))
    walk.uses.append(Use(_name(node, 1) or "", _name(node, 2), made, None if carried is None else carried.classes, groups))
    return Carried(axis, made)


def _norm(walk: _Walk, node: fx.Node) -> Carried | None:
    """A layer norm with a gain for each channel; what it reads is normalized over its channels."""
    sides = cast("Sequence[int]", node.args[1])
    if len(sides) != 1 or _name(node, 2) is None or not _owns(walk, node, 2, 3):
        return None
    walk.fix(operand(node, 0))
    return _scaled(walk, node, _name(node, 2) or "", _name(node, 3))


def _scaled(walk: _Walk, node: fx.Node, weight: str, bias: str | None) -> Carried:
    axis = node.meta["val"].dim() - 1
    made = walk.fresh(int(node.meta["val"].shape[axis]))
    walk.uses.append(Use(weight, bias, made, None))
    return Carried(axis, made)


def _product(walk: _Walk, node: fx.Node) -> Carried | None:
    """By a stored gain for each channel (RMSNorm), by a number, or by what is FIXED (a gate)."""
    one, other = operand(node, 0), operand(node, 1)
    if other is None:
        number = node.args[1] if len(node.args) > 1 else None
        return walk.carried(one) if isinstance(number, int | float) and number != 0 else None
    for gain, place in ((one, 0), (other, 1)):
        if gain is not None and gain.op == "get_attr" and gain.meta["val"].dim() == 1 and _owns(walk, node, place):
            if int(gain.meta["val"].shape[0]) != node.meta["val"].shape[-1]:
                return None
            walk.fix(other if place == 0 else one)
            return _scaled(walk, node, str(gain.target), None)
    first, second = walk.carried(one), walk.carried(other)
    for passed, gate in ((first, second), (second, first)):
        if passed is not None and gate is not None and walk.is_fixed(gate) and len(passed.classes) == node.meta["val"].shape[passed.axis]:
            return passed
    return None


def _sum(walk: _Walk, node: fx.Node) -> Carried | None:
    """Both summands have the factors of their sum."""
    one, other = (walk.carried(operand(node, place)) for place in (0, 1))
    if one is None or other is None or node.kwargs or one.axis != other.axis or len(one.classes) != len(other.classes):
        return None
    if len({cast("fx.Node", read).meta["val"].dim() for read in node.args}) > 1:
        return None
    walk.join(one.classes, other.classes)
    return one


def _concatenation(walk: _Walk, node: fx.Node) -> Carried | None:
    parts = [walk.carried(part) for part in cast("Sequence[fx.Node]", node.args[0])]
    axis = (cast("int", node.args[1]) if len(node.args) > 1 else 0) % node.meta["val"].dim()
    found = [part for part in parts if part is not None and part.axis == axis]
    return Carried(axis, np.concatenate([part.classes for part in found])) if len(found) == len(parts) else None


def _same(walk: _Walk, node: fx.Node) -> Carried | None:
    return walk.carried(operand(node, 0))


def _mean(walk: _Walk, node: fx.Node) -> Carried | None:
    """Over whole maps."""
    source = operand(node, 0)
    keeps = len(node.args) > 2 and bool(node.args[2])
    return walk.carried(source) if source is not None and keeps and not node.kwargs and covers_map(source, node.args[1]) else None


def _padding(walk: _Walk, node: fx.Node) -> Carried | None:
    """With zeros, of the sides behind the channels."""
    carried, sides = walk.carried(operand(node, 0)), cast("Sequence[int]", node.args[1])
    is_zero = all(value in (0, None, "constant") for value in node.args[2:]) and not node.kwargs
    return carried if carried is not None and is_zero and len(sides) <= 2 * (node.meta["val"].dim() - 1 - carried.axis) else None


def _reshape(walk: _Walk, node: fx.Node) -> Carried | None:
    """Maps [items, channels, …] in a row: a channel's values stay side by side."""
    source = operand(node, 0)
    carried = walk.carried(source)
    if source is None or carried is None or carried.axis != 1:
        return None
    sides, value = source.meta["val"].shape[2:], node.meta["val"]
    if value.dim() < 2 or not all(isinstance(side, int) for side in (*sides, *value.shape[1:])):
        return None
    if value.shape[1] == source.meta["val"].shape[1] and prod(value.shape[2:]) == prod(sides):
        return carried
    is_row = value.dim() == 2 and value.shape[1] == len(carried.classes) * prod(sides)
    return Carried(1, np.repeat(carried.classes, prod(sides))) if is_row else None


def _permutation(walk: _Walk, node: fx.Node) -> Carried | None:
    carried, dimensions = walk.carried(operand(node, 0)), node.meta["val"].dim()
    if carried is None:
        return None
    order = list(range(dimensions))
    if node.target is ATEN.transpose.int:
        one, other = (cast("int", axis) % dimensions for axis in node.args[1:3])
        order[one], order[other] = other, one
    else:
        order = [axis % dimensions for axis in cast("Sequence[int]", node.args[1])]
    return Carried(order.index(carried.axis), carried.classes)


RULES: Mapping[Any, Callable[[_Walk, fx.Node], Carried | None]] = {
    **dict.fromkeys((*CONVOLUTIONS, ATEN.linear.default), _weighted),
    **dict.fromkeys(NORMS, _norm),
    ATEN.mul.Tensor: _product,
    ATEN.add.Tensor: _sum,
    ATEN.cat.default: _concatenation,
    ATEN.mean.dim: _mean,
    **dict.fromkeys((ATEN.permute.default, ATEN.transpose.int), _permutation),
    **dict.fromkeys((ATEN.pad.default, ATEN.constant_pad_nd.default), _padding),
    **dict.fromkeys(
        (ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.squeeze.dim, ATEN.squeeze.dims, ATEN.unsqueeze.default),
        _reshape,
    ),
    **dict.fromkeys(
        (
            ATEN.relu.default, ATEN.leaky_relu.default, ATEN.max_pool1d.default, ATEN.max_pool2d.default, ATEN.avg_pool1d.default,
            ATEN.avg_pool2d.default, ATEN.upsample_nearest2d.vec, ATEN.upsample_nearest2d.default, ATEN.clone.default,
        ),
        _same,
    ),
}  # fmt: skip


def _name(node: fx.Node, place: int) -> str | None:
    source = operand(node, place)
    return str(source.target) if source is not None and source.op == "get_attr" else None


def _owns(walk: _Walk, node: fx.Node, *places: int) -> bool:
    """Whether what the node reads there are parameters that nothing else reads; a bias may be missing."""
    sources = [source for place in places if (source := operand(node, place)) is not None]
    return all(one.op == "get_attr" and walk.readers[str(one.target)] == 1 for one in sources)
