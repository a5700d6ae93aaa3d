"""TOML, read under every Python that is served."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from quantkit.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The table in the file. Raises ConfigError for a file that cannot be read or is not TOML."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "a TOML file", "check the path and its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "key = value lines", "correct the line that is named") from error
    return table
