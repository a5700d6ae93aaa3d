"""Networks as they come in: from a file of any kind, a folder of transformers, package.module:function, from memory.

`load_model` detects the kind of a file by its content, not its name, and no file may run code without permission.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from quantkit.core.errors import ModelError
from quantkit.loading import kinds
from quantkit.loading.any_length import ANY_LENGTH, length_variant
from quantkit.loading.archive import input_shapes, read_archive
from quantkit.loading.callables import is_reference, load_callable
from quantkit.loading.folder import (
    continues_text,
    hash_folder,
    image_settings,
    is_folder,
    label_numbers,
    next_tokens,
    read_folder,
    reads_text,
    tokenize,
    tokenize_windows,
)
from quantkit.loading.from_onnx.network import read_onnx
from quantkit.loading.from_onnx.opening import data_files
from quantkit.loading.model import (
    LoadedModel,
    check_finite,
    check_module,
    check_program,
    from_module,
    has_batch_norm,
    parse_input_shape,
)
from quantkit.loading.pickled import read_pickled
from quantkit.loading.state import fill, read_safetensors
from quantkit.loading.torchscript import read_torchscript, to_program

__all__ = [
    "ANY_LENGTH",
    "LoadedModel",
    "check_finite",
    "continues_text",
    "from_module",
    "has_batch_norm",
    "image_settings",
    "input_shapes",
    "is_folder",
    "label_numbers",
    "length_variant",
    "load_model",
    "next_tokens",
    "parse_input_shape",
    "reads_text",
    "to_program",
    "tokenize",
    "tokenize_windows",
]

_Read = Callable[[Path, str | None, bool], nn.Module | torch.export.ExportedProgram]
_READERS: dict[str, _Read] = {
    kinds.ARCHIVE: lambda path, _, trust_pickle: read_archive(path, trust_pickle),
    kinds.TORCHSCRIPT: lambda path, _, trust_pickle: read_torchscript(path, trust_pickle),
    kinds.PICKLED: read_pickled,
    kinds.SAFETENSORS: lambda path, arch, _: fill(read_safetensors(path), arch, path),
}
_WHOLE = (kinds.ARCHIVE, kinds.TORCHSCRIPT, kinds.ONNX)


def load_model(source: str, *, arch: str | None = None, trust_pickle: bool = False) -> LoadedModel:
    """The network in the file `source`, in a folder that `transformers` saved, or the one that `package.module:function` returns.

    `arch` is the package.module:function that builds the network for a file that holds only weights. `trust_pickle` lets
    a file run any code, and a folder's own. ModelError for what cannot be read or needs one of the two.
    """
    path = Path(source).expanduser()
    if not path.exists() and is_reference(source):
        if arch is not None:
            raise _needless(source, arch)
        return load_callable(source)
    if is_folder(path):
        if arch is not None:
            raise _needless(path.name, arch)
        module, example, variants = read_folder(path, trust_pickle)
        check_module(module)
        return LoadedModel(path.resolve().name, source, hash_folder(path), module, None, example, variants)
    kind = kinds.recognise(path)
    if arch is not None and kind in _WHOLE:
        raise _needless(path.name, arch)
    digest = kinds.hash_file(path)
    if kind == kinds.ONNX:
        found = read_onnx(path)
        check_module(found.module)
        digest = kinds.hash_text(digest, *map(kinds.hash_file, data_files(path)))
        if found.program is not None:  # of the file's own batch alone
            return LoadedModel(path.stem, source, digest, None, found.program, outputs=found.outputs, file=found.file)
        return LoadedModel(path.stem, source, digest, found.module, None, found.example, outputs=found.outputs, file=found.file)
    network = _READERS[kind](path, arch, trust_pickle)
    if isinstance(network, torch.export.ExportedProgram):
        check_program(network)
        return LoadedModel(path.stem, source, digest, None, network)
    check_module(network)
    return LoadedModel(path.stem, source, kinds.hash_text(digest, arch) if arch else digest, network.eval(), None)


def _needless(source: str, arch: str) -> ModelError:
    return ModelError(f"{source} is a whole network and --arch {arch} was given", "--arch only beside a state dict", "drop --arch")
