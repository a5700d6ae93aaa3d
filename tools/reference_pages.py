"""Write docs/reference/command-line.md and docs/reference/configuration.md from what the command line and the reader of quantkit.toml know.

python tools/reference_pages.py            # write them
python tools/reference_pages.py --check    # exit 1 if they are not what would be written
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo

from quantkit.cli.app import app
from quantkit.settings.config import KEYS, PREPROCESSING_KEYS

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
WRITTEN = "Written by `python tools/reference_pages.py`"

TAKES: dict[str, tuple[Any, ...]] = {
    "": (bool,),
    "an integer": (int, int | None),
    "a number": (float, float | None),
    "a path": (Path, Path | None),
    "text, again and again": (list[str] | None,),
}

COMPLETION = """## Completion

`quantkit --install-completion` teaches your shell the commands and options (bash, zsh, fish, PowerShell), from the next shell on.
`quantkit --show-completion` prints the lines instead, to be put where you keep such things.
"""

CONFIGURATION = f"""# quantkit.toml

{WRITTEN} from the table that reads the file (`quantkit/settings/arguments.py`).

A file `quantkit.toml` in the folder where a command runs, or the table `[tool.quantkit]` of a `pyproject.toml` there, holds defaults of a
project. Options on the command line or in a call override it. It counts for networks that come from a file; a
recipe says everything itself. Paths are seen from the file's own folder. An unknown key or a value of another type is an error.

```toml
data = "images/"
metric = "top1"
max_drop = 0.5
minimize = "bytes"

[preprocessing]
resize = 256
crop = 224
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
```

`calibration`, `search` and `gate` are each a path of their own, or how many items of `data` the split gets. `search_method` is what
`--search` is on the command line, since `search` names the split. The other keys are explained by
the options of the same name: [quantkit allocate](command-line.md#quantkit-allocate).
"""


def command_line() -> str:
    """Every command with its arguments and options, from the signatures that typer reads."""
    parts = [
        f"# The command line\n\n{WRITTEN} from what `--help` says. Every command has `--help`. What a command exits with: "
        "[exit codes](exit-codes.md). Options that are left out come from the recipe or from [quantkit.toml](configuration.md), else from "
        f"the defaults that are named here.\n\n{COMPLETION}"
    ]
    return "\n".join([*parts, *(section(command.name, command.callback) for command in app.registered_commands if command.callback)])


def section(name: str | None, command: Callable[..., Any]) -> str:
    """One command: what it does, an example, and a row for each argument and option."""
    told, *examples = [" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n")]
    lines = [f"## quantkit {name or command.__name__}\n", f"{told}\n"]
    for example in examples:
        lines += [f"```\n{example}\n```\n" if example.startswith("quantkit ") else f"{example}\n"]
    rows = [row(parameter) for parameter in inspect.signature(command, eval_str=True).parameters.values()]
    return "\n".join([*lines, "| | takes | |", "|---|---|---|", *rows]) + "\n"


def row(parameter: inspect.Parameter) -> str:
    """An argument in capitals, or an option as it is typed."""
    kind, told = get_args(parameter.annotation)[:2]
    said = [told.default] if isinstance(told.default, str) else []  # inside Annotated, typer takes the first name of an option for this
    names = [*said, *(told.param_decls or [])] or [f"--{parameter.name.replace('_', '-')}"]
    name = parameter.name.upper() if isinstance(told, ArgumentInfo) else " ".join(names)
    takes = next((word for word, types in TAKES.items() if kind in types), "text")
    default = parameter.default
    text = told.help or ""
    if default not in (parameter.empty, None, False) and "default" not in text:
        text = f"{text.removesuffix('.')} (default: {default})."
    return f"| `{name}` | {takes} | {cell(text)} |"


def configuration() -> str:
    """Every key with what it takes, from the reader's own tables."""
    parts = [CONFIGURATION]
    for title, keys in (("Keys", KEYS), ("Keys of [preprocessing]", PREPROCESSING_KEYS)):
        parts.append(f"## {title}\n\n| key | takes |\n|---|---|")
        parts += [f"| `{key}` | {cell(kind.wanted)} |" for key, kind in keys.items()]
        parts.append("")
    return "\n".join(parts)


def cell(text: str) -> str:
    """Text that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"command-line.md": command_line, "configuration.md": configuration}


def main() -> int:
    """Write or check the pages."""
    stale = [name for name, page in PAGES.items() if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != page()]
    if "--check" in sys.argv[1:]:
        return int(bool(stale))
    for name in stale:
        (REFERENCE / name).write_text(PAGES[name]())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
