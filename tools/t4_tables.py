"""A device of another kind: the times of each layer on a T4 that HAWQ-V3 publishes (Yao et al., arXiv 2011.10680).

The prior is a machine that only multiplies, twice as fast at 4 bits as at 8: it has never seen a T4. `bench_devices.py` writes it down.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from quantkit.allocation import Resource
from quantkit.core.graph import Group
from quantkit.core.machine import Machine
from quantkit.core.spec import Allocation, parse_schemes
from quantkit.core.table import Table

FIGURES = Path(__file__).resolve().parent.parent / "tests" / "hawq_v3.json"
NETWORKS = ("resnet18", "resnet50")
MULTIPLIER = Machine("multiplier", macs_per_s=1e12, bytes_per_s=float("inf"))
SCHEMES = parse_schemes(("fp32", "w8a8", "w4a4"))
COLUMNS = ("t4_latency_ms_int8", "t4_latency_ms_int4")


def prior_of(network: str) -> tuple[list[Group], Resource]:
    """The layers whose times are published, and what the multiplier takes for each, in ms."""
    known = json.loads(FIGURES.read_text())[network]
    values = [[1e3 * MULTIPLIER.seconds(1e6 * macs, 0, scheme) for scheme in SCHEMES] for macs in known["macs_million"]]
    table = Table("latency", "ms", tuple(known["layers"]), SCHEMES, np.array(values))
    return [Group(name, (name,), SCHEMES[1:], "") for name in known["layers"]], Resource(table)


def published(network: str, plan: Allocation) -> float:
    """Milliseconds on the T4, as layers add up there."""
    known = json.loads(FIGURES.read_text())[network]
    column = dict(zip(SCHEMES[1:], COLUMNS, strict=True))
    return float(sum(known[column[plan[name]]][place] for place, name in enumerate(known["layers"])))
