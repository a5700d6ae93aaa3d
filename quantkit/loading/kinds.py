"""What a file is, by its content; the extension decides only where the content cannot."""

from __future__ import annotations

import hashlib
import zipfile
from difflib import get_close_matches
from pathlib import Path

from quantkit.core.errors import ModelError

ARCHIVE, TORCHSCRIPT, PICKLED, SAFETENSORS, ONNX = "torch.export archive", "TorchScript", "pickled", "safetensors", "ONNX"

_MODEL_FILES = (
    "a .pt2 archive, a pickled module or state dict (.pt, .pth), .safetensors, TorchScript, .onnx, a transformers folder (config.json), "
    "or package.module:function"
)
# What people pass that is not a torch model → what was wanted, what to do.
_REFUSED = {
    "a NumPy .npz file": ("a model", "pass it as --data"),
    "a Python file": (
        "a model file here",
        "a file with a function recipe() is a recipe; for another function write package.module:function",
    ),
    "a directory": (_MODEL_FILES, "name the file inside it"),
}


def recognise(path: Path) -> str:
    """One of the constants above. ModelError for everything else, a missing, empty or truncated file among it."""
    try:
        if not path.exists():
            raise ModelError(f"no file {str(path)!r}", _MODEL_FILES, _nearest(path))
        if path.is_dir():
            _refuse(path, "a directory")
        if not path.is_file():
            raise ModelError(f"{str(path)!r} is not a regular file", _MODEL_FILES, "name a file")
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise unreadable(path, error) from error
    return _of_content(path, head)


def hash_file(path: Path) -> str:
    """The sha256 of the file's bytes, in hex."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def hash_text(*parts: str) -> str:
    """The sha256 of the parts, in hex."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def unreadable(path: Path, error: OSError) -> ModelError:
    """The error for a file that the system does not let us read."""
    return ModelError(f"{str(path)!r} cannot be read: {error.strerror or error}", "a file that you may read", "check its permissions")


def _of_content(path: Path, head: bytes) -> str:
    if not head:
        raise ModelError(f"{str(path)!r} is empty", _MODEL_FILES, "save or download it again")
    if path.suffix == ".py":
        _refuse(path, "a Python file")
    if head[:2] == b"PK":
        return _of_zip(path)
    if head[:1] == b"\x80":
        return PICKLED
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return SAFETENSORS
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42")):
        return ONNX
    raise ModelError(
        f"{str(path)!r} is not a model file (it starts with {head[:8]!r})",
        _MODEL_FILES,
        "save the network again: torch.export.save(program, 'model.pt2')",
    )


def _of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            start = min((member.header_offset for member in archive.infolist()), default=0)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{str(path)!r} is truncated: {error}", "a complete file", "save or download it again") from error
    if start:  # a .pt2 holds small archives; cut short, the end of one of those looks like its own
        raise ModelError(f"{str(path)!r} is truncated: its end belongs to an inner archive", "a complete file", "save or download it again")
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return ARCHIVE
    if "constants.pkl" in inner:
        return TORCHSCRIPT
    if "data.pkl" in inner:
        return PICKLED
    if names and all(name.endswith(".npy") for name in names):
        _refuse(path, "a NumPy .npz file")
    raise ModelError(
        f"{str(path)!r} is a zip archive that holds no model",
        _MODEL_FILES,
        "save the network again: torch.export.save(program, 'model.pt2')",
    )


def _refuse(path: Path, kind: str) -> None:
    wanted, next_step = _REFUSED[kind]
    raise ModelError(f"{str(path)!r} is {kind}", wanted, next_step)


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r} either"
    near = get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f"did you mean {str(folder / near[0])!r}?" if near else "check the path"
