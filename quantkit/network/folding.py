"""Batch norm folded into the layer in front of it, found in the graph, never by order or name.

w' = w · γ / √(σ² + ε), b' = (b − μ) · γ / √(σ² + ε) + β, in float64. A batch norm whose input has another reader, or that
follows no weighted layer, or one whose weight is used elsewhere, stays as it is.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, cast

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
WEIGHTED = {ATEN.conv2d.default, ATEN.conv1d.default, ATEN.linear.default}
CLIPS = (ATEN.hardtanh.default, ATEN.clamp.default, ATEN.relu6.default)
BATCH_NORM = ATEN._native_batch_norm_legit_no_training.default


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module` (an unlifted, functional, eval-mode graph) without the batch norms that can be folded.

    Parameter names survive; a bias that did not exist is added beside its weight. The caller's tensors are never written to.
    """
    folded = fx.GraphModule(module, copy.deepcopy(module.graph))
    for norm in folded.graph.find_nodes(op="call_function", target=BATCH_NORM):
        layer = operand(norm, 0)
        if layer is not None and layer.target in WEIGHTED and len(layer.users) == 1 and _is_own(operand(layer, 1)) and _is_stored(layer, 2):
            _fold_into(folded, layer, norm)
    folded.graph.eliminate_dead_code()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def operand(node: fx.Node, place: int) -> fx.Node | None:
    """The node that `node` reads at `place`; None where there is none or a plain value."""
    found = node.args[place] if len(node.args) > place else None
    return found if isinstance(found, fx.Node) else None


def bounds(node: fx.Node) -> tuple[float | None, float | None]:
    """Between what the clipping `node` keeps its values."""
    if node.target is ATEN.relu6.default:
        return 0.0, 6.0
    usual: tuple[float | None, ...] = (-1.0, 1.0) if node.target is ATEN.hardtanh.default else (None, None)
    given: list[Any] = [*node.args[1:3]]
    limits: list[Any] = [*given, *usual[len(given) :]]
    low, high = limits
    return None if low is None else float(low), None if high is None else float(high)


def _is_own(parameter: fx.Node | None) -> bool:
    """Whether the node is a stored tensor with one reader in all the graph."""
    if parameter is None or parameter.op != "get_attr":
        return False
    twins = parameter.graph.find_nodes(op="get_attr")
    return sum(len(node.users) for node in twins if node.target == parameter.target) == 1


def _is_stored(layer: fx.Node, place: int) -> bool:
    found = operand(layer, place)
    return found is None or found.op == "get_attr"


def _fold_into(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    weight, bias = operand(layer, 1), operand(layer, 2)
    gamma, beta, mean, variance = (_value(module, operand(norm, place)) for place in range(1, 5))
    old = _value(module, weight)
    assert weight is not None and old is not None and mean is not None and variance is not None
    scaled, shift = _fold(old, _value(module, bias), gamma, beta, mean, variance, cast("float", norm.args[6]))
    name = str(bias.target) if bias is not None and _is_own(bias) else _free_name(module, str(weight.target))
    _assign(module, str(weight.target), scaled)
    _assign(module, name, shift)
    with module.graph.inserting_before(layer):
        layer.args = (*layer.args[:2], module.graph.get_attr(name), *layer.args[3:])
    for user in list(norm.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(layer)


def _free_name(module: fx.GraphModule, weight: str) -> str:
    """Where the bias of `weight` can go: `bias` beside it, unless another layer keeps its own there."""
    path, _, leaf = weight.rpartition(".")
    owner, name = module.get_submodule(path), "bias"
    while hasattr(owner, name):
        name = f"{leaf}_{name}"
    return ".".join(filter(None, (path, name)))


def _fold(
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    gain = (variance.double() + epsilon).rsqrt()
    if gamma is not None:
        gain = gain * gamma.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * gain
    if beta is not None:
        shift = shift + beta.double()
    scaled = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
    return scaled.detach().float(), shift.detach().float()


def _value(module: fx.GraphModule, node: fx.Node | None) -> Tensor | None:
    if node is None:
        return None
    path, _, leaf = str(node.target).rpartition(".")
    return cast("Tensor", getattr(module.get_submodule(path), leaf))


def _assign(module: fx.GraphModule, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, torch.nn.Parameter(value))


def covers_map(x: fx.Node, axes: object) -> bool:
    """Whether `axes` are both sides of maps [items, channels, height, width] of a fixed size."""
    shape = x.meta["val"].shape
    given = sorted(axis % 4 for axis in axes if isinstance(axis, int)) if isinstance(axes, list | tuple) else []
    return len(shape) == 4 and given == [2, 3] and all(isinstance(side, int) for side in shape[2:])
