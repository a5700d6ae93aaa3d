"""What an option may be set to in a recipe or a configuration file, and as what the command line reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: `wanted` in words; `read` gives the value as it is kept, or None where it is no such thing.

    `typed` is the type that the command line parses; None where the command line has no such option.
    """

    wanted: str
    read: Callable[[Any], Any]
    typed: type | None = str


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _path(value: Any) -> Path | None:
    return Path(value) if isinstance(value, str | Path) and str(value) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _numbers(value: Any) -> float | tuple[float | None, ...] | None:
    if not isinstance(value, list | tuple):
        return _number(value)
    numbers = tuple(map(_number, value))
    return None if not numbers or None in numbers else numbers


def _texts(value: Any) -> tuple[str, ...] | None:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return tuple(parts) if isinstance(parts, list | tuple) and parts and all(map(_text, parts)) else None


def _pins(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value if all(_text(part) for pair in value.items() for part in pair) else None
    return _texts(value)


def _sides(value: Any) -> tuple[int, ...] | None:
    parts = [int(part) for part in re.findall(r"\d+", value)] if isinstance(value, str) and re.fullmatch(r"\d+(x\d+)*", value) else value
    return tuple(parts) if isinstance(parts, list | tuple) and parts and all(map(_count, parts)) else None


TEXT, PATH, COUNT = Kind("a text", _text), Kind("a path", _path), Kind("an integer above 0", _count, int)
SEED = Kind("an integer of at least 0", lambda value: 0 if type(value) is int and value == 0 else _count(value), int)
SPLIT = Kind("a path, or a count of items above 0", lambda value: _path(value) or _count(value), None)
SIZE = Kind("pixels, such as 256 or [224, 224]", lambda value: _count(value) or _sides(value))
SHAPE = Kind('sizes above 0, such as "1x3x224x224"', _sides)
NUMBER, NUMBERS = Kind("a number", _number, float), Kind("a number, or one a channel", _numbers)
FACTOR = Kind("a number", _number)  # typed as text on the command line, where 1/255 is no number
AMOUNT = Kind("a number, or a text such as '2MB' or '0.25x'", lambda value: _text(value) if isinstance(value, str) else _number(value))
DROP = Kind("a number, or a percentage such as '0.5%'", AMOUNT.read)
WORKERS = Kind("a count, or an address such as tcp://host:8786", lambda value: _text(value) if isinstance(value, str) else _count(value))
TEXTS = Kind('texts, such as ["w8a8", "fp32"]', _texts)
PATTERNS = Kind('texts, such as ["head*"]', _texts, list)
PINS = Kind('texts such as ["head=fp32"], or a table of groups and schemes', _pins, list)
SWITCH = Kind("true or false", lambda value: value if isinstance(value, bool) else None, bool)
