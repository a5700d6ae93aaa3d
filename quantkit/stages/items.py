"""All that one pass over the items can know is checked here, before the network is captured, exported or measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from quantkit.core.errors import DataError, ModelError
from quantkit.core.metric import Metric
from quantkit.core.metrics import METRICS
from quantkit.data import Item, Subset, bind, check_labels
from quantkit.data.batch import stack
from quantkit.loading.boundary import foreign
from quantkit.network.capture import check_program_inputs, inputs_of, takes_names
from quantkit.runs.workbench import Plain, Workbench

if TYPE_CHECKING:
    from quantkit.loading import LoadedModel
    from quantkit.settings.request import Request

TRIAL_ITEMS = 2


def check_items(bench: Workbench, request: Request) -> None:
    """Reads every item of the three splits once; a run directory that holds the answer for the same items reads none.

    Raises DataError where an item cannot be read, where items differ in shape or type, hold NaN or infinity, or have a label that is no
    class of the network; MetricError where the labels' shape is not what the metric compares with the network's output.
    """
    splits = {"calibration": request.splits.calibration, "search": request.splits.search, "gate": request.splits.gate}
    metric = request.metric

    def compute() -> Plain:
        outputs = try_network(request.model, request.splits.calibration)
        classes = _classes(metric, outputs)
        if outputs:
            _check_metric(metric, outputs, request.splits.calibration)
        with bench.progress.stage("check the items", sum(map(len, splits.values())), "items") as advance:
            _check_splits(splits, metric, classes, advance)
        return Plain({"items": {name: len(subset) for name, subset in splits.items()}, "classes": classes})

    depends_on = {
        "weights of the network": request.model.digest, "metric": [metric.name, metric.source],
        **{f"{name} data": subset.fingerprint() for name, subset in splits.items()},
    }  # fmt: skip
    bench.keep("items", depends_on, compute, Plain)


def try_network(model: LoadedModel, items: Subset) -> tuple[NDArray[Any], ...]:
    """What the caller's own network answers for the first items: arrays [items, …]; none where it refuses them.

    Buffers are lent as copies, so that the network is left as it was. Raises DataError where a program's inputs are not the items',
    and for answers that are not finite.
    """
    fixed = None
    if model.program is not None:
        first = inputs_of(model.program)[0].meta["val"].shape[0]
        fixed = first if isinstance(first, int) else None
    batch = next(iter(items.first(fixed or TRIAL_ITEMS).batches(fixed or TRIAL_ITEMS)))
    if model.program is not None:
        inputs = bind(batch.inputs, [node.name for node in inputs_of(model.program)])
        check_program_inputs(model.program, inputs)
    try:
        with foreign("the network refuses the first items"):
            found = _forward(model, {name: _filled(value, fixed or batch.size) for name, value in batch.inputs.items()})
    except ModelError:  # the capture, which comes next, words it better
        return ()
    outputs = tuple(leaf.detach().cpu().float().numpy() for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor))
    if not all(np.isfinite(output).all() for output in outputs):
        got = f"{model.name} returns NaN or infinite values for the first items"
        raise DataError(got, "finite outputs", "check the inputs' preprocessing")
    return tuple(output[: batch.size] for output in outputs)


def _forward(model: LoadedModel, inputs: Mapping[str, Tensor]) -> object:
    if model.program is not None:
        leaves = list(bind(inputs, [node.name for node in inputs_of(model.program)]).values())
        spec = pytree.tree_structure(model.program.example_inputs)
        arguments, keywords = pytree.tree_unflatten(leaves, spec) if model.program.example_inputs else (tuple(leaves), {})
        with torch.no_grad():
            return model.program.module(check_guards=False)(*arguments, **keywords)
    if model.module is None:
        return None
    buffers = {name: value.clone() for name, value in model.module.named_buffers()}
    arguments, keywords = ((), dict(inputs)) if takes_names(model.module, inputs) else (tuple(inputs.values()), {})
    with torch.no_grad():
        return functional_call(model.module, buffers, arguments, keywords)


def _filled(rows: Tensor, count: int) -> Tensor:
    return rows[torch.arange(count) % len(rows)]


def _classes(metric: Metric, outputs: Sequence[NDArray[Any]]) -> int | None:
    """How many classes labels may name; None where labels are none, or the network's answer is not known."""
    scores = metric.reference == "labels" and metric.curvature == "softmax" and outputs and outputs[0].ndim > 1
    return int(outputs[0].shape[-1]) if scores else None


def _check_metric(metric: Metric, outputs: tuple[NDArray[Any], ...], items: Subset) -> None:
    """One of our own metrics on the first items, for the shapes; a user's may want more of them."""
    if METRICS.get(metric.name) is metric:
        first = items.first(len(outputs[0]))
        metric.score(outputs, outputs if metric.reference == "float" else first.labels())


def _check_splits(splits: Mapping[str, Subset], metric: Metric, classes: int | None, advance: Callable[[int], None]) -> None:
    first: Item | None = None
    for name, subset in splits.items():
        labels: list[Tensor | None] = []
        for place in range(len(subset)):
            item = subset.item(place)
            first = first or item
            _check_item(f"item {place} of the {name} split", item, first)
            labels.append(item.label)
            advance(1)
        if metric.reference == "labels":
            _check_labels(name, metric, [label for label in labels if label is not None], len(labels), classes)


def _check_item(name: str, item: Item, first: Item) -> None:
    """Raises DataError where it is not like the first, or holds what is not a number."""
    for key, wanted in first.inputs.items():
        value = item.inputs.get(key)
        if value is None:
            raise DataError(f"{name} has no input {key!r}", f"the inputs {', '.join(first.inputs)}", "add it, or remove the item")
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            got = f"{name} has {key!r} of shape {list(value.shape)} and type {_dtype(value)}"
            wanted_is = f"{list(wanted.shape)} and {_dtype(wanted)}, as the first item has"
            raise DataError(got, wanted_is, "resize and crop images (--resize 256 --crop 224); pad sequences")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"{name} has NaN or infinity in {key!r}", "finite numbers", "remove or repair it")
    _check_padding(name, item)


def _check_padding(name: str, item: Item) -> None:
    counted = stack([item]).counted
    if counted is not None and not bool(counted.any()):
        raise DataError(f"{name} is padding throughout", "at least one token that its mask counts", "remove it, or correct its mask")


def _check_labels(split: str, metric: Metric, labels: Sequence[Tensor], items: int, classes: int | None) -> None:
    if len(labels) < items and (labels or split != "calibration"):
        got = f"{len(labels)} of {items} items of the {split} split have a label"
        raise DataError(got, "a label for every item", "add the missing labels, or leave those items out")
    odd = next((place for place, label in enumerate(labels) if label.shape != labels[0].shape), None)
    if odd is not None:
        got = f"item {odd} of the {split} split has a label of shape {list(labels[odd].shape)}"
        raise DataError(got, f"{list(labels[0].shape)}, as the first", "give each item a label of one shape")
    values = np.stack([label.numpy() for label in labels]) if labels else np.zeros(0, dtype=np.int64)
    own = METRICS.get(metric.name) is metric
    if values.size and np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
        raise DataError(f"item {bad} of the {split} split has NaN or infinity as its label", "finite numbers", "remove or repair it")
    if classes is not None and values.size and (own or np.issubdtype(values.dtype, np.integer)):
        check_labels(values, classes, f" of the {split} split")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
