"""Sensitivities: what quantizing a group does, estimated; one file a method. An estimator fills the whole table.

Each method has `estimate(context)` and `cost(context)`, the passes that it takes at most, known before it starts. A context (context.py)
is the groups, the items and an engine (engine.py): the contract of the passes, so that a method is read without the files that implement
it.
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
from quantkit.sensitivity.context import Context, Cost, Scores

__all__ = ["COSTS", "SENSITIVITIES", "Context", "Cost", "Scores"]


class Method(Protocol):
    """What every file here has."""

    def estimate(self, context: Context, /) -> Scores:
        """The scores of every (group, scheme)."""

    def cost(self, context: Context, /) -> Cost:
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


def _announced(name: str) -> Callable[[Context], Scores]:
    def estimate(context: Context) -> Scores:
        passes = METHODS[name].cost(context).passes
        context.progress.note(f"sensitivity {name}: at most {passes:,.0f} passes of one item, {passes * context.macs / 1e9:,.0f} GMAC")
        return METHODS[name].estimate(context)

    return estimate


SENSITIVITIES: dict[str, Callable[[Context], Scores]] = {name: _announced(name) for name in METHODS}
COSTS: dict[str, Callable[[Context], Cost]] = {name: method.cost for name, method in METHODS.items()}
