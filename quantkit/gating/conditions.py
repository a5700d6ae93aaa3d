"""The conditions of a file: `Conditions`, parsed from text, and as a lock file keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.core.errors import RequestError
from quantkit.core.metric import Budget, parse_budget
from quantkit.settings.bounds import Bound, parse_bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """None means no condition. A `max_latency_ratio` and relative `max_bytes` are shares of the reference's, `int8_share` of all
    multiply-accumulates.
    """

    max_drop: Budget | None = None
    max_latency_ratio: float | None = None
    max_bytes: Bound | None = None
    int8_share: float | None = None

    def given(self) -> bool:
        """Whether anything is asked."""
        return any(value is not None for value in (self.max_drop, self.max_latency_ratio, self.max_bytes, self.int8_share))

    def needs_reference(self) -> bool:
        """Whether any of it is about another file too."""
        relative = self.max_bytes is not None and self.max_bytes.relative
        return self.max_drop is not None or self.max_latency_ratio is not None or relative

    def to_json(self) -> dict[str, Any]:
        """The text of each option, so that a person can read a lock file and change it."""
        return {
            "max_drop": None if self.max_drop is None else _text(self.max_drop.value, "%" if self.max_drop.kind == "relative" else ""),
            "max_latency_ratio": self.max_latency_ratio,
            "max_bytes": None if self.max_bytes is None else _text(self.max_bytes.value, "x" if self.max_bytes.relative else ""),
            "require_int8": None if self.int8_share is None else _text(100 * self.int8_share, "%"),
        }


def parse_conditions(said: Mapping[str, str | float | None]) -> Conditions:
    """From `max_drop` or `keep`, `max_latency_ratio`, `max_bytes` and `require_int8`. Raises RequestError for what is none of these."""
    drop, keep = said.get("max_drop"), said.get("keep")
    ratio, size, share = said.get("max_latency_ratio"), said.get("max_bytes"), said.get("require_int8")
    return Conditions(
        max_drop=None if drop is None and keep is None else parse_budget(drop, None if keep is None else str(keep)),
        max_latency_ratio=None if ratio is None else _ratio(ratio),
        max_bytes=None if size is None else parse_bound("bytes", size),
        int8_share=None if share is None else _share(share),
    )


def _ratio(text: str | float) -> float:
    """`"0.6"` or `"0.6x"` → 0.6."""
    value = _number(str(text).strip().removesuffix("x").removesuffix("×"))
    if not value > 0:
        wanted = "a share of the other file's time, above 0: milliseconds hold on one machine only"
        raise RequestError(f"--max-latency-ratio {text}", wanted, "write --max-latency-ratio 0.6")
    return value


def _share(text: str | float) -> float:
    """`"95%"` or 95 → 0.95."""
    value = _number(str(text).strip().removesuffix("%")) / 100
    if not 0 < value <= 1:
        raise RequestError(f"--require-int8 {text}", "a percentage above 0 and at most 100", "write --require-int8 95%")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _text(value: float, unit: str) -> str:
    return f"{value:.12g}{unit}"
