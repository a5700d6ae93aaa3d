"""Batch norm folded into the convolution or linear layer in front of it, found in the graph, never by order or name.

w' = w · γ / √(σ² + ε), b' = (b − μ) · γ / √(σ² + ε) + β, in float64. A batch norm whose input has another reader, or that
follows no weighted layer, stays as it is.
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
WEIGHTED = {ATEN.conv2d.default, ATEN.conv1d.default, ATEN.linear.default}
BATCH_NORM = ATEN._native_batch_norm_legit_no_training.default


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module` (an unlifted, functional, eval-mode graph) without the batch norms that can be folded.

    Parameter names survive; a bias that did not exist is added beside its weight. The caller's tensors are never written to.
    """
    folded = fx.GraphModule(module, copy.deepcopy(module.graph))
    state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    for norm in [node for node in folded.graph.nodes if node.target is BATCH_NORM]:
        layer = norm.args[0]
        if layer.target not in WEIGHTED or len(layer.users) > 1 or _is_shared(layer.args[1]):
            continue
        weight_node = layer.args[1]
        bias_node = layer.args[2] if len(layer.args) > 2 else None
        gamma, beta, mean, variance = (None if node is None else state[node.target] for node in norm.args[1:5])
        bias = state[bias_node.target] if bias_node is not None else None
        weight, new_bias = _fold(state[weight_node.target], bias, gamma, beta, mean, variance, norm.args[6])
        _assign(folded, weight_node.target, weight)
        bias_name = bias_node.target if bias_node is not None else weight_node.target.rpartition(".")[0] + ".bias"
        _assign(folded, bias_name.lstrip("."), new_bias)
        if bias_node is None:
            with folded.graph.inserting_before(layer):
                bias_node = folded.graph.get_attr(bias_name.lstrip("."))
            layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
        for user in list(norm.users):
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(layer)
    folded.graph.eliminate_dead_code()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def _is_shared(weight: fx.Node) -> bool:
    twins = [node for node in weight.graph.nodes if node.op == "get_attr" and node.target == weight.target]
    return sum(len(node.users) for node in twins) > 1


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


def _assign(module: fx.GraphModule, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    setattr(owner, leaf, torch.nn.Parameter(value))
