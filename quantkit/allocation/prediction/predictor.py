"""All that is predicted of a network's plans, in one place: what each (group, scheme) loses and uses, and what follows from it.

A run directory keeps it as tables.json (and the interactions beside), so that plans can be solved for again without the network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.allocation import Limit, Plan, Resource, distances, front, hypervolume, shortage, undominated_points
from quantkit.allocation.search import Space, Tie
from quantkit.core.errors import OutputError
from quantkit.core.graph import Group
from quantkit.core.run_files import ARRAYS, TABLES
from quantkit.core.spec import Allocation, parse_schemes
from quantkit.core.store import Run, fingerprint, write_atomically
from quantkit.core.table import Floats, Interactions, Table
from quantkit.settings.bounds import Bounds, show_amount

TIE_SHARE = 0.005
MeasuredPlan = tuple[Allocation, Mapping[str, float]]  # an allocation, and what was measured of it


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """`resources` by name, latency, bytes, bops and average_bits, with what the float network uses of each (`floats`).

    Bytes are those of whole files: a bound is held against them. `sizes` leaves out what a node takes, and is what is made small: a tiny
    layer in float, because its Q/DQ nodes outweigh its weights, is not what fewest bytes are asked for.
    """

    groups: tuple[Group, ...]
    loss: Table
    interactions: Interactions | None
    resources: Mapping[str, Resource]
    floats: Mapping[str, float]
    sizes: Table
    seed: int

    def limits(self, bounds: Bounds) -> tuple[Limit, ...]:
        """The bounds, in the units of the resources."""
        return tuple(Limit(self.resources[name], bound.at_most(self.floats[name])) for name, bound in bounds.given().items())

    def cost(self, minimize: str, bounds: Bounds) -> Resource:
        """What is minimized; of plans that nearly tie in it the faster: TIE_SHARE of the float network's for the whole of its latency.

        Where the drop is minimized, that is what is bounded first.
        """
        name = next(iter(bounds.given())) if minimize == "drop" else minimize
        main, latency = Resource(self.sizes) if name == "bytes" else self.resources[name], self.resources["latency"]
        if name == "latency":
            return main
        dearest = float(np.nanmax(main.table.values, axis=1).sum())
        price = TIE_SHARE * dearest / max(self.floats["latency"], 1e-6)
        table = Table(main.table.name, main.table.unit, main.table.groups, main.table.schemes, _sum(main.table, latency.table, price))
        edges = tuple(type(edge)(edge.producer, edge.consumer, price * edge.cost) for edge in latency.edges)
        return Resource(table, (*main.edges, *edges), main.offset)

    def space(
        self, minimize: str, bounds: Bounds, *, quick: bool = False, known: Sequence[Plan] | None = None, within: Sequence[Limit] = ()
    ) -> Space:
        """The front under the bounds and `within` more limits, a coarse one if `quick`; where they leave no plan the one that is nearest.

        A front that is `known`, because it was solved for before, is taken as it is.
        """
        cost, limits = self.cost(minimize, bounds), (*self.limits(bounds), *within)
        points, restarts = (5, 0) if quick else (18, 4)
        short = None
        if limits and known is None:
            short = shortage(
                self.loss, cost.table, groups=self.groups, interactions=self.interactions, edges=cost.edges, limits=limits, seed=self.seed
            )
        plans = tuple(known) if known is not None else (short.nearest,) if short else front(
            self.loss, cost.table, groups=self.groups, interactions=self.interactions, edges=cost.edges, limits=limits, points=points,
            restarts=restarts, seed=self.seed,
        )  # fmt: skip
        return Space(
            self.groups, self.loss, cost.table, plans, self.interactions, cost.edges,
            limits=limits, least_drop=minimize == "drop", shortage=short,
            tie=Tie(self._weights, self.resources["latency"]) if minimize == "bytes" else None,
        )  # fmt: skip

    @property
    def _weights(self) -> Resource:
        """`sizes`, under a name of its own: a file's bytes are something else."""
        return Resource(replace(self.sizes, name="weights"))

    def faster_space(self, bounds: Bounds, best: Plan, tie: Tie) -> Space | None:
        """Of the plans that tie with `best`, those that are predicted faster, and `best` itself at the end; None where there is none."""
        most = tie.first.total(best.allocation) * (1 + tie.share)
        space = self.space("latency", bounds, within=[Limit(tie.first, most)])
        last = space.plan(best.allocation)
        faster = [plan for plan in space.front if plan.predicted_cost < last.predicted_cost]
        return replace(space, front=(*faster, last)) if faster and not space.shortage else None

    def key(self) -> str:
        """Stands for all of it."""
        matrix = None if self.interactions is None else [self.interactions.groups, self.interactions.schemes, self.interactions.matrix]
        resources = {name: resource.to_json() for name, resource in self.resources.items()}
        return fingerprint(self.groups, self.loss.to_json(), matrix, resources, dict(self.floats), self.sizes.to_json(), self.seed)

    def used(self, allocation: Allocation) -> dict[str, float]:
        """What an allocation uses of each resource."""
        return {name: resource.total(allocation) for name, resource in self.resources.items()}


