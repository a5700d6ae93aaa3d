"""Sensitivities: what quantizing a group does, estimated; one file a method. An estimator fills the whole table.

Each method has `estimate(scene)` and `cost(scene)`, the passes that it takes at most, known before it starts. A scene (scene.py) is the
groups, the items and an engine (engine.py): the contract of the passes, so that a method is read without the rooms that keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from quantkit.sensitivity import (
    augmented,
    aumann_shapley,
    displacement,
    fisher,
    fisher_output,
    gauss_newton,
    hessian,
    hessian_activation,
    hessian_cross,
    kl,
    noise,
    pairs,
    pyhessian,
    weight_error,
)
from quantkit.sensitivity.scene import Cost, Scene, Scores

__all__ = ["COSTS", "SENSITIVITIES", "Cost", "Scene", "Scores"]


class Method(Protocol):
    """What every file here has."""

    def estimate(self, scene: Scene, /) -> Scores:
        """The scores of every (group, scheme)."""

    def cost(self, scene: Scene, /) -> Cost:
        """The passes that `estimate` takes at most."""


METHODS: dict[str, Method] = {
    "augmented": augmented,
    "aumann_shapley": aumann_shapley,
    "displacement": displacement,
    "fisher": fisher,
    "fisher_output": fisher_output,
    "gauss_newton": gauss_newton,
    "hessian": hessian,
    "hessian_activation": hessian_activation,
    "hessian_cross": hessian_cross,
    "kl": kl,
    "noise": noise,
    "pairs": pairs,
    "pyhessian": pyhessian,
    "weight_error": weight_error,
}


def _announced(name: str) -> Callable[[Scene], Scores]:
    def estimate(scene: Scene) -> Scores:
        passes = METHODS[name].cost(scene).passes
        scene.progress.note(f"sensitivity {name}: at most {passes:,.0f} passes of one item, {passes * scene.macs / 1e9:,.0f} GMAC")
        return METHODS[name].estimate(scene)

    return estimate


SENSITIVITIES: dict[str, Callable[[Scene], Scores]] = {name: _announced(name) for name in METHODS}
COSTS: dict[str, Callable[[Scene], Cost]] = {name: method.cost for name, method in METHODS.items()}
