"""The gate: does a file still meet its conditions? Any ONNX file, one answer, and reports for CI services.

conditions.py   the conditions of a file
findings.py     each condition judged: kept, broken, or undecided with so many items
lock.py         quantkit.lock.json: a deployment at the time of its allocation
check.py        the gate itself
junit.py · sarif.py · markdown.py   one report each
"""

from __future__ import annotations

from quantkit.gating.check import Gated, ask, gate
from quantkit.gating.conditions import Conditions, parse_conditions
from quantkit.gating.findings import Finding
from quantkit.gating.junit import to_junit
from quantkit.gating.lock import LOCK, lock_result, read_lock
from quantkit.gating.markdown import to_markdown
from quantkit.gating.sarif import to_sarif

__all__ = [
    "LOCK",
    "Conditions",
    "Finding",
    "Gated",
    "ask",
    "gate",
    "lock_result",
    "parse_conditions",
    "read_lock",
    "to_junit",
    "to_markdown",
    "to_sarif",
]
