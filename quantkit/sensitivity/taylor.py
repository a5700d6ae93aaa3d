"""The term of second order that all methods of traces share, in units of the loss.

    Ω_i(b) = ½ Σ_W Tr(H_W) / n_W · ‖ΔW‖² · a   [ + ½ Σ_x Tr(H_x) / n_x · E‖Δx‖² ]

over the distinct weights W of group i and, where a method knows them, over what its layers read; n counts the numbers in each.
Traces say how curved the loss is in a direction like any other. So does a = 1; a rounding that knows the inputs puts the error where they
are not, and a (`QuantizedWeight.alignment`) says how far: the input factor of a Kronecker-factored Hessian (ours).
An estimated trace below its own standard error counts as that: noise must not make a layer free, or worth breaking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from quantkit.core.graph import Group
from quantkit.core.spec import Scheme
from quantkit.core.table import Table
from quantkit.sensitivity.context import Context
from quantkit.sensitivity.engine import InputErrors
from quantkit.sensitivity.passes.recorded import edge_names
from quantkit.sensitivity.passes.trace import Trace


def second_order(
    context: Context, name: str, traces: Mapping[str, Trace], errors: InputErrors | None = None, sizes: Mapping[str, int] | None = None
) -> Table:
    """Ω of every (group, scheme): traces by the names of weights and, with `errors` and `sizes` of one item, of edges."""

    def score(group: Group, scheme: Scheme) -> float:
        total = 0.0
        for weight, layer in context.graph.weights(group).items():
            total += _trace(traces[weight]) / layer.weight_count * context.engine.squared_error(layer, scheme)
        for layer in map(context.graph.layer, group.layers if errors and sizes else ()):
            for slot, edge in enumerate(edge_names(layer)):
                assert errors is not None and sizes is not None
                total += _trace(traces[edge]) / sizes[edge] * errors.mean(layer, slot, scheme)
        return 0.5 * total

    return context.table(name, score)


def _trace(found: Trace) -> float:
    return found.trace if math.isnan(found.standard_error) else max(found.trace, found.standard_error)
