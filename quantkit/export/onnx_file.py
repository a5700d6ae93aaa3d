"""ONNX files of ours on the disk: one file, or, beyond what protobuf takes, the graph and beside it `<name>.data` with the weights.

Whatever opens, writes, sizes, copies or removes such a file asks here, so that nothing else knows of the second one.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from quantkit.core.store import synchronise, write_atomically

LIMIT_BYTES = (2 << 30) - (128 << 20)  # of weights in one file: protobuf takes 2 GiB, and the graph needs room
CHUNK_BYTES = 1 << 24


@contextmanager
def opened(path: Path) -> Iterator[ir.Model]:
    """The file's model, whose tensors are let go of at the end.

    A graph refers to itself all over, so without that its weights would stay in memory until Python's collector comes by: after ten files
    that is ten networks.
    """
    model = ir.load(path)
    held = list(model.graph.initializers.values())
    try:
        yield model
    finally:
        for value in (*held, *model.graph.initializers.values()):
            value.const_value = None
        for node in model.graph.all_nodes():
            node.attributes.clear()


def save(model: ir.Model, path: Path) -> None:
    """Write the model to `path`, and its weights beside it where they are too large for one file."""
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in weights) > LIMIT_BYTES:
        ir.save(model, path, external_data=data_of(path).name)
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


@contextmanager
def saved(path: Path) -> Iterator[Path]:
    """As `write_atomically`, of an ONNX file: what the caller writes beside the temporary one comes along, under the name it needs."""
    with write_atomically(path) as temporary:
        data = data_of(temporary)
        try:
            yield temporary
            if data.exists():
                _point(temporary, data_of(path).name)
                synchronise(data)
                data.replace(data_of(path))
            elif has_data(path):
                data_of(path).unlink()
        finally:
            data.unlink(missing_ok=True)


def copy(path: Path, to: Path) -> None:
    """The file and what lies beside it; call it within `saved`, which mends the name by which the one knows the other."""
    shutil.copyfile(path, to)
    if has_data(path):
        shutil.copyfile(data_of(path), data_of(to))


def remove(path: Path) -> None:
    """Both files, as far as they are there."""
    for each in files_of(path):
        each.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """What the file takes on the disk, with what lies beside it."""
    return sum(each.stat().st_size for each in files_of(path))


def content_digest(path: Path) -> str:
    """sha256 of its content, with what lies beside it."""
    found = hashlib.sha256()
    for each in files_of(path):
        with each.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
    return found.hexdigest()


def data_of(path: Path) -> Path:
    """Where the weights lie of a file that is too large for one."""
    return path.with_name(f"{path.name}.data")


def files_of(path: Path) -> tuple[Path, ...]:
    """The file itself, and what lies beside it where something does."""
    return (path, data_of(path)) if has_data(path) else (path,)


def has_data(path: Path) -> bool:
    """Whether the file's weights lie beside it: a file of that name which the graph does not name is somebody else's."""
    data = data_of(path)
    if not (path.exists() and data.exists() and path.stat().st_size):
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(data.name.encode()) >= 0


def _point(path: Path, location: str) -> None:
    """Let the graph in `path` find its weights in the file of that name."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
