"""Sensitivities: what quantizing a group does, estimated; one file a method. An estimator fills the whole table."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.sensitivity import augmented, displacement, hessian
from quantkit.sensitivity.scene import Scene, Scores

__all__ = ["SENSITIVITIES", "Scene", "Scores"]

SENSITIVITIES: dict[str, Callable[[Scene], Scores]] = {
    "augmented": augmented.estimate,
    "displacement": displacement.estimate,
    "hessian": hessian.estimate,
}
