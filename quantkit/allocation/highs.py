"""The one door to scipy's HiGHS: proven optimality, and nothing on our stdout."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from quantkit.errors import ContractError
from quantkit.table import Floats

# HiGHS stops at an absolute gap of 1e-6 and takes rows as kept within 1e-6, and scipy exposes neither; so coefficients are
# brought to this size, where both tolerances are below one part in 1e9 of the largest.
_SIZE = 1e4
_INFEASIBLE = 2
_ONE_AT_A_TIME = Lock()  # two threads that swap the descriptor at once could leave it swapped
_NODES = 1_000_000  # a count, not seconds: the same problem gets the same answer on any machine


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """low ≤ coefficients · x ≤ high."""

    coefficients: Floats
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The best x found and the relative gap to the proven bound (0: proven best)."""

    x: Floats
    gap: float


def minimise(objective: Floats, rows: Sequence[Row], binary: NDArray[np.bool_], gap: float = 0.0) -> Solution | None:
    """The x in [0, 1] of least objective · x that keeps every row, whole where `binary`; None if there is none.

    `gap` is the relative distance to the proven bound at which the search for it may end.
    """
    scaled = [_scaled(row) for row in rows]
    constraint = LinearConstraint(np.stack([row.coefficients for row in scaled]), [row.low for row in scaled], [row.high for row in scaled])
    with silent_stdout():
        found = milp(
            objective / _largest(objective) * _SIZE,
            integrality=binary.astype(np.uint8),
            bounds=Bounds(0, 1),
            constraints=constraint,
            options={"mip_rel_gap": gap, "node_limit": _NODES},
        )
    if found.x is None:
        if found.status == _INFEASIBLE:
            return None
        raise ContractError("the solver stopped without an answer", "a plan, or a proof that there is none", found.message)
    return Solution(found.x, 0.0 if found.success else float(found.mip_gap))


@contextmanager
def silent_stdout() -> Iterator[None]:
    """File descriptor 1 leads nowhere meanwhile: HiGHS prints from C, below `sys.stdout`, and would corrupt `--json`."""
    with _ONE_AT_A_TIME:
        _flush_c()
        try:
            kept = os.dup(1)
        except OSError:  # no stdout at all: nothing to protect
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        try:
            yield
        finally:
            _flush_c()  # C holds back what it prints to a pipe or a file, and would let it out after the way is open again
            os.dup2(kept, 1)
            os.close(kept)


def _flush_c() -> None:
    ctypes.CDLL(None).fflush(None)


def _scaled(row: Row) -> Row:
    largest = _largest(row.coefficients)
    return Row(row.coefficients / largest * _SIZE, row.low / largest * _SIZE, row.high / largest * _SIZE)


def _largest(values: Floats) -> float:
    return float(np.abs(values).max()) or 1.0
