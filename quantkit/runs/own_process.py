"""A process of this machine in which nothing is done but timing (`Device`).

In a process that has calibrated, rounded and scored, int8 files were seen to take far longer than anywhere else, beside float files that
hardly did (ResNet44 and SqueezeNet without VNNI); the reason is not known.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from quantkit.core.environment import describe
from quantkit.core.errors import ClusterError, QuantkitError
from quantkit.core.workers import Task
from quantkit.runs.cluster import AGAIN

# With the modules of who asks: by itself, Python would look into the working directory first.
SERVE = f"import sys; sys.path[:] = {{path!r}}; from {__name__} import serve; serve()"


class OwnProcess:
    """As `Device`; the process begins with the first task. `folder` is where temporary files go."""

    is_here = True

    def __init__(self, folder: Path) -> None:
        self.host: Mapping[str, Any] = describe()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, task: Task, files: Sequence[Path], job: Any) -> Any:
        """As `Device.run`; the files stay where they are. Raises what the task raises, and ClusterError where the process is lost."""
        if self._process is None:
            command = [sys.executable, "-c", SERVE.format(path=sys.path)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            _Pickler(process.stdin).dump((task, [path.absolute() for path in files], self._folder, job))
            process.stdin.flush()
            is_good, found = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            self._process, code = None, process.wait()
            raise ClusterError(f"the process that times files ended with {code}", "one that stays", AGAIN) from error
        if not is_good:
            raise found
        return found

    def end(self) -> None:
        """Whatever the process does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def own_process(folder: Path) -> Iterator[OwnProcess]:
    """The process while it is needed."""
    device = OwnProcess(folder)
    try:
        yield device
    finally:
        device.end()


def serve() -> None:
    """In that process: answers one task after the other, until there is nobody who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted too, and ends this one
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
        while (asked := _next(sys.stdin.buffer)) is not None:
            task, files, parent, job = asked
            try:
                with tempfile.TemporaryDirectory(prefix="quantkit-", dir=parent) as folder:
                    found = True, task(files, Path(folder), job)
            except (QuantkitError, OSError) as error:  # raised again where the task came from
                found = False, error
            _Pickler(answers).dump(found)
            answers.flush()


def _next(source: IO[bytes]) -> Any:
    try:
        return pickle.load(source)
    except EOFError:
        return None


class _Pickler(pickle.Pickler):
    """A runtime is a module, which goes by its name."""

    def reducer_override(self, value: Any) -> Any:
        return (importlib.import_module, (value.__name__,)) if isinstance(value, ModuleType) else NotImplemented
