"""`session.json` beside a file: the options with which its runtime must open it, and the runtime's least version.

A target that needs none writes none; whoever opens the file (`quantkit verify` does) reads what there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from quantkit.core.errors import ConfigError
from quantkit.core.store import write_atomically
from quantkit.targets import TARGETS

SESSION_FILE = "session.json"


def write_session(target: ModuleType, folder: Path) -> Path | None:
    """Write what files for `target` need into `folder`; None, and no file, where they need nothing."""
    if not target.SESSION_OPTIONS:
        return None
    told = {"session_options": dict(target.SESSION_OPTIONS), target.PACKAGE: f">={target.MINIMUM_RUNTIME}"}
    with write_atomically(folder / SESSION_FILE) as temporary:
        temporary.write_text(json.dumps(told))
    return folder / SESSION_FILE


def read_session(folder: Path, target: ModuleType) -> dict[str, str]:
    """The options in the `session.json` of `folder`; those of `target` where there is none, or one for another runtime.

    Raises ConfigError for what is not such a file, names other files to the runtime, or asks for a newer runtime than this.
    """
    path, own = folder / SESSION_FILE, {str(name): str(value) for name, value in target.SESSION_OPTIONS.items()}
    if not path.exists():
        return own
    try:
        told: Mapping[str, Any] = json.loads(path.read_text())
        options, least = dict(told["session_options"]), str(told.get(target.PACKAGE, ""))
        wanted = tuple(int(part) for part in least.removeprefix(">=").split(".") if part)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "session options as `quantkit allocate` writes them", "remove it") from error
    if not least and any(other.PACKAGE in told for other in TARGETS.values()):
        return own
    for name, value in options.items():
        if not isinstance(value, str) or any(word in name.lower() for word in ("file", "path", "folder", "dir")):
            raise ConfigError(f"{path}: session option {name!r} is {value!r}", "text, and no option that names files", "remove it")
    have = _version(target.PACKAGE)
    if wanted > tuple(int(part) for part in have.split(".")[: len(wanted)]):
        raise ConfigError(f"{path} wants {target.PACKAGE} {least}", f"at most {have}, which is installed", "install a newer one")
    return options


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"
