"""The command line: the only place that prints and that turns an error into an exit code. Loads no torch until a command needs it."""

from __future__ import annotations

from quantkit.cli.app import main, recipe_main

__all__ = ["main", "recipe_main"]
