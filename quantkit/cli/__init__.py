"""The command line: the only place that prints and that turns an error into an exit code. Loads no torch until a command needs it."""

from __future__ import annotations

import os

# Before anything imports torch, which reads it as it loads: workers that spin between operations cost up to ten times the time
# where cores are shared (measured on two).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from quantkit.cli.app import main, recipe_main

__all__ = ["main", "recipe_main"]
