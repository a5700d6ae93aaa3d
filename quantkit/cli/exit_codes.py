"""Any error → one line on stderr and an exit code. Holds the only broad except of the command line.

0 kept · 1 not kept · 2 wrong request · 3 internal error, with a short report file · 130 interrupted · 141 broken pipe
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from quantkit.core.environment import describe
from quantkit.core.errors import ContractError, OutputError, QuantkitError

KEPT, NOT_KEPT, WRONG_REQUEST, OUR_FAULT, INTERRUPTED = 0, 1, 2, 3, 130
BROKEN_PIPE = 141  # as of a program that SIGPIPE ends: `quantkit … | head -1`
NOBODY_READS = 141  # as of a program that SIGPIPE ends: `quantkit … | head -1`
# What a disk or its permissions refuse: the user's to fix, wherever in the job it happens.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def exit_code(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code, or that of the error that it ended in, after one line on stderr."""
    try:
        code = command()
        sys.stdout.flush()  # here, and not as the interpreter ends: what is still held back may find no reader either
        return code
    except KeyboardInterrupt:
        told = "interrupted; finished stages stay in the run directory, and no file is incomplete"
        return _tell(f"{told}; next: run the same command to continue", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would complain of it again as it ends
        return BROKEN_PIPE
    except ContractError as error:
        return _tell(f"internal error: {error}; next: report it, with the file {_report(error)}", OUR_FAULT)
    except QuantkitError as error:
        return _tell(str(error), WRONG_REQUEST)
    except Exception as error:  # noqa: BLE001 - the boundary: a crash must never read as "not kept"
        if isinstance(error, OSError) and error.errno in REFUSALS:
            refused = OutputError(
                f"cannot write {error.filename or 'a file'}: {error.strerror}", "", "choose another folder, or free disk space"
            )
            return _tell(str(refused), WRONG_REQUEST)
        return _tell(f"internal error: {_line(error)}; next: report it, with the file {_report(error)}", OUR_FAULT)


@contextmanager
def results_only() -> Iterator[None]:
    """Redirects what libraries or a recipe write to standard output to standard error: a solver's debug line is not a result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # else C's buffered lines would follow the restored descriptor
        os.dup2(kept, 1)
        os.close(kept)


def _tell(line: str, code: int) -> int:
    print(f"quantkit: {line}", file=sys.stderr)
    return code


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _report(error: Exception) -> Path:
    """A file with what a maintainer needs and nothing of the user's data."""
    with tempfile.NamedTemporaryFile("w", prefix="quantkit-error-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(f"{' '.join(sys.argv)}\n{json.dumps(describe())}\n\n{''.join(traceback.format_exception(error))}")
    return Path(file.name)
