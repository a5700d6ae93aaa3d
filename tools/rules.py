"""Write docs/lint-rules.md: every rule of `quantkit lint`, target by target, from the tables that the linter runs.

python tools/rules.py            # write it
python tools/rules.py --check    # exit 1 if it is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path

from quantkit.verification.lint import FIXES, RULES, common

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lint-rules.md"
HEAD = """# The rules of `quantkit lint`

Written by `python tools/rules.py` from the tables in `quantkit/verification/lint/`. *error*: the file will not load, or computes wrongly;
*warning*: it is slower or less exact than the graph suggests. Each rule has a file that breaks it and one that does not in
`tests/test_lint.py`, which also runs the runtime (ONNX Runtime, OpenVINO) where a rule says that something runs in float or does not load.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    everywhere = {rule.id for rule in common.RULES}
    groups = {"every target": common.RULES} | {
        target: [rule for rule in rules if rule.id not in everywhere] for target, rules in RULES.items() if len(rules) > len(everywhere)
    }
    for target, rules in groups.items():
        parts.append(f"\n## {target}\n\n| rule | severity | what breaks it | fix | source |\n|---|---|---|---|---|")
        for rule in rules:
            fix = rule.fix if rule.id in FIXES or "--fix" not in rule.fix else rule.fix.replace("; --fix", "")
            parts.append(f"| {rule.id} | {rule.severity} | {(rule.check.__doc__ or '').strip()} | {fix} | {rule.source} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write or check the page."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
