"""How good a network is, as a number over any subset of items, and how much of it may be lost.

A metric is `(outputs, labels, index) -> float`, so that items can be resampled for metrics that are no mean over items too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import ceil, isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import MetricError

Outputs = tuple[NDArray[Any], ...]
Index = NDArray[np.int64]
PerItem = NDArray[np.float64]

POINTS = "points"
NO_LABEL = -100  # of a position that has none
NUMBERS_AT_ONCE = 1 << 22  # of outputs, where they are compared in float64


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """`function` over the items of `index`; `per_item`, where given, has that value as its mean.

    With reference "float" the labels handed to both are the float model's outputs. `curvature` is the metric of the output space
    that interactions are taken in: "softmax" for class scores, "identity" for plain values. `source` is the text of a user's own
    function, so that a changed one is another metric. `prepare`, where given, is `function` in two steps: what it takes of the outputs
    once, and what it then says of an index. `margins`, where given, are per item how far its answer is from the other one: above 0 where it
    is right; None for outputs that have no such distance.
    """

    name: str
    unit: str
    higher_is_better: bool
    function: Callable[[Outputs, Any, Index], float]
    per_item: Callable[[Outputs, Any], PerItem] | None = None
    reference: Literal["labels", "float"] = "labels"
    curvature: Literal["softmax", "identity"] = "softmax"
    source: str = ""
    prepare: Callable[[Outputs, Any], Callable[[Index], float]] | None = None
    margins: Callable[[Outputs, Any], PerItem | None] | None = None

    def scorer(self, outputs: Outputs, labels: Any) -> Callable[[Index], float]:
        """`score` of these outputs, for whoever asks for many indices."""
        if self.prepare is None or labels is None:
            return lambda index: self.score(outputs, labels, index)
        return self.prepare(outputs, labels)

    def score(self, outputs: Outputs, labels: Any, index: Index | None = None) -> float:
        """The value over the items of `index`, or over all. Raises MetricError where labels are missing, or the value is not finite."""
        if labels is None:
            raise MetricError(f"no labels for metric {self.name}", "a label for every item", "pass labelled data, or --metric agreement")
        value = self.function(outputs, labels, np.arange(len(outputs[0])) if index is None else index)
        if not isinstance(value, (int, float, np.number, np.ndarray)) or np.ndim(value) or not isfinite(value):
            raise MetricError(f"metric {self.name} gave {value!r}", "a finite number", "check the outputs and the metric function")
        return float(value)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be lost: absolute, in the metric's unit, or relative, in percent of the float model's score."""

    value: float
    kind: Literal["absolute", "relative"]

    def points(self, float_score: float) -> float:
        """The budget in the metric's own unit."""
        return self.value if self.kind == "absolute" else abs(float_score) * self.value / 100


def unpadded(outputs: Outputs, counted: NDArray[np.bool_] | None, value: float = 0.0) -> Outputs:
    """Outputs [items, tokens, …] with `value` where a token does not count; others as they are. `counted` has shape [items, tokens]."""
    if counted is None:
        return outputs
    fits = [output.ndim == 3 and output.shape[:2] == counted.shape for output in outputs]
    return tuple(np.where(counted[..., None], out, np.float32(value)) if fit else out for out, fit in zip(outputs, fits, strict=True))


def divergence(reference: Outputs, outputs: Outputs, curvature: Literal["softmax", "identity"]) -> float:
    """How far `outputs` are from the float model's, a mean over items: KL(float ‖ quantized) in nats, or half the squared distance.

    Smooth where an accuracy is not: it sees items that moved without flipping.
    """
    total = 0.0
    for one, other in zip(reference, outputs, strict=True):
        step = max(1, NUMBERS_AT_ONCE * len(one) // max(one.size, 1))  # items: a token's scores are many, and float64 takes twice the room
        parts = [_apart(one[start : start + step], other[start : start + step], curvature) for start in range(0, len(one), step)]
        total += float(np.concatenate(parts).mean())
    return total


def _apart(one: NDArray[Any], other: NDArray[Any], curvature: Literal["softmax", "identity"]) -> NDArray[np.float64]:
    """Of each item."""
    if curvature == "identity":
        return np.asarray(0.5 * np.square(one - other, dtype=np.float64).reshape(len(one), -1).sum(axis=1))
    p, q = log_softmax(one), log_softmax(other)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1).reshape(len(one), -1).mean(axis=1))


def log_softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def parse_budget(max_drop: str | float | None = None, keep: str | None = None) -> Budget:
    """`0.5` → that much in the metric's unit; `"0.5%"` → relative; keep `"99.9%"` → relative, 0.1 percent.

    Raises MetricError where neither or both are given, and for what is negative or no finite number.
    """
    if (max_drop is None) == (keep is None):
        got = "no budget" if keep is None else "both a max drop and a share to keep"
        raise MetricError(got, "one of --max-drop and --keep", "pass --max-drop 0.5, --max-drop 0.5% or --keep 99.9%")
    if keep is not None:
        kept = _number(keep.removesuffix("%")) if isinstance(keep, str) and keep.endswith("%") else None
        if kept is None or not 0 < kept <= 100:
            raise MetricError(f"--keep {keep}", "a percentage above 0 and at most 100", "write --keep 99.9%")
        return Budget(float(100 - kept), "relative")
    text = str(max_drop)
    value = None if isinstance(max_drop, bool) else _number(text.removesuffix("%"))
    if value is None or value < 0:
        raise MetricError(
            f"--max-drop {text}", "a number of at least 0 in the metric's unit, or a percentage", "write --max-drop 0.5 or --max-drop 0.5%"
        )
    return Budget(float(value), "relative" if text.endswith("%") else "absolute")


def check_budget(points: float, n: int, unit: str = POINTS) -> None:
    """Raises MetricError where one item of `n` weighs more than a budget of `points`: no result could then say that it was kept.

    Only accuracies, whose unit is points, have such a weight; a budget of 0 means that not one item may be lost.
    """
    if unit == POINTS and 0 < points < 100 / n:
        got = f"{n} items, each worth {100 / n:.3g} points, for a budget of {points:.3g} points"
        raise MetricError(got, f"at least {ceil(100 / points)} items", "pass more data, or a larger budget")


def _number(text: str) -> Decimal | None:
    # Decimal, so that 100 - 99.9 is 0.1 and not its float neighbour.
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        return None
    return value if isfinite(float(value)) else None
