"""The space of the outputs: how far they moved, in the unit of the loss, and the losses themselves.

Its metric is F, the curvature of the divergence to the float network: diag(p) − p p' for class scores ("softmax"), a mean over an
item's positions; 1 for plain values ("identity"). Several outputs add up. F = S S' with S = diag(√p) − p √p'. Shapes of outputs are
[items, …, classes]. A position of padding, or without a label, counts as one that does not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.core.metric import NO_LABEL
from quantkit.data.batch import check_labels

WIDE = 8192  # coordinates of one item; more are sketched
SKETCH = 2048  # coordinates that are left: inner products are then off by √(2 / 2048), 3 % of the two lengths

Curvature = Literal["softmax", "identity"]
Outputs = tuple[Tensor, ...]
Measure = Callable[[Outputs], Callable[[Outputs], Tensor]]  # of the float outputs; then of moved ones: [items, coordinates]


def unpadded(outputs: Outputs, counted: Tensor | None) -> Outputs:
    """Zeros at the positions that do not count (`Batch.counted`): they do not move, and no loss hangs on them."""
    if counted is None:
        return outputs
    fits = [output.dim() == 3 and output.shape[:2] == counted.shape for output in outputs]
    return tuple(output * counted[..., None] if fit else output for output, fit in zip(outputs, fits, strict=True))


def whitened(curvature: Curvature, seed: int) -> Measure:
    """S' u for each displacement u, so that inner products of the coordinates are u' F v.

    More than WIDE coordinates are folded into SKETCH by a count sketch (random signs, random buckets, the same for every item): inner
    products keep their expectation and Gram matrices stay positive semi-definite. Labels drawn from p, the usual way to thin out a
    wide output, have the same expectation, but where the network is sure nearly all of them see nothing.
    """

    def of(unmoved: Outputs) -> Callable[[Outputs], Tensor]:
        probabilities = [_rows(output).softmax(dim=-1) for output in unmoved] if curvature == "softmax" else []
        fold = _sketch(sum(output[0].numel() for output in unmoved), seed)

        def coordinates(moved: Outputs) -> Tensor:
            moves = [_rows(other) - _rows(one) for one, other in zip(unmoved, moved, strict=True)]
            if curvature == "softmax":
                moves = [
                    p.sqrt() * (u - (p * u).sum(dim=-1, keepdim=True)) / p.shape[1] ** 0.5
                    for p, u in zip(probabilities, moves, strict=True)
                ]
            return fold(torch.cat([u.flatten(1) for u in moves], dim=1))

        return coordinates

    return of


def divergence(curvature: Curvature) -> Measure:
    """KL(p ‖ p moved) of each item, or half its squared distance; one coordinate. In float64: 8 bits cost less than float32 can tell."""

    def of(unmoved: Outputs) -> Callable[[Outputs], Tensor]:
        if curvature == "identity":
            start = [output.double() for output in unmoved]
            return lambda moved: torch.stack([_half_square(b - a) for a, b in zip(start, moved, strict=True)]).sum(dim=0)[:, None]
        known = [_rows(output).double().log_softmax(dim=-1) for output in unmoved]

        def distance(moved: Outputs) -> Tensor:
            there = [_rows(output).double().log_softmax(dim=-1) for output in moved]
            parts = [(a.exp() * (a - b)).sum(dim=-1).mean(dim=1) for a, b in zip(known, there, strict=True)]
            return torch.stack(parts).sum(dim=0)[:, None]

        return distance

    return of


def beside(*measures: Measure) -> Measure:
    """The coordinates of several measures side by side, of one pass."""

    def of(unmoved: Outputs) -> Callable[[Outputs], Tensor]:
        parts = [measure(unmoved) for measure in measures]
        return lambda moved: torch.cat([part(moved).double() for part in parts], dim=1)

    return of


def pull_back(curvature: Curvature, unmoved: Outputs, moved: Outputs) -> list[Tensor]:
    """The gradient of each item's `divergence` with respect to the moved outputs."""
    if curvature == "identity":
        return [b - a for a, b in zip(unmoved, moved, strict=True)]
    pairs = zip(unmoved, moved, strict=True)
    return [((_rows(b).softmax(dim=-1) - _rows(a).softmax(dim=-1)) / _rows(b).shape[1]).reshape(b.shape) for a, b in pairs]


