"""A file whose own runtime is not here, computed twice: by ONNX Runtime, optimisations off, and by the standard's reference.

Both compute Q/DQ as they stand, so that they read the file alike says that it means what it should. They part by roundings: ONNX Runtime
drops a rounding to half between two operations that it runs in float32 anyway, and the reference divides halves by halves. A code that
flips moves an output by a step, and steps add up with depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator

from quantkit.runtimes.evaluation import Feeds, open_session


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """`differences` by output: ‖runtime − reference‖ / ‖reference‖. `same_top`: the share of items whose outputs all peak alike."""

    items: int
    differences: Mapping[str, float]
    same_top: float

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


def check_reference(path: Path, feeds: Feeds) -> ReferenceCheck:
    """Run `path` over `feeds` (a few items: the reference is slow) in both."""
    session = open_session(path, threads=1, literal=True)
    names = [entry.name for entry in session.handle.get_outputs()]
    items = len(next(iter(feeds.values())))
    standard = ReferenceEvaluator(str(path)).run(None, dict(feeds))
    differences, tops = {}, []
    for name, ours, theirs in zip(names, session.run(feeds), standard, strict=True):
        one, other = (np.asarray(array, np.float64) for array in (ours, theirs))
        differences[name] = float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), np.finfo(np.float32).tiny))
        tops.append(one.reshape(items, -1).argmax(axis=1) == other.reshape(items, -1).argmax(axis=1))
    return ReferenceCheck(items, differences, float(np.all(tops, axis=0).mean()))
