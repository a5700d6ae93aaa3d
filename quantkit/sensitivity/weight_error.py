"""Rounding error of the weights: E_QE of sensitivity-guided search (arXiv 2302.01382).

    E_i(b) = ‖Q_b(W_i) − W_i‖ / √n_i / max|W_i|

Looks at no item and runs nothing. Its unit is a share of the largest weight, which does not compare with a loss: use it to order groups.
Activations score nothing.
"""

from __future__ import annotations

from quantkit.core.graph import Group
from quantkit.core.spec import Scheme
from quantkit.sensitivity.context import Context, Cost, Scores


def estimate(context: Context) -> Scores:
    """E of every (group, scheme); 0 for fp32 and for groups without weights; nan where a group cannot take the scheme."""

    def score(group: Group, scheme: Scheme) -> float:
        changes = context.engine.weight_changes(group, scheme)
        squares = sum(float(change.double().square().sum()) for change in changes.values())
        count = sum(change.numel() for change in changes.values())
        largest = max((float(context.engine.parameter(name).abs().max()) for name in changes), default=0.0)
        return (squares / count) ** 0.5 / largest if largest else 0.0

    return Scores(context.table("weight_error", score, unit="share of the largest weight"))


def cost(context: Context) -> Cost:  # noqa: ARG001 - whatever the context
    """Nothing is run."""
    return Cost()
