"""Candidates measured as files in ONNX Runtime, each once, and the smallest that the gate will probably keep, by bisection of the front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.metric import Metric
from quantkit.core.progress import Advance, expect
from quantkit.core.spec import Allocation
from quantkit.core.statistics import UNKNOWN_RATE, Verdict, asked_for, decide
from quantkit.core.store import fingerprint
from quantkit.export.outline import Part, Rows
from quantkit.runtimes.evaluation import Session
from quantkit.runtimes.ort_cpu import open_file
from quantkit.streaming.files import write_candidate
from quantkit.streaming.items import likelihoods
from quantkit.streaming.passes import Passed, Work, items_at_once
from quantkit.streaming.plans import Choices


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Measures plans on parts of the items and judges them; `key` stands for all that losses follow from beside the plan."""

    work: Work
    choices: Choices
    passed: Passed
    key: str
    metric: Metric
    budget: Callable[[float], float]
    confidence: float
    threads: int
    seed: int

    def parts(self, plan: Allocation) -> dict[str, Part]:
        """The table, and where each layer lies under the plan."""
        table: Rows = self.passed.table
        return {self.work.skeleton.table: table, **self.choices.parts(plan)}

    def losses(self, plan: Allocation, where: slice, path: Path | None = None) -> NDArray[np.float64]:
        """In nats of each item there, as the file of the plan gives them; of the file at `path`, if one is given."""
        key = fingerprint(self.key, {name: str(scheme) for name, scheme in plan.items()}, where.start, where.stop, path is not None)
        kept = self.work.shelf.record(f"losses-{key[:16]}")
        if kept is None:
            session = self.open(path or write_candidate(self.work, self.parts(plan)))
            kept = {"losses": measure(session, self.work, where).tolist()}
            self.work.shelf.keep(f"losses-{key[:16]}", kept)
        return np.array(kept["losses"])

    def open(self, path: Path) -> Session:
        """A file in ONNX Runtime."""
        return open_file(path, threads=self.threads, options={})

    def judge(self, plan: Allocation, where: slice, path: Path | None = None) -> Verdict:
        """The verdict over those items: the perplexity of the plan's file beside the streamed float network's."""
        counts = (self.work.tokens.labels[where] >= 0).sum(dim=1).numpy()
        before, after = self.passed.losses[where], self.losses(plan, where, path)

        def score(losses: NDArray[np.float64]) -> Callable[[NDArray[np.int64]], float]:
            return lambda index: float(np.exp(losses[index].sum() / counts[index].sum()))

        allowed = self.budget(score(before)(np.arange(len(before))))
        return decide(
            float_score=score(before), quantized_score=score(after), n=len(before), budget=allowed,
            higher_is_better=self.metric.higher_is_better, seed=self.seed,
        )  # fmt: skip

    def chance_kept(self, verdict: Verdict) -> tuple[float, float]:
        """How likely the gate keeps a plan of that verdict on the search split, and how sure the search must be of it."""
        budget, gate = self.budget(verdict.float), self.work.tokens.gate
        attainable = UNKNOWN_RATE.attainable(verdict, 1.0, gate, budget)
        return UNKNOWN_RATE.chance_kept(verdict, 1.0, gate, budget), asked_for(self.confidence, attainable)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The `plan`, whether it is `sure` enough, and the verdicts on the search split by the plan's place in the front."""

    plan: Allocation
    sure: bool
    verdicts: Mapping[int, Verdict]


def bisect(
    bench: Bench, plans: Sequence[Allocation], is_late: Callable[[], bool], advance: Advance, *, smallest: bool
) -> Found:
    """Of plans from the most careful to the smallest the last that is sure enough, supposing that those before it are; if none is, the
    first. Without `smallest`, the first, measured.

    Ends where the time `is_late`, with the best so far.
    """
    verdicts: dict[int, Verdict] = {}

    def holds(place: int) -> bool:
        verdicts[place] = bench.judge(plans[place], bench.work.tokens.search_part)
        chance, asked = bench.chance_kept(verdicts[place])
        advance(1)
        return chance >= asked

    low, high = -1, len(plans) if smallest else 1
    order = [len(plans) - 1, 0] if smallest else [0]
    while high - low > 1 and not (is_late() and verdicts):
        expect(advance, len(order) + (high - low - 1 - len(order)).bit_length())
        place = order.pop(0) if order else (low + high) // 2
        if low < place < high:
            low, high = (place, high) if holds(place) else (low, place)
    return Found(plans[max(low, 0)], low >= 0, verdicts)


def measure(session: Session, work: Work, where: slice) -> NDArray[np.float64]:
    """The losses of a file's answers, item by item; a few items at a time."""
    at_once = items_at_once(work, head=True)
    places = range(where.start, where.stop, at_once)
    found = [_losses(session, work, first, min(first + at_once, where.stop)) for first in places]
    return np.concatenate(found)


def answers(session: Session, ids: Tensor, mask: Tensor) -> NDArray[np.float32]:
    """The file's scores."""
    feeds: dict[str, Any] = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    found: NDArray[np.float32] = session.run({name: feeds[name] for name in session.input_names})[0]
    return found


def _losses(session: Session, work: Work, first: int, last: int) -> NDArray[np.float64]:
    tokens = work.tokens
    scores = answers(session, tokens.ids[first:last], tokens.mask[first:last])
    return likelihoods(scores, tokens.labels[first:last].numpy())
