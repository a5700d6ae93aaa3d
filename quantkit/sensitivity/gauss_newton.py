"""The Gauss–Newton trace by first-order passes alone, times perturbation: HAWQ-V2 (arXiv 1911.03852) without its Hessian.

    Ω_i(b) = ½ · Tr(J_i' F J_i) / n_i · ‖Q_b(W_i) − W_i‖²   (taylor.py)
    Tr(J_i' F J_i) = E ‖∇_i log p(y | x)‖²,   y drawn from the network

J' F J is the Hessian without the curvature of the network itself (Martens, arXiv 1412.1193); the two have the same blocks where the
network is piecewise linear in each weight, as with ReLU. It has no negative trace. Each item's own squared gradient is taken, so that
items do not blur each other. Needs no labels: answers are drawn (outputs.drawn) DRAWS times an item. Weights only: activations score
nothing.
Takes, for each of ITEMS items, one forward pass and DRAWS backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quantkit.data.batch import Batch
from quantkit.sensitivity.context import FIRST_ORDER, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import drawn
from quantkit.sensitivity.passes.recorded import Recorded
from quantkit.sensitivity.taylor import second_order

ITEMS = 32
DRAWS = 2


def estimate(context: Context) -> Scores:
    """Ω of every (group, scheme); 0 for fp32 and for groups without weights; nan where a group cannot take the scheme."""
    generator = context.generator

    def answers(recorded: Recorded, batch: Batch) -> Sequence[Sequence[Tensor]]:  # noqa: ARG001 - labels are not asked
        return drawn(context.curvature, recorded.outputs, DRAWS, generator)

    batches = context.batches("Gauss–Newton traces", context.items.first(ITEMS), context.batch_size(FIRST_ORDER))
    return Scores(second_order(context, "gauss_newton", context.engine.squared_gradients(batches, answers).traces))


def cost(context: Context) -> Cost:
    """The passes above."""
    items = len(context.items.first(ITEMS))
    return Cost(items, items * DRAWS)
