"""Defaults of a project: `quantkit.toml`, or the table `[tool.quantkit]` of pyproject.toml, so that commands can be short."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import ConfigError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the file at `source` sets; None where it says nothing.

    Paths are absolute, seen from the file's folder. `calibration`, `search` and `gate` are each a path, or a count of items of `data`.
    `preprocessing` has the keys resize, crop, mean, std, scale.
    """

    source: Path
    data: Path | None = None
    calibration: Path | int | None = None
    search: Path | int | None = None
    gate: Path | int | None = None
    metric: str | None = None
    max_drop: float | str | None = None
    keep: str | None = None
    max_bytes: float | str | None = None
    max_latency: float | str | None = None
    max_bops: float | str | None = None
    average_bits: float | str | None = None
    time_limit: float | str | None = None
    target: str | None = None
    minimize: str | None = None
    schemes: tuple[str, ...] | None = None
    sensitivity: str | None = None
    search_method: str | None = None
    rounding: str | None = None
    equalization: str | None = None
    effort: str | None = None
    preprocessing: Mapping[str, Any] | None = None
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    seed: int | None = None
    split_seed: int | None = None
    confidence: float | None = None
    certificate: int | None = None
    batch_size: int | None = None
    memory_mb: int | None = None
    threads: int | None = None


def load_config(folder: Path) -> Config | None:
    """The configuration of `folder`: its `quantkit.toml`, else `[tool.quantkit]` in its pyproject.toml, else None.

    Raises ConfigError for a file that is not TOML, an unknown key, and a value of the wrong type.
    """
    own = folder / "quantkit.toml"
    if own.is_file():
        return _parsed(_read(own), own)
    project = folder / "pyproject.toml"
    table = _read(project).get("tool", {}).get("quantkit") if project.is_file() else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ConfigError(
            f"{project} has tool.quantkit = {table!r}", "a table [tool.quantkit]", "write its keys below a line [tool.quantkit]"
        )
    return _parsed(table, project)


def _read(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "key = value lines", "correct the line that is named") from error
    return table


def _parsed(table: Mapping[str, Any], path: Path) -> Config:
    values = _checked(table, KEYS, path)
    if "preprocessing" in values:
        values["preprocessing"] = _checked(values["preprocessing"], PREPROCESSING_KEYS, path)
    return Config(source=path, **values)


def _checked(table: Mapping[str, Any], kinds: Mapping[str, _Kind], path: Path) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(*unknown(f"key in {path}:", key, kinds))
        values[key] = kinds[key].read(value)
        if values[key] is None:
            raise ConfigError(f"{path} has {key} = {value!r}", kinds[key].wanted, "correct this key, or leave it out")
        if isinstance(values[key], Path):
            values[key] = (path.parent / values[key]).absolute()
    return values


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a key wants; `read` gives the value as the configuration holds it, or None where it is not such a thing."""

    wanted: str
    read: Callable[[Any], Any]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _path(value: Any) -> Path | None:
    return Path(value) if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numbers(value: Any) -> float | tuple[float | None, ...] | None:
    if not isinstance(value, list):
        return _number(value)
    numbers = tuple(map(_number, value))
    return None if not numbers or None in numbers else numbers


def _texts(value: Any) -> tuple[str, ...] | None:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return tuple(parts) if isinstance(parts, list) and parts and all(map(_text, parts)) else None


def _sides(value: Any) -> tuple[int, ...] | None:
    parts = [int(part) for part in re.findall(r"\d+", value)] if isinstance(value, str) and re.fullmatch(r"\d+(x\d+)*", value) else value
    return tuple(parts) if isinstance(parts, list) and parts and all(map(_count, parts)) else None


TEXT, PATH, COUNT = _Kind("a text", _text), _Kind("a path", _path), _Kind("an integer above 0", _count)
SEED = _Kind("an integer of at least 0", lambda value: 0 if type(value) is int and value == 0 else _count(value))
SPLIT = _Kind("a path, or a count of items above 0", lambda value: _path(value) or _count(value))
SIZE = _Kind("pixels, such as 256 or [224, 224]", lambda value: _count(value) or _sides(value))
NUMBERS = _Kind("a number, or one a channel", _numbers)
AMOUNT = _Kind("a number, or a text such as '2MB' or '0.25x'", lambda value: _text(value) if isinstance(value, str) else _number(value))

PREPROCESSING_KEYS = {"resize": SIZE, "crop": SIZE, "mean": NUMBERS, "std": NUMBERS, "scale": _Kind("a number", _number)}

KEYS = {
    "data": PATH,
    "calibration": SPLIT,
    "search": SPLIT,
    "gate": SPLIT,
    "metric": TEXT,
    "max_drop": _Kind("a number, or a percentage such as '0.5%'", lambda value: _text(value) if isinstance(value, str) else _number(value)),
    "keep": TEXT,
    "max_bytes": AMOUNT,
    "max_latency": AMOUNT,
    "max_bops": AMOUNT,
    "average_bits": AMOUNT,
    "time_limit": AMOUNT,
    "target": TEXT,
    "minimize": TEXT,
    "schemes": _Kind('texts, such as ["w8a8", "fp32"]', _texts),
    "sensitivity": TEXT,
    "search_method": TEXT,
    "rounding": TEXT,
    "equalization": TEXT,
    "effort": TEXT,
    "preprocessing": _Kind("a table [preprocessing]", lambda value: value if isinstance(value, dict) else None),
    "arch": TEXT,
    "input_shape": _Kind('sizes above 0, such as "1x3x224x224"', _sides),
    "seed": SEED,
    "split_seed": SEED,
    "confidence": _Kind("a number", _number),
    "certificate": SEED,
    "batch_size": COUNT,
    "memory_mb": COUNT,
    "threads": COUNT,
}
