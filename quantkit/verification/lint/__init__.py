"""The linter: checks any quantized ONNX file against the rules of a runtime, without running it.

loading.py      a file opened without trust
graph_view.py   its graph as the rules look at it
rule.py         what a rule is
common.py · ort_cpu.py · openvino.py · tensorrt.py   the rules, one table a target
fixes.py        automatic fixes
sarif.py        findings for code-scanning services
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from quantkit.core.errors import ModelError, SchemeError, unknown
from quantkit.core.store import write_atomically
from quantkit.loading.from_onnx.opening import open_model
from quantkit.verification.lint import common, openvino, ort_cpu, tensorrt
from quantkit.verification.lint.fixes import FIXES, apply_fixes
from quantkit.verification.lint.graph_view import View
from quantkit.verification.lint.rule import Finding, Rule
from quantkit.verification.lint.sarif import to_sarif

RULES: Mapping[str, Sequence[Rule]] = {
    "ort-cpu": (*common.RULES, *ort_cpu.RULES),
    "openvino": (*common.RULES, *openvino.RULES),
    "tensorrt": (*common.RULES, *tensorrt.RULES),
    "nbit": common.RULES,
}

__all__ = ["FIXES", "RULES", "Finding", "Linted", "Rule", "fix_file", "lint_file", "lint_model", "to_sarif"]


@dataclass(frozen=True, slots=True)
class Linted:
    """What was found in a file for a target."""

    file: Path
    target: str
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        """How many findings of that severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        counts = {f"{severity}s": self.count(severity) for severity in ("error", "warning")}
        return {"file": str(self.file), "target": self.target, **counts, "findings": [finding.to_json() for finding in self.findings]}


def lint_file(path: Path, target: str) -> Linted:
    """What `target` will make of the file. Raises ModelError where it is not a safe ONNX file, SchemeError for an unknown target."""
    rules = _rules(target)
    return Linted(path, target, lint_model(open_model(path), rules))


def fix_file(path: Path, target: str, output: Path) -> tuple[Linted, list[str]]:
    """Write a copy of the file to `output` with the mechanical fixes made; what is left to find in it, and which rules were fixed.

    Raises as `lint_file` does, ModelError for what is not valid ONNX, and SchemeError where `output` is the file itself.
    """
    if output.resolve() == path.resolve():
        raise SchemeError(f"--fix {output} is the file itself", "another file: nothing is fixed in place", "name another file")
    rules = _rules(target)
    model = open_model(path)
    found = {finding.rule for finding in lint_model(model, rules)}
    if common.INVALID in found:
        raise ModelError(
            f"{path} is not valid ONNX", "a file that onnx.checker accepts", "export it again; `quantkit lint` names the place"
        )
    fixed, done = apply_fixes(model, found)
    with write_atomically(output) as temporary:
        onnx.save(fixed, temporary)
    return Linted(output, target, lint_model(fixed, rules)), done


def lint_model(model: onnx.ModelProto, rules: Sequence[Rule]) -> tuple[Finding, ...]:
    """The findings of these rules, rule by rule."""
    view = View(model)
    return tuple(finding for rule in rules for finding in rule.findings(view))


def _rules(target: str) -> Sequence[Rule]:
    if target not in RULES:
        raise SchemeError(*unknown("target", target, RULES))
    return RULES[target]
