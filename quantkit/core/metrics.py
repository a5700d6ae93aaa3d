"""The metrics that go by a name, and those of a user's own: each a number over any subset of items.

Of classes `top1`, `top5`, `miou`; of values `mae`, `spearman`, `perplexity`; against the float network's answers `agreement`, `mse`,
`psnr`, `ssim`, `cosine`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata

from quantkit.core.errors import MetricError, unknown
from quantkit.core.metric import NO_LABEL, POINTS, Index, Metric, Outputs, PerItem, log_softmax

ROWS = 4096  # of scores that are sorted at once
# Equal outputs have no finite ratio. So `--max-drop 60` asks for at least 40 dB.
PSNR_OF_EQUALS_DB = 100.0
IGNORED = 255  # the label of pixels that count nowhere, as in Pascal VOC and Cityscapes; so do negative ones
WINDOW, K1, K2 = 7, 0.01, 0.03  # pixels of a window's side, and the constants of the paper


def resolve_metric(metric: str | Metric | Callable[..., Any]) -> Metric:
    """The metric that is meant: one of METRICS by name, a `Metric`, a function, or a function by `"module:function"`.

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
        likelihood = np.take_along_axis(log_softmax(rows), np.maximum(classes, 0)[..., None].astype(np.int64), axis=-1)[..., 0]
        losses[item] = -likelihood[classes >= 0].sum()
    counts = known.sum(axis=1)

    def of(index: Index) -> float:
        if not counts[index].any():
            raise MetricError("no position with a label for metric perplexity", "labels of at least 0", "-100 is for padding alone")
        return float(np.exp(losses[index].sum() / counts[index].sum()))

    return of


def _iou(outputs: Outputs, labels: Any) -> Callable[[Index], float]:
    """Mean over classes of intersection over union of labelled pixels, in points; outputs [items, classes, …], labels [items, …].

    A class that neither the labels nor the answers hold has no share in the mean.
    """
    scores, wanted = _first(outputs, "miou"), np.asarray(labels)
    classes = scores.shape[1]
    if scores.shape[:1] + scores.shape[2:] != wanted.shape or wanted.dtype.kind not in "iu":
        got = f"labels of shape {list(wanted.shape)} and type {wanted.dtype} for outputs of shape {list(scores.shape)}"
        shape = [len(scores), *scores.shape[2:]]
        raise MetricError(got, f"a class for each pixel, {shape}", f"pass whole numbers; {IGNORED} or less than 0 for none")
    known = (wanted >= 0) & (wanted != IGNORED)
    if (wanted[known] >= classes).any():
        got = f"label {int(wanted[known].max())} for a network of {classes} classes"
        raise MetricError(got, f"0..{classes - 1}, or {IGNORED} for none", "fix the labels, or pass the model they belong to")
    answers, counts = scores.argmax(axis=1), np.zeros((len(scores), 3, classes), np.int64)
    for item in range(len(scores)):
        mine, theirs = answers[item][known[item]], wanted[item][known[item]]
        for place, chosen in enumerate((mine[mine == theirs], mine, theirs)):
            counts[item, place] = np.bincount(chosen, minlength=classes)

    def of(index: Index) -> float:
        both, mine, theirs = counts[index].sum(axis=0)
        union = mine + theirs - both
        if not union.any():
            raise MetricError("no pixel with a label for metric miou", "labels of at least 0", f"{IGNORED} is for pixels without one")
        return 100 * float((both[union > 0] / union[union > 0]).mean())

    return of


def _absolute_error(outputs: Outputs, labels: Any) -> PerItem:
    """Per item, the mean absolute difference of the first output from the label."""
    found, wanted = outputs[0].reshape(len(outputs[0]), -1).astype(np.float64), np.asarray(labels)
    wanted = wanted.reshape(len(wanted), -1).astype(np.float64)
    if found.shape != wanted.shape:
        got = f"labels of shape {list(np.shape(labels))} for outputs of shape {list(outputs[0].shape)}"
        raise MetricError(got, f"numbers {list(outputs[0].shape)} for mae", "pass the values as labels, or another metric")
    return np.asarray(np.abs(found - wanted).mean(axis=1))


def _cosine(outputs: Outputs, reference: Any) -> PerItem:
    """Per item, 100 · the cosine of the angle between the first output and the float network's; 0 where one of them is."""
    mine, theirs = (values.reshape(len(values), -1).astype(np.float64) for values in (outputs[0], _as_outputs(reference)[0]))
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.asarray(100 * (mine * theirs).sum(axis=1) / np.where(lengths > 0, lengths, np.inf))


def _ssim(outputs: Outputs, reference: Any) -> PerItem:
    """Per item, 100 · the mean structural similarity to the float network's picture (Wang et al. 2004), over uniform windows of 7 × 7.

    Pictures [items, …, height, width]; the range of values is the reference's over all items. Variances are those of samples.
    """
    mine, theirs = (values.astype(np.float64) for values in (outputs[0], _as_outputs(reference)[0]))
    if mine.ndim < 3 or min(mine.shape[-2:]) < WINDOW:
        got = f"outputs of shape {list(outputs[0].shape)} for metric ssim"
        raise MetricError(got, f"pictures [items, …, height, width] of at least {WINDOW} × {WINDOW}", "pick another metric")
    span = float(theirs.max() - theirs.min()) or 1.0
    size = (1,) * (mine.ndim - 2) + (WINDOW, WINDOW)
    half = WINDOW // 2

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(uniform_filter(values, size)[..., half:-half, half:-half])

    x, y, samples = mean(mine), mean(theirs), WINDOW**2 / (WINDOW**2 - 1)
    xx, yy, xy = (samples * (mean(a * b) - mean(a) * mean(b)) for a, b in ((mine, mine), (theirs, theirs), (mine, theirs)))
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    found = (2 * x * y + c1) * (2 * xy + c2) / ((x**2 + y**2 + c1) * (xx + yy + c2))
    return np.asarray(100 * found.reshape(len(found), -1).mean(axis=1))


def _similarity(outputs: Outputs, reference: Any, index: Index) -> float:
    """Over some items, by the range of all."""
    return float(_ssim(outputs, reference)[index].mean())


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
    "miou": Metric("miou", POINTS, True, lambda outputs, labels, index: _iou(outputs, labels)(index), curvature="identity", prepare=_iou),
    "mae": Metric("mae", "mean absolute error", False, _mean_of(_absolute_error), _absolute_error, "labels", "identity"),
    "ssim": Metric("ssim", "SSIM points", True, _similarity, _ssim, "float", "identity"),
    "cosine": Metric("cosine", "cosine points", True, _mean_of(_cosine), _cosine, "float", "identity"),
    "perplexity": Metric("perplexity", "perplexity", False, _perplexity, prepare=_likelihoods),
}
