"""Which code a result follows from: a module's own source and that of all modules of this package which it imports, directly or not."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_of(module: str) -> str:
    """A hash of these sources, in hexadecimal; the same for all modules outside of this package, whose code nothing here can know.

    Imports inside functions count. Those below `if TYPE_CHECKING` do not, nor does the `__init__` of a package one module of which is
    imported: neither computes anything that the module uses.
    """
    digest = hashlib.sha256()
    for name in sorted(reached(module)):
        digest.update(name.encode() + b"\0" + _path(name).read_bytes())
    return digest.hexdigest()


def reached(module: str) -> frozenset[str]:
    """The module and all of this package that it imports, directly or not; nothing for a module outside of it."""
    found, todo = set[str](), {module} if _path(module).is_file() else set[str]()
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= _imports(name) - found
    return frozenset(found)


@cache
def _imports(module: str) -> frozenset[str]:
    found = set[str]()
    for node in _walk(ast.parse(_path(module).read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {part for part in parts if _path(part).is_file()}
            found |= modules if modules == parts else {node.module, *modules}  # `from package import module` is about the module
    return frozenset(name for name in found if _path(name).is_file())


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _walk(child)


def _path(module: str) -> Path:
    """Where its source would lie; below no folder for a module outside of this package."""
    first, *parts = module.split(".")
    base = (PACKAGE if first == PACKAGE.name else PACKAGE / "-").joinpath(*parts)
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
