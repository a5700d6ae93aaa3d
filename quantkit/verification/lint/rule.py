"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from onnx import NodeProto

from quantkit.verification.lint.graph_view import View, title

Severity = Literal["error", "warning"]
Found = tuple[str, str]  # the node, and what happens at run time


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule broken by one node. error: will not load, or computes wrongly; warning: slower or less exact than the graph suggests."""

    rule: str
    severity: Severity
    node: str
    happens: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"rule": self.rule, "severity": self.severity, "node": self.node, "happens": self.happens, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a target's table: `check` yields what breaks the rule, `source` says who says so."""

    id: str
    severity: Severity
    check: Callable[[View], Iterator[Found]]
    fix: str
    source: str

    def findings(self, view: View) -> list[Finding]:
        """All that break it, in the order of the graph."""
        return [Finding(self.id, self.severity, node, happens, self.fix) for node, happens in self.check(view)]


def at(node: NodeProto, happens: str) -> Found:
    """That this happens at this node."""
    return title(node), happens
