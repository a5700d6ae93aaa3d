"""`torch.export` archives (.pt2), which are not safe by themselves.

`torch.export.load` unpickles in full, in torch 2.14: pickled weights and tensor constants (`use_pickle`), opaque
constants (`opaque_obj_N`), and, as the second try after weights-only fails, sample inputs and the whole-file weights and
constants of older writers (`data/weights/<model>.pt`, `serialized_*.pt`). It loads compiled libraries too. So first each
member that no configuration declares raw bytes must load weights-only, and the program's text must be text.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from quantkit.core.errors import ModelError
from quantkit.loading.boundary import foreign, refused_global
from quantkit.loading.program_text import check_program_text

_EXPORT_AGAIN = "export it again: torch.export.save(torch.export.export(model.eval(), inputs), 'model.pt2')"
_TRUST = "export it again without it, or pass --trust-pickle if you trust its author"
_INERT = ("archive_format", "archive_version", "byteorder", "version", ".data/", "extra/", "extra_files/")


def read_archive(path: Path, trust_pickle: bool) -> torch.export.ExportedProgram:
    """The program in a .pt2, whose batch may be symbolic or fixed.

    ModelError if a member could run code, unless the user trusts it; if this torch cannot read it; if it was exported
    in training mode.
    """
    with foreign(f"{path.name} cannot be read as a torch.export archive", "a complete .pt2 that this torch can read", _EXPORT_AGAIN):
        if not trust_pickle:
            refuse_code(path)
        with _swallowed("torch.export") as causes:
            try:
                program = torch.export.load(path)
            except RuntimeError as error:
                raise error from (causes[0] if causes else None)
    refuse_training(program)
    return program


def refuse_code(path: Path) -> None:
    """ModelError that names the first member that torch would run or unpickle in full."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "serialized_exported_program.json" in names:
            return _check_members(names, archive.read)
    reader = PT2ArchiveReader(str(path))
    members = reader.get_file_names()
    # torch finds members in another way than zipfile does, whatever their case, and may fall back to zipfile: no room for two readings.
    if sorted(name.partition("/")[2] for name in names) != sorted(members) or len({name.casefold() for name in members}) != len(members):
        raise ModelError(f"{path.name} has an ambiguous table of contents", "each member once, in one folder", _EXPORT_AGAIN)
    return _check_members(members, reader.read_bytes)


def refuse_training(program: torch.export.ExportedProgram) -> None:
    """ModelError that names the first operation exported in training mode (batch norm with batch statistics, dropout)."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.OpOverload) and _is_training(node, node.target):
                raise ModelError(
                    f"the model was exported in training mode: {node.name} ({node.target}) has training=True",
                    "a model exported in eval mode",
                    _EXPORT_AGAIN,
                )


def _is_training(node: torch.fx.Node, operation: torch._ops.OpOverload) -> bool:
    for position, argument in enumerate(operation._schema.arguments):
        if argument.name in ("training", "train"):
            return (node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)) is True
    return False


def _check_members(names: list[str], read: Callable[[str], bytes]) -> None:
    raw = _raw_members({name: read(name) for name in names if name.endswith("_config.json")})
    for name in names:
        leaf = name.rpartition("/")[2]
        if name in raw or name.startswith(_INERT) or name.endswith("_config.json"):
            continue
        if name.startswith("models/") or name == "serialized_exported_program.json":
            check_program_text(read(name), name)
        elif name.startswith("data/aotinductor/"):
            raise ModelError(f"the archive carries compiled code ({name})", "a program saved by torch.export.save", _EXPORT_AGAIN)
        elif leaf.startswith(("custom_obj_", "opaque_obj_")):
            raise ModelError(f"the archive carries a pickled object that is not a tensor ({name})", "tensors only", _TRUST)
        else:
            _check_pickle(name, read(name))


def _raw_members(configs: Mapping[str, bytes]) -> set[str]:
    """Members that torch reads as plain numbers: declared so, and nowhere declared a pickle."""
    raw: set[str] = set()
    pickled: set[str] = set()
    for name, text in configs.items():
        folder = name.rpartition("/")[0]
        for meta in json.loads(text)["config"].values():
            (pickled if meta["use_pickle"] else raw).add(f"{folder}/{meta['path_name']}")
    return raw - pickled


def _check_pickle(name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = refused_global(error) or "opcodes that cannot be checked"
        raise ModelError(f"{name} in the archive is a pickle that could run code: it asks for {asked}", "tensors only", _TRUST) from error


@contextmanager
def _swallowed(name: str) -> Iterator[list[BaseException]]:
    """The exceptions that torch logs instead of raising, kept from the log since we report them in one line."""
    causes: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            causes.append(record.exc_info[1])
        return False

    logger = logging.getLogger(name)
    logger.addFilter(keep)
    try:
        yield causes
    finally:
        logger.removeFilter(keep)


def input_shapes(program: torch.export.ExportedProgram) -> dict[str, tuple[int, ...]]:
    """The shape of one item of each input, by name; none unless all take real numbers and only the batch is a symbol."""
    names = set(program.graph_signature.user_inputs)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names}
    fits = (
        value.is_floating_point() and not isinstance(value.shape[0], int) and all(isinstance(side, int) for side in value.shape[1:])
        for value in values.values()
    )  # fmt: skip
    return {name: tuple(value.shape[1:]) for name, value in values.items()} if all(fits) else {}
