"""What an answer is worth, and what was refused: plain data that reports read without the result."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from quantkit.settings.bounds import show_drop

LEAST_CONFIDENCE = 0.5  # that may be asked for
ALTERNATIVE = "alternative.onnx"  # beside model.onnx, where the float network is the answer


@dataclass(frozen=True, slots=True)
class Gain:
    """What the file takes of a `resource`, as a share (`ratio` < 1) of the float network's.

    `measured` is False where the target does not run here, so that a model gave it; `proven` where the promise is kept at 95 %.
    """

    resource: str
    ratio: float
    measured: bool
    proven: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A row of the table that keeps the budget on these items and takes less than the answer, `ratio` of float's `resource`.

    `chance_kept` is how sure the search was that it keeps the promise, where it measured it, and `asked` how sure it had to be.
    `items_to_decide` is as of a verdict.
    """

    name: str
    resource: str
    ratio: float
    drop: float
    chance_kept: float | None
    asked: float
    items_to_decide: int | None

    def words(self) -> str:
        """What it is, why it was not chosen, and what would ship it."""
        unit = {"latency": "time", "bytes": "bytes"}[self.resource]
        told = f"{self.name} takes {self.ratio:.2f} of float's {unit} and lost {show_drop(self.drop)}"
        if self.chance_kept is None:
            return f"{told}, and is no plan of this search"
        if self.chance_kept >= self.asked:
            return f"{told}, and was predicted or timed to be no better"
        least = floor(100 * self.chance_kept) / 100
        told += f", but the search was {100 * least:.0f} % sure of the promise where {100 * self.asked:g} % was asked for"
        told += f" (`--confidence {least:g}` would accept it" if least >= LEAST_CONFIDENCE else " ("
        more = f"about {self.items_to_decide} gate items would decide" if self.items_to_decide else "more search items would make it surer"
        return f"{told}{'; ' if least >= LEAST_CONFIDENCE else ''}{more})"
