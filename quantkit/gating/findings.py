"""Each condition judged: kept, broken, or undecided, with how many items or rounds would decide. Decisions are those of `statistics`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quantkit.core.metric import Metric
from quantkit.core.ratios import RatioVerdict
from quantkit.core.statistics import Decision, Verdict, stands
from quantkit.settings.bounds import show_amount, show_drop, show_interval

EXPLAINED = {
    "max-drop": "The loss against the reference on the same items",
    "max-latency-ratio": "The time of one inference as a share of the reference's, both timed in turn on this host",
    "max-bytes": "Bytes of the file, its external data too",
    "require-int8": "The share of multiply-accumulates that the runtime runs in int8",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition: `measured` against `limit`, and whether it `stands`, which an undecided decision leaves to --undecided.

    `low` and `high` are its 95 % interval over `n` of `counted` (items or rounds), None where nothing is drawn by chance; `to_decide` is
    how many would decide, None where it is decided. `text` is all of it in words (`told` in JSON).
    """

    condition: str
    decision: Decision
    stands: bool
    measured: float
    limit: float
    unit: str
    text: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    counted: str | None = None
    to_decide: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"told" if name == "text" else name: value for name, value in asdict(self).items()}

    def line(self) -> str:
        """The finding in one line."""
        return f"{self.condition}: {self.verdict()}: {self.text}"

    def verdict(self) -> str:
        """Kept, broken, or undecided with so many items, and what that comes to."""
        if self.decision != "undecided":
            return self.decision
        more = f", about {self.to_decide:,} would decide" if self.to_decide else ""
        return f"undecided with {self.n} {self.counted}{more}; {'passed' if self.stands else 'failed'}"


def judge_drop(verdict: Verdict, budget: float, metric: Metric, undecided: str) -> Finding:
    """From the paired verdict on the items."""
    text = (
        f"{show_drop(verdict.drop)} {metric.unit} of {metric.name} lost, at most {budget:.2f} allowed "
        f"({show_interval(verdict.low, verdict.high, verdict.counted_drop)}, {verdict.n} items)"
    )
    return Finding(
        "max-drop", verdict.decision, stands(verdict.decision, verdict.drop <= budget, undecided), verdict.drop, budget, metric.unit, text,
        verdict.low, verdict.high, verdict.n, "items", verdict.items_to_decide,
    )  # fmt: skip


def judge_latency(verdict: RatioVerdict, at_most: float, undecided: str) -> Finding:
    """From the sittings."""
    text = (
        f"{verdict.ratio:.3f} of the reference's time, at most {at_most:.3f} allowed "
        f"(95 % interval {verdict.low:.3f} to {verdict.high:.3f}, {verdict.n} sittings)"
    )
    return Finding(
        "max-latency-ratio", verdict.decision, stands(verdict.decision, verdict.ratio <= at_most, undecided), verdict.ratio, at_most, "x",
        text, verdict.low, verdict.high, verdict.n, "sittings", verdict.sittings_to_decide,
    )  # fmt: skip


def judge_bytes(size: int, at_most: float) -> Finding:
    """Counted, so decided."""
    text = f"{show_amount('bytes', size)}, at most {show_amount('bytes', at_most)} allowed"
    return Finding("max-bytes", _decided(size <= at_most), size <= at_most, float(size), at_most, "bytes", text)


def judge_int8(share: float, at_least: float) -> Finding:
    """Read from the runtime's own graph, so decided. Shares are in percent, and a rounding of sums breaks nothing."""
    holds = share >= at_least - 1e-9
    text = f"{100 * share:.1f} % of the multiply-accumulates run in int8, at least {100 * at_least:.1f} % required"
    return Finding("require-int8", _decided(holds), holds, 100 * share, 100 * at_least, "%", text)


def _decided(holds: bool) -> Decision:
    return "kept" if holds else "broken"
