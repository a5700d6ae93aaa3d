"""Hessian trace times perturbation (HAWQ-V2, arXiv 1911.03852).

    Ω_i(b) = ½ · Tr(H_ii) / n_i · ‖Q_b(W_i) − W_i‖² · a_i(b)

H_ii is the block of the loss Hessian that belongs to layer i's n_i weights; the ½ of the Taylor expansion puts Ω in units of the
loss. a is 1 for an error in no direction, as HAWQ-V2 assumes; a rounding that knows the inputs puts the error where they are not, and
a (`QuantizedWeight.alignment`) says how far: the input factor of a Kronecker-factored Hessian (ours). Traces by Hutchinson, one
Hessian-vector product a probe for all layers together. Weights only: activations score nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.data import Batch, check_labels
from quantkit.passes.batches import network_batches
from quantkit.passes.curvature import Trace, hutchinson
from quantkit.sensitivity.scene import Scene, Scores
from quantkit.spec import parse_scheme
from quantkit.table import Table

ITEMS = 8
BATCH = 16
MOST_PROBES = 10  # arXiv 2605.25674 recommends 5 to 10
TOLERANCE = 0.05  # relative change of the mean trace at which probing stops


def estimate(scene: Scene) -> Scores:
    """Ω of every (group, scheme); 0 for fp32 and for groups without weights; nan where a group cannot take the scheme."""
    traces = _traces(scene)
    values = np.full((len(scene.groups), len(scene.schemes)), np.nan)
    for row, group in enumerate(scene.groups):
        layer = scene.captured.graph.layer(group.layers[0])
        for column, scheme in enumerate(scene.schemes):
            if scheme in group.schemes:
                per_weight = traces[layer.weight].trace / layer.weight_count if layer.weight else 0.0
                values[row, column] = 0.5 * per_weight * scene.bank.squared_error(layer, parse_scheme(scheme)) if per_weight else 0.0
    return Scores(Table("hessian", scene.unit, tuple(group.name for group in scene.groups), scene.schemes, values))


def _traces(scene: Scene) -> dict[str, Trace]:
    graph = scene.captured.graph
    weights = sorted({layer.weight for layer in graph.layers if layer.weight})
    items = scene.items.first(ITEMS)
    with scene.progress.stage("Hessian traces", len(items), "items") as advance:
        batches = _advancing(network_batches(graph, items, BATCH, scene.device), advance)
        return hutchinson(scene.captured.module, _loss(scene), batches, weights, probes=MOST_PROBES, tolerance=TOLERANCE, seed=scene.seed)


def _advancing(batches: Iterator[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(batch.size)


def _loss(scene: Scene) -> Callable[[Batch], Tensor]:
    """Cross-entropy for class scores, else half the squared distance to the float outputs; several outputs add up."""
    names, network = scene.captured.graph.inputs, fx.Interpreter(scene.captured.module)  # takes inputs in order, however they were exported
    of_output = {"softmax": _cross_entropy, "identity": _half_squared_distance}[scene.curvature]

    def loss(batch: Batch) -> Tensor:
        outputs = pytree.tree_leaves(network.run(*[batch.inputs[name] for name in names]))
        parts = [of_output(output, batch.labels if scene.labelled and place == 0 else None) for place, output in enumerate(outputs)]
        return torch.stack(parts).sum()

    return loss


def _cross_entropy(scores: Tensor, labels: Tensor | None) -> Tensor:
    """Against class labels, one for each position; where there are none, the network's own answers stand in. Raises DataError."""
    rows = scores.flatten(0, -2)
    if labels is None or labels.is_floating_point() or labels.shape != scores.shape[:-1]:
        return F.cross_entropy(rows, rows.detach().argmax(dim=1))
    check_labels(labels.flatten().cpu().numpy(), rows.shape[1])
    return F.cross_entropy(rows, labels.flatten().long())


def _half_squared_distance(output: Tensor, _: Tensor | None) -> Tensor:
    """Its value is zero and so is its gradient; its Hessian is J'J of the output."""
    return 0.5 * (output - output.detach()).square().reshape(len(output), -1).sum(dim=1).mean()
