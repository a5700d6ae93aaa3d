"""Hessian traces of weights and activations times their perturbations (HAWQ-V2, arXiv 1911.03852, with its activation part).

    Ω_i(b) = ½ · [ Tr(H_W) / n_W · ‖ΔW‖² + Σ_x Tr(H_x) / n_x · E‖Δx‖² ]   (taylor.py)

H_x is the Hessian of one item's loss with respect to what a layer reads, a mean over items: activations of different items do not mix,
so the whole is never formed. Traces of all weights and all activations by the same probes (Hutchinson), which see all cross terms as
noise: at these counts traces come out negative, and on SqueezeNet the order of the groups is chance. `fisher` has the steadier ones.
Takes, for each of ITEMS items, one forward and one backward pass and at most MOST_PROBES products.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.passes.outputs import task_loss
from quantkit.passes.recorded import edge_names
from quantkit.passes.trace import Trial
from quantkit.sensitivity.scene import SECOND_ORDER, Cost, Scene, Scores
from quantkit.sensitivity.taylor import second_order

ITEMS = 8
MOST_PROBES = 10
TOLERANCE = 0.05  # relative change of the mean traces at which probing stops


def estimate(scene: Scene) -> Scores:
    """Ω of every (group, scheme); 0 for fp32; nan where a group cannot take the scheme."""
    errors = scene.engine.input_errors(scene.groups)
    sizes: dict[str, int] = {}
    with scene.engine.differentiable(scene.weights, twice=True) as named:

        def trials() -> Iterator[Trial]:
            for batch in scene.batches("Hessian traces", scene.items.first(ITEMS), scene.batch_size(SECOND_ORDER)):
                recorded = scene.engine.record(batch.inputs)
                errors.add(recorded.sites)
                edges = {name: x for site in recorded.sites for name, x in zip(edge_names(site.layer), site.inputs, strict=True)}
                sizes.update({name: x[0].numel() for name, x in edges.items()})
                yield Trial(batch.size, task_loss(scene.curvature, recorded.outputs, scene.labels(batch)), {**named, **edges})

        found = scene.engine.traces(trials(), probes=MOST_PROBES, tolerance=TOLERANCE, seed=scene.seed)
    return Scores(second_order(scene, "hessian_activation", found, errors, sizes))


def cost(scene: Scene) -> Cost:
    """The passes above."""
    items = len(scene.items.first(ITEMS))
    return Cost(items, items, items * MOST_PROBES)
