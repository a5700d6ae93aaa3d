"""Hessian trace times perturbation (HAWQ-V2, arXiv 1911.03852).

    Ω_i(b) = ½ · Tr(H_ii) / n_i · ‖Q_b(W_i) − W_i‖²

H_ii is the block of the loss Hessian that belongs to layer i's n_i weights; the ½ of the Taylor expansion puts Ω in units of the
loss. Traces by Hutchinson, one Hessian-vector product a probe for all layers together. Weights only: activations score nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from quantkit.affine import dequantize
from quantkit.data import Batch, bind
from quantkit.passes.curvature import hutchinson
from quantkit.sensitivity.scene import Scene, Scores
from quantkit.spec import parse_scheme
from quantkit.table import Table

ITEMS = 8
BATCH = 16
MOST_PROBES = 10  # arXiv 2605.25674 recommends 5 to 10
TOLERANCE = 0.05  # relative change of the mean trace at which probing stops


def hessian(scene: Scene) -> Scores:
    """Ω of every (group, scheme); 0 for fp32 and for groups without weights; nan where a group cannot take the scheme."""
    graph = scene.captured.graph
    weights = sorted({layer.weight for layer in graph.layers if layer.weight})
    items = scene.items.first(ITEMS)
    with scene.progress.stage("Hessian traces", len(items), "items") as advance:
        traces = hutchinson(
            scene.captured.module,
            _loss(scene),
            _advancing(_batches(scene), advance),
            weights,
            probes=MOST_PROBES,
            tolerance=TOLERANCE,
            seed=scene.seed,
        )
    values = np.full((len(scene.groups), len(scene.schemes)), np.nan)
    for row, group in enumerate(scene.groups):
        layer = graph.layer(group.layers[0])
        for column, name in enumerate(scene.schemes):
            spec = parse_scheme(name).weights
            if name not in group.schemes:
                continue
            values[row, column] = 0.0
            if layer.weight and spec:
                error = _squared_error(scene, layer.name, name)
                values[row, column] = 0.5 * traces[layer.weight].trace / layer.weight_count * error
    return Scores(Table("hessian", "nats", tuple(group.name for group in scene.groups), scene.schemes, values))


def _squared_error(scene: Scene, layer_name: str, scheme: str) -> float:
    layer, spec = scene.captured.graph.layer(layer_name), parse_scheme(scheme).weights
    assert layer.weight is not None and spec is not None
    quantized = scene.bank.weight(layer, spec)
    weight = scene.bank.parameter(layer.weight).detach()
    return float((dequantize(quantized.codes, quantized.qparams) - weight).double().square().sum())


def _batches(scene: Scene) -> Iterator[Batch]:
    """Calibration batches under the network's input names; without labels, the float network's own answers stand in."""
    graph = scene.captured.graph
    for batch in scene.items.first(ITEMS).batches(graph.batch or BATCH):
        inputs = {name: tensor.to(scene.device) for name, tensor in bind(batch.inputs, graph.inputs).items()}
        yield Batch(inputs, None if batch.labels is None else batch.labels.to(scene.device))


def _advancing(batches: Iterator[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(batch.size)


def _loss(scene: Scene) -> Callable[[Batch], Tensor]:
    """Cross-entropy for class scores, else half the mean squared distance to the float outputs."""
    names = scene.captured.graph.inputs

    def loss(batch: Batch) -> Tensor:
        outputs = scene.captured.module(*[batch.inputs[name] for name in names])
        first = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        if scene.curvature == "softmax":
            scores = first.flatten(0, -2)
            labelled = batch.labels is not None and batch.labels.numel() == len(scores) and not batch.labels.is_floating_point()
            labels = batch.labels.flatten().long() if labelled and batch.labels is not None else scores.detach().argmax(dim=1)
            return F.cross_entropy(scores, labels)
        return 0.5 * (first - first.detach()).square().flatten(1).sum(1).mean()

    return loss


