"""The only module that calls scipy's HiGHS: proven optimality, and nothing on our stdout."""

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
from scipy.sparse import csr_array, vstack

from quantkit.allocation.problem import Floats
from quantkit.core.errors import ContractError

# HiGHS stops at an absolute gap of 1e-6 and takes rows as kept within 1e-6, and scipy exposes neither; so coefficients are
# brought to this size, where both tolerances are below one part in 1e9 of the largest.
_SIZE = 1e4
_INFEASIBLE, _FAILED = 2, 4
_ONE_AT_A_TIME = Lock()  # two threads that swap the descriptor at once could leave it swapped
_NODES = 1_000_000  # a count, not seconds: the same problem gets the same answer on any machine


Entry = tuple[NDArray[np.intp], Floats, float, float]  # columns and their coefficients, low, high


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """low ≤ matrix · x ≤ high, row by row."""

    matrix: csr_array
    low: Floats
    high: Floats

    @classmethod
    def of(cls, entries: Sequence[Entry], width: int) -> Rows:
        """From one entry a row, brought to one size."""
        columns, values, lows, highs = zip(*entries, strict=True)
        scales = np.array([_SIZE / _largest(row) for row in values])
        data = np.concatenate([row * scale for row, scale in zip(values, scales, strict=True)])
        starts = np.cumsum([0, *map(len, columns)], dtype=np.int32)
        matrix = csr_array((data, np.concatenate(columns).astype(np.int32), starts), shape=(len(entries), width))
        return cls(matrix, np.array(lows) * scales, np.array(highs) * scales)

    def and_(self, other: Rows) -> Rows:
        """Both."""
        matrix = csr_array(vstack([self.matrix, other.matrix]))
        return Rows(matrix, np.concatenate([self.low, other.low]), np.concatenate([self.high, other.high]))


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The best x found, and the proven bound on objective · x: the value itself, less the gap."""

    x: Floats
    bound: float


def minimise(objective: Floats, rows: Rows, binary: NDArray[np.bool_], gap: float = 0.0) -> Solution | None:
    """The x in [0, 1] of least objective · x that keeps every row, whole where `binary`; None if there is none.

    `gap` is the relative distance to the proven bound at which the search for it may end.
    """
    scale = _SIZE / _largest(objective)
    for presolve in (True, False):  # rarely HiGHS ends in an error of its own; without its presolve it goes another way
        with silent_stdout():
            found = milp(
                objective * scale,
                integrality=binary.astype(np.uint8),
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(rows.matrix, rows.low, rows.high),
                options={"mip_rel_gap": gap, "node_limit": _NODES, "presolve": presolve},
            )
        if found.x is not None or found.status != _FAILED:
            break
    if found.x is None:
        if found.status == _INFEASIBLE:
            return None
        raise ContractError("the solver stopped without an answer", "a plan, or a proof that there is none", found.message)
    proven = found.success and (gap == 0 or not binary.any())  # up to tolerances that are not to be seen as a gap
    return Solution(found.x, float(found.fun if proven else found.mip_dual_bound) / scale)


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


def _largest(values: Floats) -> float:
    return float(np.abs(values).max(initial=0.0)) or 1.0
