"""A gate as SARIF 2.1.0 (docs.oasis-open.org/sarif), which code-scanning services read: one result a condition that is not plainly kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.gating.findings import EXPLAINED
from quantkit.verification.lint.sarif import SCHEMA


def to_sarif(gated: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The SARIF object of a gate's JSON: an error where a condition does not stand, a warning where it stands undecided."""
    rules = [
        {
            "id": name,
            "shortDescription": {"text": text},
            "help": {"text": f"Measured by `quantkit gate --{name}`."},
            "defaultConfiguration": {"level": "error"},
        }
        for name, text in EXPLAINED.items()
    ]
    results = [
        {
            "ruleId": row["condition"],
            "ruleIndex": list(EXPLAINED).index(row["condition"]),
            "level": "warning" if row["stands"] else "error",
            "message": {"text": row["line"]},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": gated["file"]}, "region": {"startLine": 1}}}],
        }
        for row in gated["findings"]
        if row["decision"] != "kept"
    ]
    driver = {"name": "quantkit gate", "version": version, "rules": rules}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
