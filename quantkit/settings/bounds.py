"""What a plan may use beside what it may lose: `Bounds` as given, `0.25x` of the float network or so much in a unit.

bytes          of the file                            latency        milliseconds of one inference
bops           Σ multiply-accumulates · weight bits · activation bits (HAWQ-V3)
average_bits   of the weights, each weight counting alike
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from quantkit.core.errors import RequestError

BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
MILLISECONDS = {"": 1, "ms": 1, "s": 1e3, "us": 1e-3, "µs": 1e-3}
BOPS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "kbops": 1e3, "mbops": 1e6, "gbops": 1e9, "tbops": 1e12, "bops": 1}
SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
# The option, the units that it takes, and an example of each kind.
AMOUNTS: Mapping[str, tuple[str, Mapping[str, float], str]] = {
    "bytes": ("--max-bytes", BYTES, "2MB, or 0.25x of the float file"),
    "latency": ("--max-latency", MILLISECONDS, "5ms, or 0.5x of the float network's time"),
    "bops": ("--max-bops", BOPS, "2.5G, or 0.1x of the float network's"),
    "average_bits": ("--average-bits", {"": 1}, "4.5, or 0.2x of 32"),
}
BOUNDS = {name: option.removeprefix("--").replace("-", "_") for name, (option, _, _) in AMOUNTS.items()}
FLOAT_BITS = 32


@dataclass(frozen=True, slots=True)
class Bound:
    """At most `value` in the unit, or at most that share of what the float network uses."""

    value: float
    relative: bool = False

    def at_most(self, of_float: float) -> float:
        """The bound in the unit, where the float network uses so much."""
        return self.value * of_float if self.relative else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """None is unbounded. Latency is in milliseconds."""

    latency: Bound | None = None
    bytes: Bound | None = None
    bops: Bound | None = None
    average_bits: Bound | None = None

    def given(self) -> dict[str, Bound]:
        """Those that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: bound for name, bound in values.items() if bound is not None}


def parse_bounds(texts: Mapping[str, str | float | None]) -> Bounds:
    """From the text or number of each, by name. Raises RequestError for what is not an amount above 0."""
    return Bounds(**{name: parse_bound(name, text) for name, text in texts.items() if text is not None})


def parse_bound(name: str, text: str | float) -> Bound:
    """`"2MB"` → 2,000,000 bytes, `"0.25x"` → a quarter of the float network's."""
    option, units, example = AMOUNTS[name]
    share = re.fullmatch(r"\s*([\d.]+)\s*[x×]\s*", str(text))
    bound = Bound(_amount(share[1], {"": 1}), relative=True) if share else Bound(_amount(str(text), units))
    if not bound.value > 0:
        raise RequestError(f"{option} {text}", "an amount above 0", f"write {option} {example}")
    return bound


def parse_seconds(text: str | float) -> float:
    """`"10m"` → 600; a bare number is seconds. Raises RequestError for what is not a time above 0."""
    seconds = _amount(str(text), SECONDS)
    if not seconds > 0:
        raise RequestError(f"--time-limit {text}", "a time above 0", "write --time-limit 10m, 90s or 1h")
    return seconds


def show_drop(value: float) -> str:
    """A drop or a score in words: two digits, and nothing that rounds to a negative zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def show_interval(low: float, high: float, counted_drop: float | None) -> str:
    """Where a drop lies at 95 %, and the counted drop where the drop is an estimate."""
    alone = "" if counted_drop is None else f", {show_drop(counted_drop)} by counting"
    return f"95 % interval {low:+.2f} to {high:+.2f}{alone}"


def show_amount(name: str, value: float) -> str:
    """An amount as a person writes it: 2.05 MB, 5.00 ms, 1.20 Gbops, 4.50 bits."""
    if name == "latency":
        return f"{value:.2f} ms"
    if name == "average_bits":
        return f"{value:.2f} bits"
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, ""))
    scale, prefix = next(((scale or 1.0, prefix) for scale, prefix in prefixes if value >= scale), (1.0, ""))
    return f"{value / scale:.{2 if prefix else 0}f} {prefix}{'B' if name == 'bytes' else 'bops'}"


def _amount(text: str, units: Mapping[str, float]) -> float:
    """The number times its unit; nan where it is none."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*([a-zµ]*)\s*", text.lower())
    return float(found[1] + (found[2] or "")) * units[found[3]] if found and found[3] in units else float("nan")
