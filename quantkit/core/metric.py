"""How good a network is, as a number over any subset of items, and how much of it may be lost.

A metric is `(outputs, labels, index) -> float`, so that items can be resampled for metrics that are no mean over items too.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from quantkit.core.errors import MetricError, unknown

Outputs = tuple[NDArray[Any], ...]
Index = NDArray[np.int64]
PerItem = NDArray[np.float64]

POINTS = "points"
NO_LABEL = -100  # of a position that has none
ROWS = 4096  # of scores that are sorted at once
# Equal outputs have no finite ratio. So `--max-drop 60` asks for at least 40 dB.
PSNR_OF_EQUALS_DB = 100.0


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
        if curvature == "identity":
            total += 0.5 * float(np.square(one - other, dtype=np.float64).reshape(len(one), -1).sum(axis=1).mean())
        else:
            p, q = _log_softmax(one), _log_softmax(other)
            total += float((np.exp(p) * (p - q)).sum(axis=-1).reshape(len(one), -1).mean(axis=1).mean())
    return total


def _log_softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
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


def resolve_metric(metric: str | Metric | Callable[..., Any]) -> Metric:
    """The metric that is meant: one of `METRICS` by name, a `Metric`, a function, or a function by `"module:function"`.

    A function has the attribute `higher_is_better`, and may have `unit`, `reference` ("labels" or "float") and `curvature`; what it raises
    becomes a MetricError. Raises MetricError for an unknown name, and for what cannot be imported.
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        return _from_function(metric, getattr(metric, "__name__", type(metric).__name__))
    if ":" in metric:
        return _from_function(_imported(metric), metric)
    if metric not in METRICS:
        raise MetricError(*unknown("metric", metric, [*METRICS, "module:function"]))
    return METRICS[metric]


def _number(text: str) -> Decimal | None:
    # Decimal, so that 100 - 99.9 is 0.1 and not its float neighbour.
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        return None
    return value if isfinite(float(value)) else None


