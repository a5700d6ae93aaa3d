"""Names in a run directory that several parts of the package read."""

from __future__ import annotations

from quantkit.core.spec import Allocation
from quantkit.core.store import fingerprint

# What was measured, what `quantkit allocate` chose, and what `quantkit pick` chose of the former.
TABLES, PLAN, PICKED = "tables.json", "plan.json", "picked.json"
WEIGHTS, PLAN_WEIGHTS = "weights", "plan_weights"  # the stages that keep weights, rounded layer by layer apart, and for one plan
ARRAYS = "interactions"
DROP_IN = "drop-in"  # the file, and the variant, that takes the place of the user's own ONNX file
PIPELINE = "quantkit.pipeline"  # the module that the code of a whole job is


def plan_weights_key(key: str, allocation: Allocation) -> str:
    """Under which weights lie that were rounded for one plan; `key` stands for all else that they depend on."""
    return fingerprint(PLAN_WEIGHTS, key, dict(allocation))
