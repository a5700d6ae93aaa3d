"""FIT: the Fisher trace of weights and activations times their perturbations (arXiv 2210.08502).

    FIT_i(b) = ½ · [ Tr(F_W) / n_W · ‖ΔW‖² + Σ_x Tr(F_x) / n_x · E‖Δx‖² ]   (taylor.py),      Tr(F_·) = E ‖∂ℓ_n / ∂·‖²

ℓ_n is the loss of one item at its label, so F is the empirical Fisher; per item, since gradients of a batch's mean cancel. Where
there are no class labels, answers are drawn from the network (outputs.drawn). The paper takes ‖Δ‖² = n · Δ² / 12 of a uniform error; here
it is measured. The ½ is ours, so that the number compares with a loss. x runs over what each layer reads.
Takes, for each of ITEMS items, one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quantkit.data.batch import Batch
from quantkit.sensitivity.context import FIRST_ORDER, Context, Cost, Scores
from quantkit.sensitivity.passes.outputs import at_labels
from quantkit.sensitivity.passes.recorded import Recorded
from quantkit.sensitivity.taylor import second_order

ITEMS = 128


def estimate(context: Context) -> Scores:
    """FIT of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme. Raises DataError for labels that are no class."""
    generator, errors = context.generator, context.engine.input_errors(context.groups)

    def answers(recorded: Recorded, batch: Batch) -> Sequence[Sequence[Tensor]]:
        return [at_labels(context.curvature, recorded.outputs, context.labels(batch), generator)]

    batches = context.batches("Fisher traces", context.items.first(ITEMS), context.batch_size(FIRST_ORDER))
    found = context.engine.squared_gradients(batches, answers, errors.add)
    return Scores(second_order(context, "fisher", found.traces, errors, found.sizes))


def cost(context: Context) -> Cost:
    """The passes above."""
    items = len(context.items.first(ITEMS))
    return Cost(items, items)