def explain_shortage(space: Space) -> str:
    """One line: which bounds bind, what the nearest plan needs of each, and what would relax them; empty where there is a plan."""
    if space.shortage is None:
        return ""
    parts = []
    for binding in space.shortage.binding:
        allowed, needed, least = (show_amount(binding.name, value) for value in (binding.at_most, binding.needed, binding.least))
        alone = f"no plan takes less than {least}" if binding.least > binding.at_most else "it conflicts with the other bounds"
        parts.append(f"{binding.name.replace('_', ' ')} binds: at most {allowed} allowed, the nearest plan takes {needed} ({alone})")
    return f"No plan is within the bounds. {'; '.join(parts)}."


def write_predictor(store: Run, predictor: Predictor, more: Mapping[str, Any]) -> None:
    """tables.json in the run directory, with whatever `more` a reader needs."""
    key = None
    if predictor.interactions is not None:
        key = fingerprint(ARRAYS, predictor.interactions.matrix)
        store.put_arrays(ARRAYS, key, {"matrix": predictor.interactions.matrix})
    kept = {
        "schema": 1,
        "groups": [asdict(group) for group in predictor.groups],
        "loss": predictor.loss.to_json(),
        "interactions": None if predictor.interactions is None else [key, predictor.interactions.groups, predictor.interactions.schemes],
        "resources": {name: resource.to_json() for name, resource in predictor.resources.items()},
        "floats": dict(predictor.floats),
        "sizes": predictor.sizes.to_json(),
        "seed": predictor.seed,
        **more,
    }
    with write_atomically(store.folder / TABLES) as temporary:
        temporary.write_text(json.dumps(kept, allow_nan=False))


def read_predictor(folder: Path) -> tuple[Predictor, Mapping[str, Any]]:
    """The predictor of a run directory, and all of tables.json. Raises OutputError where there is none, or not all of one."""
    missing = OutputError(f"{folder} holds no tables", "a run directory of `quantkit measure` or `allocate`", "measure the network first")
    try:
        kept = json.loads((folder / TABLES).read_text(encoding="utf-8"))
        interactions = None
        if kept["interactions"] is not None:
            key, names, schemes = kept["interactions"]
            arrays = Run(folder).get_arrays(ARRAYS, key)
            if arrays is None:
                raise missing
            interactions = Interactions(tuple(names), tuple(schemes), arrays["matrix"])
        menus = {row["name"]: parse_schemes(row["schemes"]) for row in kept["groups"]}
        groups = tuple(Group(row["name"], tuple(row["layers"]), menus[row["name"]], row["reason"]) for row in kept["groups"])
        resources = {name: Resource.from_json(row) for name, row in kept["resources"].items()}
        loss, sizes = Table.from_json(kept["loss"]), Table.from_json(kept["sizes"])
        return Predictor(groups, loss, interactions, resources, kept["floats"], sizes, kept["seed"]), kept
    except (OSError, ValueError, KeyError) as error:
        raise missing from error


