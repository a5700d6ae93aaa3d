"""The tokens of all splits, in one order: calibration, then search, then gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.errors import DataError
from quantkit.core.metric import NO_LABEL
from quantkit.data import Splits, Subset
from quantkit.loading import next_tokens

NAMES = ("input_ids", "attention_mask")


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """`ids`, `mask` and `labels` (the token behind each, NO_LABEL where none counts), each [items, tokens]; how many of each split."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    calibration: int
    search: int
    gate: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens of an item."""
        return int(self.ids.shape[1])

    @property
    def search_part(self) -> slice:
        """Where the search split lies."""
        return slice(self.calibration, self.calibration + self.search)

    @property
    def gate_part(self) -> slice:
        """Where the gate split lies."""
        return slice(self.calibration + self.search, len(self))

    def chunks(self, at_once: int) -> Iterator[tuple[int, int]]:
        """From where to where, so many items `at_once`; no chunk has items of calibration and others."""
        cuts = sorted({*range(0, self.calibration, at_once), *range(self.calibration, len(self), at_once), len(self)})
        return pairwise(cuts)


def read_tokens(splits: Splits) -> Tokens:
    """Of all splits. DataError for items of other inputs than NAMES, of several lengths, or without a token to be predicted."""
    parts = [_read(subset) for subset in (splits.calibration, splits.search, splits.gate)]
    lengths = sorted({part[0].shape[1] for part in parts})
    if len(lengths) > 1:
        raise DataError(f"splits of {', '.join(map(str, lengths))} tokens", "one length", "cut all to one: --input-shape 1xTOKENS")
    ids, mask, labels = (torch.cat(rows) for rows in zip(*parts, strict=True))
    if not bool((labels >= 0).any(dim=1).all()):
        raise DataError("an item without a token to be predicted", "two tokens that count in each", "leave it out, or make it longer")
    return Tokens(ids, mask, labels, *(len(part[0]) for part in parts))


def likelihoods(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each item [tokens, vocabulary] minus the sum of the labels' log-likelihoods, in nats and float64, as metric perplexity has it."""
    found = np.zeros(len(scores))
    for place, (rows, wanted) in enumerate(zip(scores, labels, strict=True)):
        known = wanted >= 0
        counted = rows[known].astype(np.float64)
        top = counted.max(axis=1, keepdims=True)
        total = np.log(np.exp(counted - top).sum(axis=1)) + top[:, 0]
        found[place] = (total - np.take_along_axis(counted, wanted[known][:, None], axis=1)[:, 0]).sum()
    return found


def _read(subset: Subset) -> tuple[Tensor, Tensor, Tensor]:
    batches = list(subset.batches(64))
    inputs = batches[0].inputs
    if set(inputs) - set(NAMES) or NAMES[0] not in inputs:
        raise DataError(f"items of {', '.join(inputs)}", f"{' and '.join(NAMES)}, as a tokenizer gives them", "pass texts, or such tensors")
    ids = torch.cat([batch.inputs[NAMES[0]] for batch in batches]).long()
    mask = torch.cat([batch.inputs.get(NAMES[1], torch.ones_like(batch.inputs[NAMES[0]])) for batch in batches]).long()
    given = subset.labels()
    labels = next_tokens({NAMES[0]: ids, NAMES[1]: mask}) if given is None else torch.from_numpy(given).long()
    if labels.shape != ids.shape:
        got = f"labels of shape {list(labels.shape)} for tokens of {list(ids.shape)}"
        raise DataError(got, f"the token behind each, {NO_LABEL} for none", "leave labels out")
    return ids, mask, labels
