"""What torch.save wrote: a pickle, which can run any code while it is read.

torch's weights-only reader builds only classes on an allow-list. It gets the classes that the file names and that are
`nn.Module` subclasses of packages we know; never a function, and nothing is imported from elsewhere, since importing
runs code as well. A hand-made pickle can still call their constructors, which build layers; `fx.GraphModule` and
TorchScript classes, which make functions of source text, are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from quantkit.core.errors import ModelError
from quantkit.loading.boundary import foreign, refused_global
from quantkit.loading.callables import importable_from_here
from quantkit.loading.state import few, fill, find_state

_PACKAGES = ("torch.nn", "torchvision", "transformers")
_NAMED = 6
_FILE = "a complete file that torch.save wrote"
_WITHOUT_PICKLE = "pass --trust-pickle if you trust its author, or save model.state_dict() and pass --arch package.module:function"
_SAVE_AGAIN = "save it again: torch.save(model, 'model.pt') or torch.export.save(…)"


def read_pickled(path: Path, arch: str | None, trust_pickle: bool) -> nn.Module:
    """The module in the file, or the one that `arch` builds with the state dict in the file.

    ModelError that names the classes and functions that the allow-list refuses, unless the user trusts the file.
    """
    content = _unpickle(path, trust_pickle)
    state = find_state(content)
    if state is not None:
        return fill(state, arch, path)
    nested = content.get("model") if isinstance(content, dict) else None  # some trainers save {"model": module, "epoch": …}
    module = nested if isinstance(nested, nn.Module) else content
    if not isinstance(module, nn.Module):
        raise ModelError(f"{path.name} holds a {type(content).__name__}", "a torch.nn.Module or a state dict", _SAVE_AGAIN)
    if arch is not None:
        raise ModelError(f"{path.name} holds a whole network and --arch {arch} was given", "--arch only beside a state dict", "drop --arch")
    return module


def admitted(name: str) -> type[nn.Module] | None:
    """The class of that dotted name if the allow-list admits it: an nn.Module subclass of one of the known packages."""
    module_name, _, class_name = name.rpartition(".")
    if not _is_known(module_name):
        return None
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except (ImportError, RuntimeError):  # not installed here, or a part of it is not
        return None
    if not isinstance(found, type) or not issubclass(found, nn.Module) or issubclass(found, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return None
    return found if _is_known(found.__module__) else None


def _is_known(module_name: str) -> bool:
    return any(f"{module_name}.".startswith(f"{package}.") for package in _PACKAGES)


class _RefusedError(pickle.UnpicklingError):
    """Carries the names."""


def _unpickle(path: Path, trust_pickle: bool) -> object:
    with foreign(f"torch.load cannot read {path.name}", _FILE, _SAVE_AGAIN):
        try:
            return _load_checked(path)
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise ModelError(
                    f"{path.name} is a pickle that could run code: it asks for {few(_names(error, path), _NAMED)}",
                    f"tensors, and nn.Module classes of {', '.join(_PACKAGES)}",
                    _WITHOUT_PICKLE,
                ) from error
        with importable_from_here():
            return torch.load(path, map_location="cpu", weights_only=False)


def _load_checked(path: Path) -> object:
    classes = {name: admitted(name) for name in get_unsafe_globals_in_checkpoint(str(path))} if zipfile.is_zipfile(path) else {}
    refused = sorted(name for name, found in classes.items() if found is None)
    if refused:
        raise _RefusedError(*refused)
    with warnings.catch_warnings(), safe_globals([(found, name) for name, found in classes.items() if found is not None]):
        warnings.simplefilter("ignore", UserWarning)  # about opcodes: what it cannot read, it refuses anyway
        return torch.load(path, map_location="cpu", weights_only=True)


def _names(error: pickle.UnpicklingError, path: Path) -> list[str]:
    """What was refused, for the message only: torch names it, or else (an opcode that it does not know) the pickle is listed."""
    if isinstance(error, _RefusedError):
        return list(error.args)
    if named := refused_global(error):
        return [named]
    return _listed(path) or ["opcodes that cannot be checked"]


def _listed(path: Path) -> list[str]:
    content = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    names: set[str] = set()
    strings: list[str] = []
    with contextlib.suppress(ValueError):  # damaged
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return sorted(names)
