"""Findings as SARIF 2.1.0 (docs.oasis-open.org/sarif), which code-scanning services read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantkit.verification.lint.rule import Finding, Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(file: str, findings: Sequence[Finding], rules: Sequence[Rule], version: str) -> dict[str, Any]:
    """One run with one result a finding; nodes are logical locations of the file."""
    described = [
        {
            "id": rule.id,
            "shortDescription": {"text": (rule.check.__doc__ or rule.id).strip()},
            "help": {"text": f"{rule.fix} ({rule.source})"},
            "defaultConfiguration": {"level": rule.severity},
        }
        for rule in rules
    ]
    results = [
        {
            "ruleId": finding.rule,
            "level": finding.severity,
            "message": {"text": f"{finding.node} {finding.happens}; fix: {finding.fix}"},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": file}},
                    "logicalLocations": [{"name": finding.node, "kind": "element"}],
                }
            ],
        }
        for finding in findings
    ]
    driver = {"name": "quantkit lint", "version": version, "rules": described}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
