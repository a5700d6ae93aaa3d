"""What all charts share: `Chart`, one colour and shape for each scheme, and the pieces of Vega-Lite that recur.

Colours are those of Okabe and Ito, then of Paul Tol: distinguishable with colour blindness, on white and on black; shapes repeat them.
Specifications are plain dicts (https://vega.github.io/vega-lite/docs/spec.html); text and grid colours are the page's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.core.spec import Scheme

Spec = dict[str, Any]
Row = dict[str, Any]
FLOATS = ("#8c8c8c", "#b0a090", "#6f7f8f")
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999933", "#882255", "#44AA99", "#AA4499", "#88CCEE", "#CC6677",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
ALERT = "#D55E00"
DECADES = 7
# Labels of an axis: 0, 0.25 and 2M; 0 and 1e-6.
SHORT = "abs(datum.value) >= 1000 ? format(datum.value, '~s') : format(datum.value, '~r')"
TINY = "datum.value == 0 ? '0' : format(datum.value, '~e')"
UNITS = {"latency": "milliseconds", "bytes": "bytes", "bops": "bit operations", "average_bits": "bits of a weight on average"}


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """One chart of the page: its `title` and how it is read; `spec` None where the run holds nothing to draw, and then why is in `absent`.

    `rows` are its numbers as a table, empty where they stand elsewhere on the page.
    """

    name: str
    title: str
    reading: str
    spec: Spec | None
    absent: str = ""
    rows: tuple[Row, ...] = ()


def colour(schemes: Sequence[Scheme]) -> Spec:
    """The encoding of a scheme as a colour, the same in every chart of a run."""
    scale = {"domain": list(schemes), "range": list(scheme_colours(schemes).values())}
    return {"field": "scheme", "type": "nominal", "title": "scheme", "scale": scale}


def shape(schemes: Sequence[Scheme]) -> Spec:
    """The same as a shape."""
    scale = {"domain": list(schemes), "range": [SHAPES[place % len(SHAPES)] for place in range(len(schemes))]}
    return {"field": "scheme", "type": "nominal", "title": "scheme", "scale": scale}


def scheme_colours(schemes: Sequence[Scheme]) -> dict[str, str]:
    """A colour for each scheme: greys for float, and the palette in order for the others."""
    floats = [name for name in schemes if name.is_float]
    found = {name: FLOATS[place % len(FLOATS)] for place, name in enumerate(floats)}
    others = [name for name in schemes if name not in found]
    found |= {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(others)}
    return {name: found[name] for name in schemes}


def quantity(field: str, title: str) -> Spec:
    """A quantitative encoding; thousands and millions in short."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False},
        "axis": {"tickCount": 6, "labelExpr": SHORT},
    }


def loss_axis(field: str, title: str, values: Sequence[float | None]) -> Spec:
    """The encoding of losses, which run over many decades and may be 0 or below: linear next to 0, logarithmic beyond, DECADES at most."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    largest = max((abs(value) for value in known), default=0.0)
    if not largest:
        return quantity(field, title)
    least = max(min(abs(value) for value in known if value), largest * 10.0**-DECADES)
    powers = decades(least, largest)
    ticks = [0.0, *powers, *(-power for power in powers if min(known) < 0)]
    scale = {"type": "symlog", "constant": least}
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": scale,
        "axis": {"values": sorted(ticks), "labelExpr": TINY},
    }


def decades(least: float, largest: float) -> list[float]:
    """Powers of ten about so wide a range, at most some six."""
    powers = [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(largest)) + 1)]
    return powers[:: -max(1, len(powers) // 6)]


def tips(fields: Mapping[str, str]) -> list[Spec]:
    """Tooltips by field and title; numbers with four digits that count."""
    return [{"field": field, "title": title} for field, title in fields.items()]


def document(spec: Spec, rows: Sequence[Row]) -> Spec:
    """A whole specification with its rows."""
    return {"data": {"values": list(rows)}, **spec}


def rounded(value: float | None) -> float | None:
    """Six digits that count; None for what is not a number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
