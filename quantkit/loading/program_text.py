"""Is the text of a serialized program only text?

torch evaluates some strings of a .pt2's JSON as Python (`sympy.sympify` on sizes, `exec` on guards and on the code that
fx writes around node and parameter names), imports modules that a tree spec names, and calls any attribute of `torch`
that a node names. So each string is checked before torch sees it, and one that is not known to be harmless is refused.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from quantkit.core.errors import ModelError

# No quote, bracket, comma, = or line break: whatever of this lands in generated code can call nothing.
_PLAIN = re.compile(r"[\w.@+\-/: ]*")
_OPERATOR = re.compile(
    r"torch\.ops\.(?!(load_library|import_module|loaded_libraries)\b)[A-Za-z]\w*\.\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|lshift|rshift)"
)
# What size expressions (printed by sympy's srepr, or str) and guards may call: sympy's arithmetic, torch's, and a tensor's metadata.
_CALLABLE = re.compile(
    r"""Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|sqrt|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge
    |Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|Piecewise|ExprCondPair
    |FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow
    |FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity
    |size|stride|storage_offset|dim|numel|isnan|int|float|bool""",
    re.VERBOSE,
)
_HARMLESS = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.Name, ast.Subscript, ast.keyword,
    ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_IMPORTS = {"__enum__", "default_factory_module"}


def check_program_text(text: bytes, where: str) -> None:
    """ModelError that quotes the first string of the JSON `text` that torch might run; `where` names the member."""
    try:
        _walk(json.loads(text), "")
    except _NotTextError as error:
        raise ModelError(
            f"{where} holds {error.args[0][:80]!r} where a name or a size belongs: it could run code",
            "a program that is data only",
            "export it again, or pass --trust-pickle if you trust its author",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is damaged: {error}", "the JSON of an exported program", "save or download it again") from error


class _NotTextError(Exception):
    """Carries the string."""


def _walk(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _plain(name)
            if name != "metadata":  # stack traces and the like: shown, never run
                _walk(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, key)
    elif isinstance(value, str) and key not in ("as_string", "as_strings"):  # string arguments: fx writes their repr
        _CHECKS.get(key, _plain)(value)


def _plain(text: str) -> None:
    if not _PLAIN.fullmatch(text):
        raise _NotTextError(text)


def _operator(text: str) -> None:
    if "__" in text or not _OPERATOR.fullmatch(text):
        raise _NotTextError(text)


def _expression(text: str) -> None:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise _NotTextError(text) from error
    for node in ast.walk(tree):
        if not _is_harmless(node):
            raise _NotTextError(text)


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or (_PLAIN.fullmatch(node.value) is not None and "__" not in node.value)
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        return _CALLABLE.fullmatch(name) is not None
    if isinstance(node, ast.Attribute):
        return node.attr in ("inf", "shape") or _CALLABLE.fullmatch(node.attr) is not None
    return isinstance(node, _HARMLESS)


def _spec(text: str) -> None:
    try:
        inner = json.loads(text)
    except ValueError:
        return _plain(text)
    return _spec_part(inner)


def _spec_part(value: Any) -> None:
    if isinstance(value, dict):
        if _IMPORTS & value.keys():
            raise _NotTextError(json.dumps(value))
        for name, inner in value.items():
            _plain(name)
            _spec_part(inner)
    elif isinstance(value, list):
        for inner in value:
            _spec_part(inner)
    elif isinstance(value, str):
        _spec(value)  # tree specs nest JSON in JSON


_CHECKS: dict[str, Callable[[str], None]] = {
    "expr_str": _expression,
    "guards_code": _expression,
    "in_spec": _spec,
    "out_spec": _spec,
    "target": _operator,
    "as_operator": _operator,
}
