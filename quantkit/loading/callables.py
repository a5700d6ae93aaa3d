"""`package.module:function`: a network that the user's own code builds."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from quantkit.core.errors import ModelError, unknown
from quantkit.loading.boundary import foreign
from quantkit.loading.model import LoadedModel, from_module

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_WANTED = "package.module:function, where the function takes no argument and returns a torch.nn.Module"


def is_reference(text: str) -> bool:
    """Whether `text` has the form package.module:function."""
    return _REFERENCE.fullmatch(text) is not None


def load_callable(reference: str) -> LoadedModel:
    """The network that package.module:function returns, as a copy of our own."""
    return replace(from_module(build_module(reference)), name=reference.rpartition(":")[2], source=reference)


def build_module(reference: str) -> nn.Module:
    """What the function returns. Its prints go to stderr, since stdout is for results.

    ModelError that names the nearest known module or function for a misspelt one; or if the function needs arguments,
    raises, or returns no module.
    """
    with importable_from_here(), contextlib.redirect_stdout(sys.stderr):
        function = _resolve(reference)
        with foreign(f"{reference} fails", _WANTED, "run it by itself to see the whole error"):
            module = function()
    if not isinstance(module, nn.Module):
        raise ModelError(f"{reference} returns a {type(module).__name__}", "a torch.nn.Module", "return the module itself")
    return module


@contextlib.contextmanager
def importable_from_here() -> Iterator[None]:
    """Lets imports find modules in the current directory, and restores sys.path."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _resolve(reference: str) -> Callable[[], Any]:
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise ModelError(f"{reference!r}", _WANTED, "write it so, such as mynets.resnet:build")
    module, name = _import(parts[1]), parts[2]
    function: Callable[[], Any] | None = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise _misspelt(f"function in {parts[1]}", name, known)
    if not callable(function):
        raise ModelError(f"{reference} is a {type(function).__name__}", _WANTED, "wrap it in a function")
    with contextlib.suppress(ValueError, TypeError):  # some builtins have no signature
        parameters = inspect.signature(function).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if needed:
            raise ModelError(f"{reference} needs arguments: {', '.join(needed)}", _WANTED, "wrap it in a function that fills them in")
    return function


def _import(name: str) -> ModuleType:
    with foreign(f"importing {name} fails", _WANTED, f"try it by itself: python -c 'import {name}'"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if not f"{name}.".startswith(f"{missing}."):
                raise  # the module is there; something that it imports is not
    parent, _, leaf = missing.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", []) if parent else None
    raise _misspelt("module", leaf, [found.name for found in pkgutil.iter_modules(folders)], prefix=f"{parent}." if parent else "")


def _misspelt(kind: str, name: str, known: list[str], prefix: str = "") -> ModelError:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return ModelError(*unknown(kind, prefix + name, [prefix + close for close in near]))
    return ModelError(f"unknown {kind} {prefix + name!r}", _WANTED, "check the name, or run in the folder that holds the module")
