"""Why a layer has its scheme: the effect of each scheme on the whole plan, what was measured, what rules out the others, interactions.

Every figure follows from the run's tables and journal. A change is relative to the plan in force, with all other groups as they are, so
that interactions and boundaries are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from quantkit.allocation import Limit, Plan
from quantkit.allocation.prediction.predictor import MeasuredPlan, Predictor
from quantkit.allocation.search import Space
from quantkit.core.errors import OutputError, RequestError
from quantkit.core.graph import Group
from quantkit.core.spec import Allocation, Scheme
from quantkit.report.format import bound_words, signed
from quantkit.report.run_data import MEASURED_ONLY, OLD, Evidence
from quantkit.runs.pick import Foresight
from quantkit.settings.bounds import Bound, Bounds
from quantkit.settings.options import SCHEMES

PINNED = "pinned by the user"  # the reason of a group whose scheme was given
PARTNERS = 6


@dataclass(frozen=True, slots=True)
class SchemeRow:
    """The group under one scheme: its score and costs, what changing the plan to it does, and why the plan has it or not.

    `score` is the sensitivity's, which may hold a share of what it interacts; `own_loss` is the loss of the group alone. `drop` is of the
    whole changed plan, in the metric's unit: `drop_is` measured or predicted; None where unknown.
    """

    scheme: Scheme
    chosen: bool
    score: float
    own_loss: float
    costs: Mapping[str, float]
    change: Mapping[str, float]
    drop: float | None
    drop_is: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Tried:
    """What was measured of plans that had the group under `scheme`; `best_drop` is the least of their drops."""

    scheme: Scheme
    plans: int
    best_drop: float
    best_divergence: float


@dataclass(frozen=True, slots=True)
class Alone:
    """Two measured plans that differ in this group only, and what the change did."""

    before: str
    after: str
    drop: float
    divergence: float


@dataclass(frozen=True, slots=True)
class Partner:
    """Another group of the plan: what both lose beyond each alone (negative where errors cancel), and the correlation of their errors."""

    group: str
    scheme: Scheme
    loss: float
    correlation: float


@dataclass(frozen=True, slots=True)
class Reader:
    """Where the layer's output, and its error, goes next: `converts` where precision changes on the way."""

    name: str
    kind: str
    scheme: Scheme | None
    converts: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that a run says of one layer. `schemes` is empty for an operation that has no 8-bit form: `reason` then says why.

    `own_loss` and `shared_loss` are the group's part of the plan's predicted loss: alone, and half of what it shares with others.
    """

    run: str
    layer: str
    kind: str
    group: str | None
    layers: tuple[str, ...]
    reason: str
    scheme: Scheme | None
    picked: bool
    unit: str
    loss_unit: str
    max_drop: float | None
    weights: int
    macs: int
    schemes: tuple[SchemeRow, ...]
    not_offered: Mapping[str, str]
    tried: tuple[Tried, ...]
    alone: tuple[Alone, ...]
    partners: tuple[Partner, ...] | None
    own_loss: float
    shared_loss: float
    plan_loss: float
    readers: tuple[Reader, ...]
    joins: tuple[str, ...]
    layers_behind: int
    mismatches: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return asdict(self)


def explain(evidence: Evidence, name: str) -> Explanation:
    """Of the layer, group or operation `name`. Raises RequestError for an unknown one, OutputError for a run without tables or plan."""
    group = _find(evidence, name)
    readers, joins, behind = _flow(evidence, group.layers[-1] if group is not None and group.name == name else name)
    if group is None:
        operation = next(one for one in evidence.graph.unsupported if one.node == name)
        return Explanation(
            str(evidence.folder), name, operation.operation, None, (), f"it has no 8-bit form here and stays float: {operation.reason}",
            None, evidence.picked, "", "", None, 0, 0, (), {}, (), (), None, 0.0, 0.0, 0.0, readers, joins, behind, (),
        )  # fmt: skip
    if evidence.predictor is None:
        raise OutputError(f"{evidence.folder} holds no tables", "a run of this version", OLD)
    if not evidence.allocation:
        raise OutputError(f"{evidence.folder} holds no plan", "a run with a plan", MEASURED_ONLY)
    layers = [evidence.graph.layer(layer) for layer in group.layers]
    own, shared, whole, partners = _losses(evidence.predictor, evidence.allocation, group.name)
    budget = (evidence.result or {}).get("budget", {})
    mismatches = tuple(
        line for line in (evidence.result or {}).get("executed", {}).get("mismatches", ()) if line.split(":")[0] in group.layers
    )
    return Explanation(
        str(evidence.folder), name, layers[0].kind, group.name, group.layers, group.reason, evidence.allocation[group.name],
        evidence.picked, str(evidence.tables["judging"]["unit"]), evidence.predictor.loss.unit, budget.get("max_drop"),
        sum(layer.weight_count for layer in layers), sum(layer.macs for layer in layers), _schemes(evidence, evidence.predictor, group),
        _not_offered(evidence, group), _tried(evidence.measured_plans, group.name), _alone(evidence.measured_plans, group.name),
        partners, own, shared, whole, readers, joins, behind, mismatches,
    )  # fmt: skip


def _find(evidence: Evidence, name: str) -> Group | None:
    """The group of that name, or that has that layer; None for an operation that stays float."""
    for group in evidence.groups:
        if name == group.name or name in group.layers:
            return group
    operations = [operation.node for operation in evidence.graph.unsupported]
    if name in operations:
        return None
    known = list(dict.fromkeys([*(layer.name for layer in evidence.graph.layers), *operations]))
    near = get_close_matches(name, known, n=3, cutoff=0.4) or [one for one in known if name.lower() in one.lower()][:3] or known[:3]
    got = f"unknown layer {name!r} in {evidence.folder}"
    raise RequestError(got, f"one of its {len(known)} layers", f"did you mean {' or '.join(map(repr, near))}?")


def _schemes(evidence: Evidence, predictor: Predictor, group: Group) -> tuple[SchemeRow, ...]:
    """The group under every scheme of its menu, highest precision first."""
    bounds, goal = limits_of(evidence), evidence.goal
    cost = predictor.cost(str(evidence.request["options"]["minimize"]), bounds)
    space = Space(predictor.groups, predictor.loss, cost.table, (), predictor.interactions, cost.edges, limits=predictor.limits(bounds))
    judge = _Judge(evidence, space)
    now, used = space.plan(evidence.allocation), predictor.used(evidence.allocation)
    rows = []
    for scheme in sorted(group.schemes, key=lambda each: each.precision, reverse=True):
        other = space.plan({**evidence.allocation, group.name: scheme})
        uses = predictor.used(other.allocation)
        change = {"loss": other.predicted_loss - now.predicted_loss, **{name: uses[name] - used[name] for name in uses}}
        drop, drop_is, passes = judge.drop(other)
        chosen = scheme == evidence.allocation[group.name]
        costs = {name: resource.table.at(group.name, scheme) for name, resource in predictor.resources.items()}
        over = [limit for limit in space.limits if limit.excess(uses[limit.resource.name])]
        why = _chosen(group, evidence) if chosen else _against(change, goal, over, uses, judge, drop, drop_is, passes)
        score, pairs = predictor.loss.at(group.name, scheme), predictor.interactions
        place = None if pairs is None else pairs.index(group.name, scheme)
        alone = score if pairs is None else float(pairs.matrix[place, place]) / 2
        rows.append(SchemeRow(scheme, chosen, score, alone, costs, change, drop, drop_is, why))
    return tuple(rows)


def limits_of(evidence: Evidence) -> Bounds:
    """The bounds that were asked for."""
    said = evidence.request["options"].get("bounds") or {}
    return Bounds(**{name: Bound(row["value"], row["relative"]) for name, row in said.items() if row})


def _chosen(group: Group, evidence: Evidence) -> str:
    if group.reason == PINNED:
        return "chosen: pinned (--fix or --exclude)"
    if len(group.schemes) == 1:
        return "chosen: the only scheme on its menu"
    return "chosen in the plan that was picked" if evidence.picked else "chosen in the plan that the search found"


def _against(
    change: Mapping[str, float], goal: str, over: Sequence[Limit], uses: Mapping[str, float], judge: _Judge,
    drop: float | None, drop_is: str | None, passes: bool,
) -> str:  # fmt: skip
    """What rules out a scheme, or advises against it."""
    dearer, worse = change[goal] > 0, change["loss"] > 0
    if over:
        name, at_most = over[0].resource.name, over[0].at_most
        return f"the bound on {name.replace('_', ' ')} forbids it: {bound_words({'name': name, 'used': uses[name], 'at_most': at_most})}"
    paid, greater = signed(goal, change[goal]), f"its predicted loss is greater by {change['loss']:.3g}"
    less = f"its predicted loss is less by {-change['loss']:.3g}"
    if worse and (dearer or judge.least_drop):
        return f"nothing is gained: {greater if judge.least_drop else f'{paid}, and {greater}'}"
    if (worse or drop_is == "measured") and not passes and drop is not None and judge.points is not None:
        lost = f"{drop:.2f} of at most {judge.points:.2f} {judge.unit}"
        if drop > judge.points:
            return f"the promise forbids it, as {drop_is}: the plan would lose {lost}"
        return f"the promise advises against it, as {drop_is}: {lost}, too close to the limit to be sure on the gate split"
    if dearer and not judge.least_drop:
        return f"nothing is gained: {paid}{f', though {less}' if change['loss'] < 0 else ''}"
    if drop_is == "measured":
        return f"this plan was measured and lost {drop:.2f}: it passed, and another was preferred (finalists are timed side by side)"
    also = f", and {less}" if change["loss"] < 0 else ""
    return f"nothing forbids it as predicted ({paid}{also}); the search did not evaluate that very plan"


class _Judge:
    """What plans lose: as measured where they were, else translated from what is predicted, starting from the plan in force."""

    def __init__(self, evidence: Evidence, space: Space) -> None:
        self._measured = {tuple(sorted(allocation.items())): look for allocation, look in evidence.measured_plans}
        judging = evidence.tables["judging"]
        self._foresight = Foresight.of(space, evidence.measured_plans, judging) if evidence.measured_plans else None
        self._now, self._seen = space.plan(evidence.allocation), self._measured.get(tuple(sorted(evidence.allocation.items())))
        budget = (evidence.result or {}).get("budget", {})
        self.points: float | None = budget.get("max_drop")
        self.unit = str(judging["unit"])
        self.least_drop = evidence.request["options"]["minimize"] == "drop"

    def drop(self, plan: Plan) -> tuple[float | None, str | None, bool]:
        """The drop, whether it is measured or predicted, and whether it keeps the promise, as far as there is one."""
        if self._foresight is None:
            return None, None, True
        look = self._measured.get(tuple(sorted(plan.allocation.items())))
        if look is not None:
            found = self._foresight.measured(look, self.points)
            return found.drop, "measured", found.passes
        loss, ratio = plan.predicted_loss, self._foresight.ratio
        if self._seen is not None and ratio > 0:  # what was measured of the plan in force, and the predicted change on top
            loss = self._seen["divergence"] / ratio + plan.predicted_loss - self._now.predicted_loss
        found = self._foresight.foreseen(loss, self.points)
        return found.drop, "predicted", found.passes


def _not_offered(evidence: Evidence, group: Group) -> dict[str, str]:
    """The target's schemes that are not on the group's menu, each with what keeps it off."""
    offered = {scheme for each in evidence.groups if each.reason != PINNED for scheme in each.schemes}
    target = str(evidence.request["options"]["target"])
    found = {}
    for scheme in SCHEMES.get(target, ()):
        if scheme in group.schemes:
            continue
        if group.reason == PINNED:
            found[scheme] = "the group is pinned (--fix or --exclude)"
        elif scheme in offered:
            found[scheme] = f"{target} has no such kernel for it: an operation without weights takes float or the widest scheme"
        else:
            found[scheme] = "not allowed: --schemes, or the default for --minimize and the bounds, leaves it out"
    return found


def _tried(measured_plans: Sequence[MeasuredPlan], group: str) -> tuple[Tried, ...]:
    found: dict[Scheme, list[Mapping[str, float]]] = {}
    for allocation, look in measured_plans:
        found.setdefault(allocation[group], []).append(look)
    rows = [
        Tried(scheme, len(seen), min(look["drop"] for look in seen), min(look["divergence"] for look in seen))
        for scheme, seen in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: row.scheme.precision, reverse=True))


def _alone(measured_plans: Sequence[MeasuredPlan], group: str) -> tuple[Alone, ...]:
    """Pairs of measured plans that differ in this group only; the more precise one is before."""
    rest: dict[tuple[tuple[str, str], ...], list[MeasuredPlan]] = {}
    for allocation, look in measured_plans:
        rest.setdefault(tuple(sorted(item for item in allocation.items() if item[0] != group)), []).append((allocation, look))
    found = []
    for same in rest.values():
        ordered = sorted(same, key=lambda look: look[0][group].precision, reverse=True)
        for (one, before), (other, after) in pairwise(ordered):
            found.append(Alone(one[group], other[group], after["drop"] - before["drop"], after["divergence"] - before["divergence"]))
    return tuple(found)


def _losses(predictor: Predictor, allocation: Allocation, name: str) -> tuple[float, float, float, tuple[Partner, ...] | None]:
    """Of the plan's predicted loss: the group's own, half of what it shares with others, the whole; and with whom it shares most."""
    pairs = predictor.interactions
    if pairs is None:
        return predictor.loss.at(name, allocation[name]), 0.0, predictor.loss.total(allocation), None
    row = pairs.index(name, allocation[name])
    own, partners = float(pairs.matrix[row, row]), []
    for group, scheme in allocation.items():
        column = pairs.index(group, scheme)
        both, theirs = float(pairs.matrix[row, column]), float(pairs.matrix[column, column])
        if group != name and both:
            partners.append(Partner(group, scheme, both, both / math.sqrt(own * theirs) if own > 0 and theirs > 0 else 0.0))
    shared = 0.5 * math.fsum(partner.loss for partner in partners)
    strongest = sorted(partners, key=lambda partner: -abs(partner.loss))[:PARTNERS]
    return own / 2, shared, pairs.predicted(allocation), tuple(strongest)


def _flow(evidence: Evidence, name: str) -> tuple[tuple[Reader, ...], tuple[str, ...], int]:
    """Who reads the layer's output, behind movers; the first joins that its error comes to; how many layers lie behind it."""
    graph = evidence.graph
    makers = {layer.node: layer for layer in graph.layers}
    outputs = {layer.name: layer.output for layer in graph.layers}
    known = {tensor.name for tensor in graph.tensors}
    unsupported = {operation.node: operation for operation in graph.unsupported}
    own = evidence.scheme_of(name)

    def reading(tensor: str) -> list[str]:
        return sorted(graph.readers(tensor)) if tensor in known else []

    first = []
    for node in reading(outputs.get(name, name)):
        layer = makers.get(node)
        if node == outputs.get(name, name) or (layer is not None and layer.name == name):  # an output of the network reads itself
            first.append(Reader(node, "output of the network", None, False))
            continue
        scheme = None if layer is None else evidence.scheme_of(layer.name)
        kind = layer.kind if layer is not None else unsupported[node].operation if node in unsupported else "another operation"
        converts = (own is None or own.reads_float) != (scheme is None or scheme.reads_float)
        first.append(Reader(node if layer is None else layer.name, kind, scheme, converts))
    waiting, seen, joins = [outputs.get(name, name)], {name}, []
    while waiting:
        for node in reading(waiting.pop(0)):
            called = makers[node].name if node in makers else node
            if called not in seen:
                seen.add(called)
                waiting += [outputs[called]] if called in outputs else [node] if node in unsupported else []
                joins += [called] if node in makers and makers[node].kind in ("add", "concat", "mul") else []
    return tuple(first), tuple(joins[:PARTNERS]), sum(called in outputs for called in seen - {name})
