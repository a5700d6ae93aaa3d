"""Everything that must hold before a change is merged, in one command: lint, types, layers, ceilings, figures.

Run it before every commit (`make check`). It prints what each check found and exits 1 if any failed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS: dict[str, list[str]] = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "layers": [str(BIN / "lint-imports"), "--no-cache"],
    "ceilings": [sys.executable, "tools/sizes.py", "--ceilings"],
    "figures": [sys.executable, "tools/stale_figures.py"],
    "claims": [sys.executable, "tools/claims.py"],
    "pages": [sys.executable, "tools/page_figures.py", "--check"],
    "structure": [sys.executable, "-m", "pytest", "-q", "tests/test_structure.py"],
}


def main() -> int:
    """Run them all, so that one failure does not hide the next."""
    failed = []
    for name, command in CHECKS.items():
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
