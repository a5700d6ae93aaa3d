"""The one place where loading meets code that is not ours: torch's readers and what the user wrote.

Both raise whatever they like (a damaged file gives RuntimeError, EOFError, KeyError, struct.error …), so this is the
package's one broad except.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

from quantkit.core.errors import ModelError, QuantkitError

_LONGEST_REASON = 200


@contextmanager
def foreign(got: str, wanted: str = "", next_step: str = "") -> Iterator[None]:
    """Turns any exception from the block into a ModelError: `got`, then the kind and first line of its root cause.

    Our own errors pass. SystemExit counts too: a script without a main guard calls it while it is imported.
    """
    try:
        yield
    except QuantkitError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{got}: {_reason(error)}", wanted, next_step) from error


def refused_global(error: pickle.UnpicklingError) -> str | None:
    """The class or function that torch's weights-only reader stopped at, if it says so."""
    named = re.search(r"GLOBAL (\S+) was not", str(error)) or re.search(r"unsupported GLOBAL (\S+) whose", str(error))
    return named[1] if named else None


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"
