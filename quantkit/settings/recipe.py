"""A recipe: a Python file whose function `recipe()` says which network, which data and which promise."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import ConfigError, QuantkitError, unknown

if TYPE_CHECKING:
    from quantkit.loading.model import Variant

COUNTS = ("calibration", "search", "gate", "batch_size", "threads")
TAKEN = ("alternative", "float", "model", "picked")  # names of other files
TEXTS = ("name", "keep", "target", "minimize", "sensitivity", "search_method", "observer", "rounding", "equalization", "effort")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What `allocate` needs to know of one network; the command line overrides it, and None leaves a choice to the defaults.

    `model`: a module, or anything that the command line takes as MODEL. `data`: a dataset; datasets by name, `calibration` with
    `search` and `gate`, or with `data`, which is halved; three splits; a path; or what yields batches; None distills items
    from the network. `metric`: top1 unless said otherwise, and agreement without data. `calibration`, `search` and
    `gate` count items. `fix` pins groups to schemes, `exclude` keeps groups that match a pattern in float. Raises ConfigError for
    values of another type. `variants`: other forms of the network, to be exported with its plan, by the name of the file.
    """

    model: Any
    data: Any = None
    metric: Any = None
    max_drop: float | str | None = None
    keep: str | None = None
    max_bytes: float | str | None = None
    max_latency: float | str | None = None
    max_bops: float | str | None = None
    average_bits: float | str | None = None
    time_limit: float | str | None = None
    name: str = ""
    target: str | None = None
    minimize: str = "latency"
    schemes: tuple[str, ...] | None = None
    sensitivity: str | None = None
    search_method: str | None = None
    observer: str | None = None
    rounding: str | None = None
    equalization: str | None = None
    effort: str | None = None
    fix: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    calibration: int | None = None
    search: int | None = None
    gate: int | None = None
    seed: int | None = None
    split_seed: int | None = None
    confidence: float | None = None
    certificate: int | None = None
    batch_size: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in COUNTS:
            value = getattr(self, key)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"recipe has {key} = {value!r}", "an integer above 0", "give an integer, or leave it out")
        for key in TEXTS:
            if not isinstance(getattr(self, key), str | None):
                raise ConfigError(f"recipe has {key} = {getattr(self, key)!r}", "a text", "put it in quotes, or leave it out")
        for name in self.variants:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in TAKEN:
                wanted = f"small letters, digits and _, and none of {', '.join(TAKEN)}"
                raise ConfigError(f"recipe has a variant {name!r}", wanted, "choose another name: it becomes a file's")
        for key in ("schemes", "exclude"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, (tuple, list)) or not all(isinstance(part, str) for part in value)):
                raise ConfigError(
                    f"recipe has {key} = {value!r}",
                    'a tuple of texts, such as ("w8a8", "fp32")',
                    "write it so, with a comma where there is one text only",
                )


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
        stray = re.search(r"Recipe\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if stray:
            raise ConfigError(*unknown(f"key in {path}:", stray[1], [known.name for known in fields(Recipe)])) from error
        raise ConfigError(
            f"{path} raised {type(error).__name__}: {error}", "a recipe that runs", "run it with python to see where"
        ) from error
