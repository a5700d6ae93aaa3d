"""What means the same, spelt in one way, so that what follows knows one form of each and the ONNX exporter keeps its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import inf, isinf, prod
from typing import Any, cast

import torch
from torch import fx, nn

from quantkit.network.folding import ATEN, bounds, covers_map, operand

CONVOLUTIONS: Mapping[int, Callable[..., Any]] = {3: ATEN.conv1d.default, 4: ATEN.conv2d.default}
WEIGHTED = (*CONVOLUTIONS.values(), ATEN.linear.default)
VIEWS = (ATEN.view.default, ATEN.reshape.default, ATEN._unsafe_view.default)
CLIPS = (ATEN.relu.default, ATEN.relu6.default, ATEN.hardtanh.default, ATEN.clamp.default)
NAMED_PADDING: Mapping[object, Callable[..., Any]] = {ATEN.conv1d.padding: ATEN.conv1d.default, ATEN.conv2d.padding: ATEN.conv2d.default}


def spell_weighted(module: fx.GraphModule) -> None:
    """What a traced TorchScript says in words of its own: any convolution as one of its dimensions, and weights as parameters.

    Batch norm can be folded only afterwards.
    """
    for node in module.graph.nodes:
        if node.target is ATEN.convolution.default:
            stride, padding, dilation, transposed, _, groups = node.args[3:]
            form = CONVOLUTIONS.get(len(node.args[0].meta["val"].shape))
            if form and not transposed:
                node.target, node.args = form, (*node.args[:3], stride, padding, dilation, groups)
        if node.target is ATEN.addmm.default and not node.kwargs:
            _spell_product(module, node)
        if node.target in WEIGHTED:
            for source in node.args[1:3]:
                if isinstance(source, fx.Node) and source.op == "get_attr":
                    _adopt(module, str(source.target))
    module.recompile()


def _spell_product(module: fx.GraphModule, node: fx.Node) -> None:
    """bias + x · W with parameters, as GPT-2 writes its layers: a linear layer, whose weight lies transposed."""
    bias, _, weight = cast("tuple[fx.Node, fx.Node, fx.Node]", node.args[:3])
    readers = [one for one in module.graph.nodes if one.op == "get_attr" and one.target == weight.target]
    uses = [(user, place) for one in readers for user in one.users for place, source in enumerate(user.args) if source is one]
    if weight.op != "get_attr" or bias.op != "get_attr" or any(user.target is not ATEN.addmm.default or place != 2 for user, place in uses):
        return
    room, _, own = str(weight.target).rpartition(".")
    owner = module.get_submodule(room)
    if own not in owner._parameters or bias.meta["val"].dim() != 1:
        return
    transposed = cast("torch.Tensor", owner._parameters[own]).detach().T.contiguous()
    owner.register_parameter(own, nn.Parameter(transposed, requires_grad=False))
    for one in readers:
        one.meta["val"] = one.meta["val"].T
    for user, _ in uses:
        user.target, user.args = ATEN.linear.default, (user.args[1], user.args[2], user.args[0])


def _adopt(module: fx.GraphModule, name: str) -> None:
    """A buffer becomes the parameter that it is."""
    room, _, own = name.rpartition(".")
    owner = module.get_submodule(room)
    if own in owner._buffers:
        value = owner._buffers.pop(own)
        assert value is not None
        owner.register_parameter(own, nn.Parameter(value, requires_grad=False))


def simplify(module: fx.GraphModule) -> None:
    """Spell what means the same in one way; drop what does nothing and merge what is computed twice.

    The ONNX exporter would do the last two, and so lose a name.
    """
    for node in list(module.graph.nodes):
        if node.target is ATEN.linear.default:
            _spell_rows(node)
    for node in list(module.graph.nodes):
        if node.target in CLIPS:
            _merge_clips(node)
        if node.target in SPELLINGS:
            SPELLINGS[node.target](node)
        elif node.target is ATEN._assert_tensor_metadata.default:  # of a cast; a simulation in float64 would fail it
            module.graph.erase_node(node)
    first: dict[str, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr" or (node.op == "call_function" and not _is_random(node)):
            twin = first.setdefault(f"{node.op} {node.target} {node.args} {node.kwargs}", node)
            if twin is not node:
                _replace(node, twin)
    module.recompile()


def _spell_rows(node: fx.Node) -> None:
    """A linear layer over all tokens of all items in a row keeps its items apart, items first: then it is known whose token each is.

    x → [rows, in] → linear → [a, b, out] becomes x → [a, b, in] → linear; and where `b` are the items, it is turned before and behind.
    """
    x, shape = cast("fx.Node", node.args[0]), node.meta["val"].shape
    views = list(node.users)
    if len(shape) == 2 and x.target in VIEWS and views and all(view.target in VIEWS for view in views):
        sizes = cast("Sequence[Any]", views[0].args[1])
        fits = len(sizes) == 3 and all(str(view.meta["val"].shape) == str(views[0].meta["val"].shape) for view in views)
        if not fits or str(views[0].meta["val"].shape[2]) != str(shape[1]) or isinstance(shape[0], int):
            return
        width = x.meta["val"].shape[-1]
        with node.graph.inserting_before(views[0]):
            split = node.graph.call_function(ATEN.view.default, (x, [*sizes[:2], width]))
            split.meta = {"val": x.meta["val"].reshape(*views[0].meta["val"].shape[:2], width)}
            apart = node.graph.call_function(ATEN.linear.default, (split, *node.args[1:]))
        apart.meta = {**node.meta, "val": views[0].meta["val"]}
        for view in views:
            _replace(view, apart)
        node.graph.erase_node(node)
        node = apart
    _turn_items_first(node)


def _turn_items_first(node: fx.Node) -> None:
    """linear(x) of x [tokens, items, width] is turn(linear(turn(x))); what was turned twice in a row is not turned."""
    x, value = cast("fx.Node", node.args[0]), node.meta["val"]
    if value.dim() != 3 or not isinstance(value.shape[0], int) or isinstance(value.shape[1], int):
        return
    turned = {user for user in node.users if _turns(user)}
    with node.graph.inserting_before(node):
        first = x.args[0] if _turns(x) else node.graph.call_function(ATEN.transpose.int, (x, 0, 1))
        first = cast("fx.Node", first)
        first.meta.setdefault("val", x.meta["val"].transpose(0, 1))
        product = node.graph.call_function(ATEN.linear.default, (first, *node.args[1:]))
        product.meta = {**node.meta, "val": value.transpose(0, 1)}
        back = node.graph.call_function(ATEN.transpose.int, (product, 0, 1))
        back.meta = {"val": value}
    for user in turned:
        _replace(user, product)
    node.replace_all_uses_with(back)
    node.graph.erase_node(node)
    for unread in (back, x):
        if not unread.users and unread.op == "call_function":
            unread.graph.erase_node(unread)


def _turns(node: fx.Node) -> bool:
    """Whether it exchanges the first two axes and no others."""
    if node.target is ATEN.transpose.int:
        return sorted(cast("int", axis) % node.meta["val"].dim() for axis in node.args[1:]) == [0, 1]
    return node.target is ATEN.permute.default and list(cast("Sequence[int]", node.args[1]))[:3] == [1, 0, 2]


def _spell_concatenation(node: fx.Node) -> None:
    """Of one tensor, it is that tensor."""
    parts = cast("Sequence[fx.Node]", node.args[0])
    if len(parts) == 1:
        _replace(node, parts[0])


def _spell_clamp(node: fx.Node) -> None:
    """Both bounds in place, and ReLU for what it is."""
    if node.meta["val"].is_floating_point():
        limits = bounds(node)
        node.target, node.args = (ATEN.relu.default, node.args[:1]) if limits == (0.0, None) else (node.target, (node.args[0], *limits))


def _merge_clips(node: fx.Node) -> None:
    """A clip of a clip that nothing else reads, as one: the exporter would merge them under one name."""
    inner = operand(node, 0)
    if inner is None or inner.target not in CLIPS or len(inner.users) > 1 or not node.meta["val"].is_floating_point():
        return
    (low, high), (own_low, own_high) = _limits(inner), _limits(node)
    both = min(max(low, own_low), own_high), max(min(high, own_high), own_low)
    node.target, node.args, node.kwargs = ATEN.clamp.default, (inner.args[0], *(None if isinf(limit) else limit for limit in both)), {}
    node.graph.erase_node(inner)


def _limits(node: fx.Node) -> tuple[float, float]:
    low, high = (0.0, None) if node.target is ATEN.relu.default else bounds(node)
    return -inf if low is None else low, inf if high is None else high


def _spell_padding(node: fx.Node) -> None:
    """`same` and `valid` in numbers; an uneven `same`, more on one side than on the other, stays as it is."""
    weight = operand(node, 1)
    assert weight is not None
    kernel = weight.meta["val"].shape[2:]
    given: list[Any] = [*node.args[3:]]
    settings: list[Any] = [*given, *([1], "valid", [1], 1)[len(given) :]]
    stride, mode, dilation, groups = settings
    strides, steps = ([*sides] * (len(kernel) // len(sides)) for sides in (stride, dilation))
    total = [step * (side - 1) if mode == "same" else 0 for step, side in zip(steps, kernel, strict=True)]
    if all(extent % 2 == 0 for extent in total):
        node.target = NAMED_PADDING[node.target]
        node.args = (*node.args[:3], strides, [extent // 2 for extent in total], steps, groups)


def _spell_silu(node: fx.Node) -> None:
    """x · sigmoid(x): the runtime has an int8 kernel for each of the two."""
    (x,) = node.args
    node.target, node.args = ATEN.mul.Tensor, (x, _before(node, ATEN.sigmoid.default, x))


def _spell_square(node: fx.Node) -> None:
    """x · x, for which the runtime has an int8 kernel."""
    (x,) = node.args
    node.target, node.args = ATEN.mul.Tensor, (x, x)


def _spell_divisor(node: fx.Node) -> None:
    """An average by a divisor of its own is one by the window's size, scaled: the exporter would forget the divisor."""
    divisor, ceil = (node.args[place] if len(node.args) > place else None for place in (6, 4))
    if divisor is not None and not ceil:
        sides = cast("Sequence[int]", node.args[1])
        mean = _before(node, ATEN.avg_pool2d.default, *node.args[:5], True)
        node.target, node.args = ATEN.mul.Tensor, (mean, prod(sides) ** (2 // len(sides)) / cast("int", divisor))


def _spell_adaptive(node: fx.Node) -> None:
    """Averages over equal windows are an average pool; others stay."""
    x = cast("fx.Node", node.args[0])
    sides, wanted = x.meta["val"].shape[-2:], node.meta["val"].shape[-2:]
    if all(isinstance(side, int) and side % count == 0 for side, count in zip(sides, wanted, strict=True)):
        node.target, node.args = ATEN.avg_pool2d.default, (x, [side // count for side, count in zip(sides, wanted, strict=True)])


def _spell_mean(node: fx.Node) -> None:
    """A mean over a whole map keeps its axes: it is then the runtime's global average pool. What dropped them stands behind it."""
    x = cast("fx.Node", node.args[0])
    axes, keeps = node.args[1] if len(node.args) > 1 else None, bool(node.args[2]) if len(node.args) > 2 else False
    if not keeps and covers_map(x, axes) and not node.kwargs:
        mean = _before(node, ATEN.mean.dim, x, [2, 3], True)
        node.target, node.args = ATEN.squeeze.dim, (_before(node, ATEN.squeeze.dim, mean, 3), 2)


def _spell_addition(node: fx.Node) -> None:
    """The larger summand first: where the smaller is spread over it, the order decides how the runtime rounds."""
    values = [entry.meta["val"] if isinstance(entry, fx.Node) else None for entry in node.args]
    shapes = [str(value.shape) if isinstance(value, torch.Tensor) else "" for value in values]
    if node.kwargs.get("alpha", 1) == 1 and shapes[1] == str(node.meta["val"].shape) != shapes[0]:
        node.args = (node.args[1], node.args[0])


def _spell_split(node: fx.Node) -> None:
    """Each part as a slice: codes pass through it whoever reads the other parts."""
    axis = cast("int", node.args[2]) if len(node.args) > 2 else 0
    sizes = [part.shape[axis] for part in node.meta["val"]]
    if all(isinstance(size, int) for size in sizes):
        ends = list(accumulate(sizes))
        for user in list(node.users):
            place = cast("int", user.args[1])
            user.target, user.args = ATEN.slice.Tensor, (node.args[0], axis, ends[place] - sizes[place], ends[place])
        node.graph.erase_node(node)


def _spell_shuffle(node: fx.Node) -> None:
    """Reshaped, transposed, reshaped: the runtime carries codes through these, and none through DepthToSpace."""
    x, factor = cast("fx.Node", node.args[0]), cast("int", node.args[1])
    before, after = x.meta["val"].shape, node.meta["val"].shape
    if len(before) == 4 and all(isinstance(side, int) for side in before[1:]):
        spread = _before(node, ATEN.reshape.default, x, [-1, after[1], factor, factor, *before[2:]])
        moved = _before(node, ATEN.permute.default, spread, [0, 1, 4, 2, 5, 3])
        node.target, node.args = ATEN.reshape.default, (moved, [-1, *after[1:]])


SPELLINGS: Mapping[object, Callable[[fx.Node], None]] = {
    ATEN.cat.default: _spell_concatenation,
    ATEN.clamp.default: _spell_clamp,
    ATEN.silu.default: _spell_silu,
    ATEN.square.default: _spell_square,
    ATEN.add.Tensor: _spell_addition,
    ATEN.avg_pool2d.default: _spell_divisor,
    ATEN.mean.dim: _spell_mean,
    ATEN._adaptive_avg_pool2d.default: _spell_adaptive,
    ATEN.split.Tensor: _spell_split,
    ATEN.split_with_sizes.default: _spell_split,
    ATEN.pixel_shuffle.default: _spell_shuffle,
    **dict.fromkeys(NAMED_PADDING, _spell_padding),
}


def _before(node: fx.Node, target: Callable[..., Any], *arguments: Any) -> fx.Node:
    """A new node in front of `node`, which stands where it does in the author's network."""
    with node.graph.inserting_before(node):
        found = node.graph.call_function(target, arguments)
    found.meta = {key: value for key, value in node.meta.items() if key != "val"}
    return found


def _replace(node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