def _imported(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # an installed command does not look in the user's folder, where the metric lies
    try:
        with _their_code(f"importing metric {path}"):
            function = getattr(importlib.import_module(module_name), name)
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise MetricError(
            f"{path} is {type(function).__name__}", "a function (outputs, labels, index) -> float", "name a function behind the colon"
        )
    return function  # type: ignore[no-any-return]


def _from_function(function: Callable[..., Any], name: str) -> Metric:
    better = getattr(function, "higher_is_better", None)
    reference: Literal["labels", "float"] = "float" if getattr(function, "reference", "labels") == "float" else "labels"
    if not callable(function) or not isinstance(better, bool):
        got = f"metric {name} does not say whether higher is better" if callable(function) else f"metric {function!r}"
        raise MetricError(
            got, "a function with a boolean attribute higher_is_better", "add `function.higher_is_better = True` (or False) below it"
        )

    def guarded(outputs: Outputs, labels: Any, index: Index) -> float:
        with _their_code(f"metric {name}"):
            return function(outputs, labels, index)  # type: ignore[no-any-return]

    curvature: Literal["softmax", "identity"] = "identity" if getattr(function, "curvature", "softmax") == "identity" else "softmax"
    unit = str(getattr(function, "unit", ""))
    return Metric(name, unit, better, guarded, reference=reference, curvature=curvature, source=_source(function))


def _source(function: Callable[..., Any]) -> str:
    """Its text; empty where there is none, as for what was typed at a prompt."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


@contextmanager
def _their_code(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise MetricError(
            f"{doing} raised {type(error).__name__}: {error}", "a function (outputs, labels, index) -> float", "fix it"
        ) from error


def _first(outputs: Outputs, name: str) -> NDArray[Any]:
    if outputs[0].ndim < 2:
        raise MetricError(
            f"outputs of shape {list(outputs[0].shape)} for metric {name}", "scores [items, …, classes]", "pick another metric"
        )
    return outputs[0]


def _share(right: NDArray[np.bool_], known: NDArray[np.bool_]) -> PerItem:
    """In percent of the positions that are known; where an item has none, nothing can be wrong."""
    right, known = ((values.reshape(len(values), -1)) for values in (right | ~known, known))
    wrong = (~right).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.asarray(100.0 * (1.0 - wrong), dtype=np.float64)


def _top(count: int, name: str) -> Callable[[Outputs, Any], PerItem]:
    def per_item(outputs: Outputs, labels: Any) -> PerItem:
        scores, wanted = _first(outputs, name), np.asarray(labels)
        if scores.shape[:-1] != wanted.shape:
            got = f"labels of shape {list(wanted.shape)} for outputs of shape {list(scores.shape)}"
            raise MetricError(got, f"labels {list(scores.shape[:-1])} for {name}", "pass class labels, or another metric")
        # A stable order breaks ties as argmax does; NaN beats no class, so that a network that gives NaN is never right.
        best = np.argsort(-scores, axis=-1, kind="stable")[..., :count] if count > 1 else scores.argmax(axis=-1)[..., None]
        known = wanted != NO_LABEL if wanted.ndim > 1 else np.ones(wanted.shape, bool)
        return _share((best == wanted[..., None]).any(axis=-1) & ~np.isnan(scores).any(axis=-1), known)

    return per_item


def _margins(count: int) -> Callable[[Outputs, Any], PerItem | None]:
    """The score of the item's class less the `count`-th best of the others; None unless each item is one row of scores."""

    def margins(outputs: Outputs, labels: Any) -> PerItem | None:
        scores, wanted = outputs[0], np.asarray(labels)
        if scores.ndim != 2 or scores.shape[1] <= count or wanted.shape != scores.shape[:1] or wanted.dtype.kind not in "iu":
            return None
        if wanted.min() < 0 or wanted.max() >= scores.shape[1]:
            return None
        found = np.zeros(len(scores))
        for start in range(0, len(scores), ROWS):  # as each part is copied twice
            others, own = scores[start : start + ROWS].astype(np.float64), wanted[start : start + ROWS, None]
            mine = np.take_along_axis(others, own, axis=1)[:, 0]
            np.put_along_axis(others, own, -np.inf, axis=1)
            found[start : start + ROWS] = mine - np.partition(others, -count, axis=1)[:, -count]
        return found

    return margins


def _agreement(outputs: Outputs, reference: Any) -> PerItem:
    """Positions of which the reference says nothing (NaN) are left out."""
    scores, others = _first(outputs, "agreement"), _as_outputs(reference)[0]
    same = np.asarray((scores.argmax(axis=-1) == others.argmax(axis=-1)) & ~np.isnan(scores).any(axis=-1))
    return _share(same, np.asarray(~np.isnan(others).any(axis=-1)))


def _squared_error(outputs: Outputs, reference: Any) -> PerItem:
    """Per item, the mean over all outputs' elements, save those of which the reference says nothing (NaN)."""
    pairs = zip(outputs, _as_outputs(reference), strict=True)
    rows = [(one.reshape(len(one), -1).astype(np.float64), other.reshape(len(other), -1)) for one, other in pairs]
    mine, theirs = (np.concatenate(side, axis=1) for side in zip(*rows, strict=True))
    known = ~np.isnan(theirs)
    errors = np.square(np.where(known, mine - theirs, 0.0)).sum(axis=1)
    return np.asarray(errors / np.maximum(known.sum(axis=1), 1), dtype=np.float64)


def _psnr(outputs: Outputs, reference: Any, index: Index) -> float:
    """10 log10(peak² / mean squared error), in dB; the peak is the range of the reference over all items, whatever the index."""
    references = _as_outputs(reference)
    error = float(_squared_error(tuple(o[index] for o in outputs), tuple(r[index] for r in references)).mean())
    peak = max(float(np.nanmax(r)) for r in references) - min(float(np.nanmin(r)) for r in references)
    return PSNR_OF_EQUALS_DB if error == 0 or peak == 0 else min(PSNR_OF_EQUALS_DB, 10 * float(np.log10(peak**2 / error)))


def _spearman(outputs: Outputs, labels: Any, index: Index) -> float:
    """100 · Spearman's rank correlation of one number an item with its label; 0 where either is the same for all."""
    scores, wanted = np.asarray(outputs[0][index], np.float64), np.asarray(labels)[index].astype(np.float64)
    if scores.size != len(index) or wanted.size != len(index):
        got = f"outputs of shape {list(outputs[0].shape)} and labels of shape {list(np.shape(labels))} for metric spearman"
        raise MetricError(got, "one number for each item", "pick another metric")
    one, other = (rankdata(values.ravel()) for values in (scores, wanted))
    varies = np.ptp(one) > 0 and np.ptp(other) > 0
    return 100 * float(np.corrcoef(one, other)[0, 1]) if varies else 0.0


def _perplexity(outputs: Outputs, labels: Any, index: Index) -> float:
    return _likelihoods(outputs, labels)(index)


def _likelihoods(outputs: Outputs, labels: Any) -> Callable[[Index], float]:
    """exp of the mean negative log-likelihood of the labels, in nats, over all positions whose label is not negative."""
    scores, wanted = _first(outputs, "perplexity"), np.asarray(labels)
    if scores.shape[:-1] != wanted.shape:
        got = f"labels of shape {list(np.shape(labels))} for outputs of shape {list(outputs[0].shape)}"
        raise MetricError(got, f"the next token of each position, {list(outputs[0].shape[:-1])}", "pass them as labels; -100 for padding")
    losses, known = np.zeros(len(scores)), (wanted >= 0).reshape(len(wanted), -1)
    for item, (rows, classes) in enumerate(zip(scores, wanted, strict=True)):  # one by one, as float64 takes twice the room
        likelihood = np.take_along_axis(_log_softmax(rows), np.maximum(classes, 0)[..., None].astype(np.int64), axis=-1)[..., 0]
        losses[item] = -likelihood[classes >= 0].sum()
    counts = known.sum(axis=1)

    def of(index: Index) -> float:
        if not counts[index].any():
            raise MetricError("no position with a label for metric perplexity", "labels of at least 0", "-100 is for padding alone")
        return float(np.exp(losses[index].sum() / counts[index].sum()))

    return of


def _as_outputs(reference: Any) -> Outputs:
    return reference if isinstance(reference, tuple) else (np.asarray(reference),)


def _mean_of(per_item: Callable[[Outputs, Any], PerItem]) -> Callable[[Outputs, Any, Index], float]:
    def function(outputs: Outputs, labels: Any, index: Index) -> float:
        chosen = tuple(label[index] for label in labels) if isinstance(labels, tuple) else np.asarray(labels)[index]
        return float(per_item(tuple(output[index] for output in outputs), chosen).mean())

    return function


_TOP1, _TOP5 = _top(1, "top1"), _top(5, "top5")

METRICS = {
    "top1": Metric("top1", POINTS, True, _mean_of(_TOP1), _TOP1, margins=_margins(1)),
    "top5": Metric("top5", POINTS, True, _mean_of(_TOP5), _TOP5, margins=_margins(5)),
    "agreement": Metric("agreement", POINTS, True, _mean_of(_agreement), _agreement, "float"),
    "mse": Metric("mse", "mean squared error", False, _mean_of(_squared_error), _squared_error, "float", "identity"),
    "psnr": Metric("psnr", "dB", True, _psnr, None, "float", "identity"),
    "spearman": Metric("spearman", "Spearman points", True, _spearman, None, "labels", "identity"),
    "perplexity": Metric("perplexity", "perplexity", False, _perplexity, prepare=_likelihoods),
}
