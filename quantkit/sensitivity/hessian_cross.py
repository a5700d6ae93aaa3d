"""Interactions by Hessian cross terms: the quadratic form of the loss between the weights' own changes.

    M[(i,a), (j,b)] = ΔW_i(a)' H_ij ΔW_j(b),      predicted loss of an allocation x = ½ x' M x

One Hessian-vector product along ΔW_i(a) gives the whole row. No trace stands in for the direction of the error, so the diagonal is
what HAWQ-V2 approximates. H of a loss is not positive semi-definite, and its Taylor radius is small (arXiv 2503.01901). Weights only:
activations score nothing. Holds one copy of the weights for each scheme.
Takes, for each of ITEMS items, one forward and one backward pass and one product for each (group, scheme) with weights.
"""

from __future__ import annotations

from quantkit.sensitivity.context import SECOND_ORDER, Context, Cost, Scores

ITEMS = 8


def estimate(context: Context) -> Scores:
    """Half the diagonal as the table, and M; 0 for fp32 and for groups without weights; nan where a group cannot take the scheme."""
    by_name = {group.name: group for group in context.groups}
    changes = {pair: context.engine.weight_changes(by_name[pair[0]], pair[1]) for pair in context.pairs}
    directions = {pair: change for pair, change in changes.items() if change}
    batches = context.batches("Hessian cross terms", context.items.first(ITEMS), context.batch_size(SECOND_ORDER))
    forms = context.engine.quadratic_forms(context.loss, batches, list(directions.values()))
    places = [context.place(*pair) for pair in directions]
    entries = {(row, column): float(forms[a, b]) for a, row in enumerate(places) for b, column in enumerate(places)}
    own = {pair: 0.5 * float(forms[row, row]) for row, pair in enumerate(directions)}
    table = context.table("hessian_cross", lambda group, scheme: own.get((group.name, scheme), 0.0))
    return Scores(table, context.interactions(entries))


def cost(context: Context) -> Cost:
    """The passes above."""
    items = len(context.items.first(ITEMS))
    weighted = {group.name for group in context.groups if context.graph.weights(group)}
    return Cost(items, items, items * sum(group in weighted for group, _ in context.pairs))
