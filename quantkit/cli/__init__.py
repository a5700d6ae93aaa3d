"""The command line: the only place that prints and that turns an error into an exit code. Loads no torch until a command needs it.

The names below load on first use: every pytest of an environment loads this package for its fixture, and needs nothing else of it.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.cli.app import main, recipe_main

# Before anything imports torch, which reads them as it loads. Workers that spin between operations cost up to ten times the time where
# cores are shared (measured on two); workers that never do cost up to a half where they are not. GOMP_SPINCOUNT is GNU OpenMP's number of
# turns before a worker sleeps.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__all__ = ["main", "recipe_main"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("quantkit.cli.app"), name)
