"""Defaults of a project: `quantkit.toml`, or the table `[tool.quantkit]` of pyproject.toml, so that commands can be short."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.core.errors import ConfigError, unknown
from quantkit.core.toml_file import read_toml
from quantkit.settings.arguments import FILE_KEYS, Arguments, Pixels, from_file, kinds
from quantkit.settings.kinds import Kind

PREPROCESSING_KEYS = kinds(Pixels)
PREPROCESSING = Kind("a table [preprocessing]", lambda value: value if isinstance(value, dict) else None)
KEYS = {name: kind for name, kind in FILE_KEYS.items() if name not in PREPROCESSING_KEYS} | {"preprocessing": PREPROCESSING}


def load_config(folder: Path) -> Arguments:
    """What the configuration of `folder` says: its `quantkit.toml`, else `[tool.quantkit]` in its pyproject.toml, else nothing.

    Paths are absolute, seen from the file's folder. Raises ConfigError for a file that is not TOML, an unknown key, and a value of the
    wrong type.
    """
    own = folder / "quantkit.toml"
    if own.is_file():
        return _parsed(read_toml(own), own)
    project = folder / "pyproject.toml"
    table = read_toml(project).get("tool", {}).get("quantkit") if project.is_file() else None
    if table is None:
        return Arguments()
    if not isinstance(table, dict):
        raise ConfigError(
            f"{project} has tool.quantkit = {table!r}", "a table [tool.quantkit]", "write its keys below a line [tool.quantkit]"
        )
    return _parsed(table, project)


def _parsed(table: Mapping[str, Any], path: Path) -> Arguments:
    values = _checked(table, KEYS, path)
    pixels = _checked(values.pop("preprocessing", {}), PREPROCESSING_KEYS, path)
    return from_file({**values, **pixels})


def _checked(table: Mapping[str, Any], kinds: Mapping[str, Kind], path: Path) -> dict[str, Any]:
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
