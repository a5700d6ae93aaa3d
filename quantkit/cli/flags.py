"""What commands take: the options of `quantkit.settings.arguments`, spelled out for typer, and the few parameters that several share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any

from typer import Argument, Option

from quantkit.settings.arguments import Row, given, rows, with_options
from quantkit.settings.options import CHOICES, Options

Model = Annotated[
    str,
    Argument(help="A .pt2 archive, pickled module, float .onnx file, transformers folder, module:function, recipe or weights with --arch."),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout and nothing else.")]
TYPES = {str: str | None, int: int | None, float: float | None, list: list[str] | None, bool: bool}


def takes(*tables: type, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command of `**options`: a signature that names those of the tables, for typer. The command gets what was typed of them."""
    options = {name: row for table in tables for name, row in rows(table).items() if row.kind.typed and name not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        spelled = [_parameter(name, row) for name, row in options.items()]

        @wraps(command)
        def run(**typed: Any) -> None:
            said = {name: typed.pop(name) for name in options}
            command(**typed, **given({name: value for name, value in said.items() if value is not False and value != []}))

        signature = with_options(command, spelled, evaluated=True)
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
        return run

    return decorate


def _parameter(name: str, row: Row) -> Parameter:
    kind = row.kind.typed or str
    names = [f"--{name.replace('_', '-')}"] if kind is bool else []  # no --no-…
    option, default = Option(*names, help=_help(name, row)), False if kind is bool else None
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[TYPES[kind], option])


def _help(name: str, row: Row) -> str:
    """The row's text with what may be chosen and what holds otherwise."""
    text = row.help.removesuffix(".")
    if name in CHOICES:
        text = f"{text}: {', '.join(CHOICES[name])}"
    default = row.default or getattr(Options(), name, None)
    return f"{text} (default: {default})." if isinstance(default, str | int | float) else f"{text}."