def drawn(curvature: Curvature, outputs: Outputs, draws: int, generator: torch.Generator) -> list[list[Tensor]]:
    """Gradients of each item's log-likelihood at answers that the network itself gives: E[g g'] is F, one list of outputs a draw.

    S times random signs, not a label drawn from p: the same expectation, and no rare label of huge gradient. Signs are drawn item after
    item, so that they do not depend on the size of the batches.
    """
    signs = [torch.stack([_signs(draws, output.shape[1:], generator) for _ in range(len(output))], dim=1) for output in outputs]
    return [
        [_rooted(curvature, output, sign[draw].to(output)) for output, sign in zip(outputs, signs, strict=True)] for draw in range(draws)
    ]


def at_labels(curvature: Curvature, outputs: Outputs, labels: Tensor | None, generator: torch.Generator) -> list[Tensor]:
    """Gradients of each item's loss: at its labels for the first output, where they are class labels; `drawn` otherwise.

    Raises DataError for labels that are no class of the network.
    """
    found = drawn(curvature, outputs, 1, generator)[0]
    if curvature == "softmax" and (classes := class_labels(outputs[0], labels)) is not None:
        rows = _rows(outputs[0])
        classes = classes.reshape(rows.shape[:2])
        known = (classes != NO_LABEL)[..., None]
        wanted = F.one_hot(classes.clamp(min=0), rows.shape[-1])
        found[0] = (known * (rows.softmax(dim=-1) - wanted) / rows.shape[1]).reshape(outputs[0].shape)
    return found


def task_loss(curvature: Curvature, outputs: Outputs, labels: Tensor | None) -> Tensor:
    """Cross-entropy of class scores, else half the squared distance to the float outputs; several outputs add up; a mean over items.

    Labels belong to the first output; where there are none, the network's own answers stand in. The distance is zero and so is its
    gradient; its Hessian is J'J of the outputs. Raises DataError for labels that are no class of the network.
    """
    if curvature == "identity":
        return torch.stack([_half_square(output - output.detach()).mean() for output in outputs]).sum()
    losses = []
    for place, scores in enumerate(outputs):
        rows = scores.flatten(0, -2)
        classes = class_labels(scores, labels) if place == 0 else None
        targets = rows.detach().argmax(dim=1) if classes is None else classes.flatten()
        losses.append(F.cross_entropy(rows, targets, ignore_index=NO_LABEL))
    return torch.stack(losses).sum()


def class_labels(scores: Tensor, labels: Tensor | None) -> Tensor | None:
    """`labels` if there is one class for each position of `scores`. Raises DataError where it is not a class of the network."""
    if labels is None or labels.is_floating_point() or labels.shape != scores.shape[:-1]:
        return None
    check_labels(labels.cpu().numpy(), scores.shape[-1])
    return labels.long()


def _rows(output: Tensor) -> Tensor:
    """[items, positions, classes]."""
    return output.float().reshape(len(output), -1, output.shape[-1] if output.dim() > 1 else 1)


def _half_square(move: Tensor) -> Tensor:
    return 0.5 * move.square().reshape(len(move), -1).sum(dim=1)


def _rooted(curvature: Curvature, output: Tensor, signs: Tensor) -> Tensor:
    """S times `signs`, over the root of the number of positions; the signs themselves for plain values."""
    if curvature == "identity":
        return signs
    p, e = _rows(output).softmax(dim=-1), _rows(signs)
    mixed: Tensor = p.sqrt() * e - p * (p.sqrt() * e).sum(dim=-1, keepdim=True)
    return (mixed / math.sqrt(p.shape[1])).reshape(output.shape)


def _signs(draws: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (draws, *shape), generator=generator)
    return bits.float() * 2 - 1


def _sketch(count: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Folds [items, count] into [items, SKETCH]; drawn once, as drawing takes longer than folding. Few coordinates stay as they are."""
    if count <= WIDE:
        return lambda coordinates: coordinates
    generator = torch.Generator().manual_seed(seed)
    signs = _signs(1, (count,), generator)[0]
    buckets = torch.randint(0, SKETCH, (count,), generator=generator)

    def fold(coordinates: Tensor) -> Tensor:
        folded = coordinates.new_zeros(len(coordinates), SKETCH)
        folded.index_add_(1, buckets.to(coordinates.device), coordinates * signs.to(coordinates))
        return folded

    return fold
