"""TorchScript files. Their code runs in torch's own interpreter, which can reach no Python but can read and write files.

torch.export refuses TorchScript; its private converter takes many such models, given example inputs, so what is loaded
is the ScriptModule and `to_program` converts it once there is an example.
"""

from __future__ import annotations

import importlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import Dim, export

from quantkit.core.errors import ModelError
from quantkit.loading.archive import refuse_training
from quantkit.loading.boundary import foreign
from quantkit.loading.model import LoadedModel

_SAVE_AGAIN = "re-save it from the Python model: torch.export.save(torch.export.export(model.eval(), inputs), 'model.pt2')"
_TOUCHES_FILES = re.compile(rb"\b(save|from_file)\s*\(")


def read_torchscript(path: Path, trust_pickle: bool) -> torch.jit.ScriptModule:
    """The ScriptModule in the file. ModelError if its code reads or writes files, unless trusted, or if torch cannot read it."""
    with foreign(f"{path.name} cannot be read as TorchScript", "a complete TorchScript file", _SAVE_AGAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates the format; we say so only where it matters
        if not trust_pickle:
            _refuse_files(path)
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return module


def to_program(loaded: LoadedModel, example: Mapping[str, torch.Tensor]) -> LoadedModel:
    """`loaded` as it is; or, if it holds TorchScript, with `program` in place of `module`.

    `example` holds at least two items, matched by the names that `forward` has for its inputs, else by order. ModelError
    if torch cannot convert it.
    """
    module = loaded.module
    if not isinstance(module, torch.jit.ScriptModule):
        return loaded
    got = f"the TorchScript in {loaded.source} does not convert to torch.export"
    with foreign(got, "a model that torch.export can hold", _SAVE_AGAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [argument.name for argument in module.forward.schema.arguments[1:]]  # type: ignore[attr-defined]
        inputs = tuple(example[name] for name in names) if set(names) == set(example) else tuple(example.values())
        # Imported here by name, since it is private to torch and may go; all else must work without it.
        converter = importlib.import_module("torch._export.converter").TS2EPConverter
        loose: torch.export.ExportedProgram = converter(module, inputs).convert()
        # It leaves every side open; sizes other than the batch's are what layers cost, and are fixed by the example.
        sides = [{0: Dim.AUTO} if _open(loose, place) else None for place in range(len(inputs))]
        program = export(loose.module(check_guards=False), inputs, dynamic_shapes=tuple(sides), strict=False)
    refuse_training(program)
    return replace(loaded, module=None, program=program)


def _open(program: torch.export.ExportedProgram, place: int) -> bool:
    """Whether the batch of that input may be of any size."""
    name = program.graph_signature.user_inputs[place]
    (node,) = [node for node in program.graph.nodes if node.name == name]
    return isinstance(node.meta["val"].shape[0], torch.SymInt)


def _refuse_files(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and (found := _TOUCHES_FILES.search(archive.read(name))):
                raise ModelError(
                    f"the TorchScript in {path.name} calls {found[1].decode()}() ({name}), which touches files",
                    "a network that only computes",
                    "pass --trust-pickle if you trust its author",
                )
