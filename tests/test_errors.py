"""Every error that a user can meet ends in what to do next."""

from __future__ import annotations

import ast
from pathlib import Path

from quantkit.core import errors
from quantkit.core.errors import RequestError, unknown

SOURCES = sorted((Path(__file__).resolve().parent.parent / "quantkit").rglob("*.py"))
REQUESTS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RequestError)}


def without_next_step(tree: ast.AST) -> list[int]:
    """Lines where an error of the request is made of fewer than its three parts; unpacked ones are made by `unknown` and tables."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in REQUESTS:
            continue
        parts = [*node.args, *(keyword.value for keyword in node.keywords)]
        unpacked = any(isinstance(part, ast.Starred) for part in parts)
        empty = any(isinstance(part, ast.Constant) and part.value == "" for part in parts[2:])
        if not unpacked and (len(parts) < 3 or empty):
            found.append(node.lineno)
    return found


def test_every_error_of_the_request_says_what_to_do_next() -> None:
    offences = [f"{path.name}:{line}" for path in SOURCES for line in without_next_step(ast.parse(path.read_text()))]

    assert offences == []


def test_the_check_bites() -> None:
    assert without_next_step(ast.parse('raise DataError("got", "wanted")')) == [1]
    assert without_next_step(ast.parse('raise DataError("got", "wanted", "")')) == [1]
    assert without_next_step(ast.parse('raise DataError("got", "wanted", next_step="do")')) == []


def test_an_unknown_name_that_is_like_none_says_so_too() -> None:
    assert unknown("metric", "zzz", ["top1", "mse"])[2] == "pick one of these"
    assert unknown("metric", "topl", ["top1", "mse"])[2] == "did you mean 'top1'?"