def front_report(predictor: Predictor, space: Space, measured_plans: Sequence[MeasuredPlan], near: float) -> dict[str, Any]:
    """front.json: the predicted front and all that was measured, each plan with its distance to the best known (DPFR), and hypervolumes.

    Measured points are (divergence from the float network, cost), those of at most `near` nats: their front is the reference where there is
    one, since no promise is in it and little chance; otherwise the predicted front is. Both axes run from the ideal to the reference point
    that stand beside: no loss at the least cost, and the greatest loss of a point at the float network's cost. A measured plan is
    `undominated` where none measured diverges less, takes fewer bytes and is predicted faster, all at least as well and one better.
    """
    floats = space.plan(space.highest_precision())
    predicted = [(plan.predicted_loss, plan.predicted_cost) for plan in space.front]
    seen = {tuple(sorted(allocation.items())): look for allocation, look in measured_plans}
    trials = [(space.plan(allocation), look) for allocation, look in measured_plans]
    points = [(look["divergence"], plan.predicted_cost) for plan, look in trials]
    kept = [point for point in points if point[0] <= near]
    least = min(cost for _, cost in (*predicted, *points))
    ends = {
        kind: ((0.0, least), (max((loss for loss, _ in found), default=0.0), floats.predicted_cost))
        for kind, found in (("predicted", predicted), ("measured", kept))
    }

    def row(plan: Plan, look: Mapping[str, float] | None, kind: str, point: tuple[float, float] | None) -> dict[str, Any]:
        best = {"predicted": predicted, "measured": kept}[kind]
        distance = None if point is None else distances([point], best, *ends[kind])[0]
        return {**plan.to_json(), "uses": predictor.used(plan.allocation), "measured": look and dict(look), "distance": distance}

    def plan_row(plan: Plan) -> dict[str, Any]:
        look = seen.get(tuple(sorted(plan.allocation.items())))
        if not kept:
            return row(plan, look, "predicted", (plan.predicted_loss, plan.predicted_cost))
        return row(plan, look, "measured", None if look is None else (look["divergence"], plan.predicted_cost))

    return {
        "unit": {"loss": space.loss.unit, "cost": space.cost.unit},
        "limits": {limit.resource.name: limit.at_most for limit in space.limits},
        "ideal": {kind: list(ideal) for kind, (ideal, _) in ends.items()},
        "reference": {kind: list(reference) for kind, (_, reference) in ends.items()},
        "hypervolume": {
            "predicted": hypervolume(predicted, *ends["predicted"]),
            "measured": hypervolume(kept, *ends["measured"]) if kept else None,
        },
        "plans": [plan_row(plan) for plan in space.front],
        "measured": [
            {**row(plan, look, "measured", point), "undominated": ahead}
            for (plan, look), point, ahead in zip(trials, points, _undominated(predictor, trials), strict=True)
        ],
    }  # fmt: skip


def _undominated(predictor: Predictor, trials: Sequence[tuple[Plan, Mapping[str, float]]]) -> tuple[bool, ...]:
    """On three axes: the measured divergence, the bytes of the file as measured, and the predicted latency."""
    latency = predictor.resources["latency"]
    return undominated_points([(look["divergence"], look["bytes"], latency.total(plan.allocation)) for plan, look in trials])


def _sum(one: Table, other: Table, price: float) -> Floats:
    """`one` and so much of `other`, whose rows and columns may stand in another order."""
    rows, columns = ([getattr(other, axis).index(name) for name in getattr(one, axis)] for axis in ("groups", "schemes"))
    return one.values + price * other.values[rows][:, columns]
