"""Mixed-precision quantization under an accuracy promise that is checked on the file that ships.

    import quantkit as qk

    result = qk.allocate(module, data=loader, max_drop=0.5)

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.api import allocate, gate, inspect
    from quantkit.cli import recipe_main
    from quantkit.core.errors import QuantkitError
    from quantkit.core.metric import Metric
    from quantkit.data import Batch, Preprocessing
    from quantkit.runs.result import Result
    from quantkit.settings.options import Options
    from quantkit.settings.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Metric",
    "Options",
    "Preprocessing",
    "QuantkitError",
    "Recipe",
    "Result",
    "__version__",
    "allocate",
    "gate",
    "inspect",
    "recipe_main",
]

_EXPORTS = {
    "Batch": "quantkit.data",
    "Metric": "quantkit.core.metric",
    "Options": "quantkit.settings.options",
    "Preprocessing": "quantkit.data",
    "QuantkitError": "quantkit.core.errors",
    "Recipe": "quantkit.settings.recipe",
    "Result": "quantkit.runs.result",
    "allocate": "quantkit.api",
    "gate": "quantkit.api",
    "inspect": "quantkit.api",
    "recipe_main": "quantkit.cli",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'quantkit' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
