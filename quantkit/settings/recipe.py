"""A recipe: a Python file whose function `recipe()` says which network, which data and which promise."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import ConfigError, QuantkitError, unknown
from quantkit.settings.arguments import FILE_KEYS, Arguments, Shared, from_file, given, rows
from quantkit.settings.kinds import COUNT, TEXT

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from quantkit.loading.model import Variant

TAKEN = ("alternative", "float", "model", "picked")  # names of other files
OWN = ("model", "name", "variants")
FREE = tuple(name for name, row in rows(Shared).items() if row.free)  # objects are not checked here


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Recipe:
    """What `allocate` needs to know of one network; the command line overrides it, and what is left out, or None, the defaults decide.

    `model`: a module, or anything that the command line takes as MODEL; `name` is for the report. The options are those of
    `quantkit.toml`, by the same names, but for `search_method`, which is `--search` on the command line, and `calibration`, `search` and
    `gate`, which count items. `data` is a dataset; datasets by name, `calibration` with `search` and `gate`, or with `data`, which is
    halved; three splits; a path; or what yields batches; left out, items are distilled from the network. `metric`: top1 unless said
    otherwise, and agreement without data. `variants`: other forms of the network, to be exported with its plan, by the name of the file.
    Raises ConfigError for an option that there is not, and for values of another kind.
    """

    model: Any
    name: str
    variants: Mapping[str, Variant]
    said: Mapping[str, Any]

    def __init__(
        self,
        *,
        model: Any,
        name: str = "",
        variants: Mapping[str, Variant] | None = None,
        calibration: int | None = None,
        search: int | None = None,
        gate: int | None = None,
        search_method: str | None = None,
        **options: Unpack[Shared],
    ) -> None:
        for key in options:
            if key not in FILE_KEYS:
                raise ConfigError(*unknown("key of a recipe:", key, [*OWN, *FILE_KEYS]))
        kinds = {**FILE_KEYS, **dict.fromkeys(("calibration", "search", "gate"), COUNT)}
        splits = {"calibration": calibration, "search": search, "gate": gate}
        said = given({**options, "search_method": search_method, **splits})
        for key, value in said.items():
            if key not in FREE and kinds[key].read(value) is None:
                raise ConfigError(f"recipe has {key} = {value!r}", kinds[key].wanted, "correct it, or leave it out")
        if TEXT.read(name or "recipe") is None:
            raise ConfigError(f"recipe has name = {name!r}", TEXT.wanted, "put it in quotes, or leave it out")
        for variant in variants or {}:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", variant) or variant in TAKEN:
                wanted = f"small letters, digits and _, and none of {', '.join(TAKEN)}"
                raise ConfigError(f"recipe has a variant {variant!r}", wanted, "choose another name: it becomes a file's")
        for field, value in {"model": model, "name": name, "variants": dict(variants or {}), "said": said}.items():
            object.__setattr__(self, field, value)

    def changed(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe with these options, or another `model`, `name` or `variants`, in the place of its own."""
        return Recipe(**{"model": self.model, "name": self.name, "variants": self.variants, **self.said, **options})

    @property
    def data(self) -> Any:
        """The items, as they are given; None where they are distilled."""
        return self.said.get("data")

    @property
    def arguments(self) -> Arguments:
        """What is said, under the names of the command line."""
        return from_file(self.said)


def load_recipe(path: Path) -> Recipe:
    """What the function `recipe()` of the file at `path` gives.

    Raises ConfigError where the file is missing or has no such function, where that gives no Recipe or an unknown key, and where
    either raises anything but our errors, which keep their kind.
    """
    if not path.is_file():
        raise ConfigError(f"no recipe file {path}", "a Python file with a function recipe()", "check the path")
    # A name of its own for each file, and a place in sys.modules: dataclasses and pickles look their module up there.
    name = f"quantkit_recipe_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", "a file ending in .py with a function recipe()", "name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _guarded(partial(spec.loader.exec_module, module), path)
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise ConfigError(f"{path} has no function recipe()", "def recipe() -> quantkit.Recipe", "add one that returns quantkit.Recipe(…)")
    made = _guarded(function, path)
    if not isinstance(made, Recipe):
        raise ConfigError(f"recipe() of {path} gave {type(made).__name__}", "a quantkit.Recipe", "end it with return quantkit.Recipe(…)")
    return made


def _guarded(function: Callable[[], Any], path: Path) -> Any:
    """What `function`, which is the user's, gives; whatever else it raises becomes a ConfigError."""
    try:
        return function()
    except QuantkitError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{path} raised {type(error).__name__}: {error}", "a recipe that runs", "run it with python to see where"
        ) from error
