"""The run directory: what each stage found, under the fingerprint of all that it depends on.

    RUN/stages/<stage>-<16 of the key>.json     one stage's result, with its whole key inside
    RUN/stages/<stage>-<16 of the key>.npz      its arrays
    RUN/measured.jsonl                          the journal: one measurement a line, safe on the disk before the next begins
    RUN/history.jsonl                           what was asked, and what each request made and found
    RUN/lock                                    held by the process that writes

Everything is written under a temporary name in the same folder and renamed, so that a file is whole or absent.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import ContractError, OutputError

JOURNAL = "measured.jsonl"
_KEY = 16  # of 64 hexadecimal digits: enough for a file's name


def fingerprint(*parts: Any) -> str:
    """64 hexadecimal digits that are equal exactly if the parts are: sha256 of their canonical JSON.

    Takes JSON values, mappings with string keys in any order, sequences, dataclasses, numpy numbers and arrays, bytes. Anything else is a
    ContractError, a path for instance: it would tie a result to a machine. Tuples equal lists; 1, 1.0, True and "1" all differ.
    """
    text = json.dumps(_canonical(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix, for the caller to write; renamed to `path` at the end, removed on any error.

    Raises OutputError where the file cannot be written (folder absent, not permitted, disk full); what else is raised comes through.
    """
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with _in_words("write", path):
            yield temporary
            synchronise(temporary)
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def synchronise(path: Path) -> None:
    """Returns when what was written to `path` is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def stage_name(stage: str, key: str) -> str:
    """What the files of a stage's result are called, without their suffix."""
    return f"{stage}-{key[:_KEY]}"


class Run:
    """A run directory. Reading needs nothing; writing needs `with run:`, which makes the folder and holds its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def __enter__(self) -> Run:
        """Raises OutputError if the folder cannot be made, or another process holds the run."""
        stages = self.folder / "stages"
        with _in_words("write", self.folder):
            stages.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process dies, however it dies
                os.ftruncate(lock, 0)
                os.write(lock, f"{os.getpid()}\n".encode())
                for torn in stages.glob(".*"):  # of a process that was killed while it wrote
                    torn.unlink()
            except BlockingIOError as error:
                got = f"run {self.folder} is in use by process {os.read(lock, 20).decode().strip()}"
                os.close(lock)
                raise OutputError(got, "one process per run", "wait for it, or choose another --run") from error
            except OSError:
                os.close(lock)
                raise
        self._lock = lock
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def get(self, stage: str, key: str) -> Any:
        """What `put` stored for this stage under this key; None if nothing was, or the file is damaged."""
        file = self._file(stage, key, ".json")
        try:
            with _in_words("read", file):
                stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except ValueError:
            return None
        return stored["data"] if isinstance(stored, dict) and stored.get("key") == key else None

    def put(self, stage: str, key: str, data: Any) -> None:
        """Stores JSON data. Raises OutputError where it cannot be written, ContractError where it is not JSON (nan is none)."""
        text = _json(f"the result of stage {stage!r}", {"stage": stage, "key": key, "data": data})
        with write_atomically(self._for_writing(stage, key, ".json")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def forget(self, stage: str, key: str) -> None:
        """Removes what is stored for this stage under this key, if anything is."""
        self._writable()
        for suffix in (".json", ".npz"):
            self._file(stage, key, suffix).unlink(missing_ok=True)

    def get_arrays(self, stage: str, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays that `put_arrays` stored, by name; None if none were, or the file is damaged."""
        file = self._file(stage, key, ".npz")
        if not file.exists():
            return None
        try:
            with _in_words("read", file), file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                label, *arrays = [stored[f"arr_{place}"] for place in range(len(stored.files))]
            head = json.loads(str(label))
        except (ValueError, EOFError, zipfile.BadZipFile):
            return None
        return dict(zip(head["names"], arrays, strict=True)) if head["key"] == key else None

    def put_arrays(self, stage: str, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Stores arrays of numbers or text by name. Raises OutputError where they cannot be written, ContractError for objects."""
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ContractError(f"array {name!r} of stage {stage!r} holds objects", "numbers or text")
        label = json.dumps({"stage": stage, "key": key, "names": list(arrays)})  # names as data: numpy takes some as its own arguments
        with write_atomically(self._for_writing(stage, key, ".npz")) as temporary:
            np.savez(temporary, np.array(label), *arrays.values())

    def append(self, record: Mapping[str, Any], name: str = JOURNAL) -> None:
        """Adds one line to a journal, on the disk when this returns. Raises OutputError, and then the journal is as it was."""
        line = _json("a record of the journal", record).encode() + b"\n"
        journal = self._writable() / name
        with _in_words("write", journal), journal.open("ab+", buffering=0) as file:
            file.seek(0)
            size = len(_whole(file.read()))
            file.truncate(size)  # a kill may have torn the last line
            with ExitStack() as undo:
                undo.callback(file.truncate, size)
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
                undo.pop_all()

    def records(self, name: str = JOURNAL) -> tuple[Any, ...]:
        """A journal's records, oldest first, a torn last line left out. Raises OutputError if another line is not JSON."""
        journal = self.folder / name
        with _in_words("read", journal):
            lines = _whole(journal.read_bytes()).splitlines() if journal.exists() else []
        return tuple(_record(journal, number, line) for number, line in enumerate(lines, 1))

    def _file(self, stage: str, key: str, suffix: str) -> Path:
        return self.folder / "stages" / f"{stage_name(stage, key)}{suffix}"

    def _for_writing(self, stage: str, key: str, suffix: str) -> Path:
        self._writable()
        return self._file(stage, key, suffix)

    def _writable(self) -> Path:
        if self._lock is None:
            raise ContractError(f"run {self.folder} is written to without its lock", "`with run:` around it")
        return self.folder


@contextmanager
def _in_words(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot {verb} {path}: {reason}", "a writable folder with free space", "choose another folder, or free disk space"
        ) from error


def _json(what: str, data: Any) -> str:
    try:
        return json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{what} is not JSON: {error}", "text, finite numbers, lists and mappings") from error


def _record(journal: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise OutputError(f"{journal}: line {number} is not JSON", "one measurement a line", "remove that line, or the file") from error


def _whole(journal: bytes) -> bytes:
    """The journal up to its last line end."""
    return journal[: journal.rfind(b"\n") + 1]


def _canonical(value: Any) -> Any:
    """The value in JSON, with what JSON has no word for under a key that says what it was."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ContractError(f"a fingerprint of a mapping with keys {list(value)[:3]}", "text as keys")
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(entry) for entry in value]
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, np.generic):
        return _canonical(value.item())
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return {"array": [value.dtype.str, list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"dataclass": type(value).__name__, "fields": fields}
    raise ContractError(f"a fingerprint of {type(value).__name__}", "JSON values, dataclasses, numpy arrays or bytes")
