"""The result: whether the promise is kept, what was gained, and the sentences that belong to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit.allocation.prediction.certificate import Certificate
from quantkit.allocation.prediction.predictor import Predictor
from quantkit.allocation.search import SearchResult
from quantkit.core.environment import describe
from quantkit.core.graph import Graph
from quantkit.core.statistics import stands
from quantkit.export.onnx_file import size_bytes
from quantkit.quantization.moments import without_moments
from quantkit.quantization.rounding import BLIND
from quantkit.runs.outcome import Gain, Refused
from quantkit.runs.result import BoundRow, Execution, GroupRow, Result
from quantkit.runs.workbench import Workbench
from quantkit.sensitivity import Scores
from quantkit.settings.request import Request
from quantkit.stages.candidates import Candidates
from quantkit.stages.costs import Costs
from quantkit.stages.make_items import WARNING, is_distilled
from quantkit.stages.refused import is_all_float, refusals
from quantkit.stages.verify import Verified


def report(
    bench: Workbench,
    request: Request,
    candidates: Candidates,
    scores: Scores,
    costs: Costs,
    found: SearchResult,
    verified: Verified,
    bounds: tuple[BoundRow, ...],
    explained: tuple[str, ...],
    certificate: Certificate | None,
    chances: Mapping[str, tuple[float, float]],
    confidence: float,
    key: str,
) -> Result:
    """The result object, and the sentences that belong to it, those that the search `explained` first."""
    accurate = stands(verified.verdict.decision, verified.verdict.drop <= verified.budget, request.options.undecided)
    kept = accurate and all(row.kept for row in bounds)
    graph, allocation = candidates.graph, verified.allocation
    rows = tuple(
        GroupRow(
            group.name, group.layers, allocation[group.name], scores.table.at(group.name, allocation[group.name]),
            costs.sizes.at(group.name, allocation[group.name]), costs.latency.table.at(group.name, allocation[group.name]),
        )
        for group in candidates.groups
    )  # fmt: skip
    ran = verified.executed
    counts = {kind: sum(precision == kind for precision in ran.precisions.values()) for kind in ("int8", "float")}
    execution = Execution(not ran.mismatches, counts["int8"], counts["float"], verified.int8_macs, ran.mismatches)
    before, after = (size_bytes(path) for path in (verified.files.reference, verified.files.onnx))
    taken = {"bytes": after / before, "latency": verified.latency.ratio if verified.latency else 0.0}
    own = 1.0 if is_all_float(allocation) else taken.get(request.options.minimize, 0.0)
    refused = refusals(verified.baselines, own, request.options.minimize, verified.budget, chances, confidence) if kept else ()
    bench.seconds["total"] = sum(seconds for stage, seconds in bench.seconds.items() if stage != "total")
    return Result(
        run=bench.store.folder,
        kept=kept,
        max_drop=verified.budget,
        unit=request.metric.unit,
        metric=request.metric.name,
        verdict=verified.verdict,
        latency=verified.latency,
        bytes={"float": before, "quantized": after, "ratio": after / before},
        baselines=tuple(verified.baselines),
        allocation=rows,
        executed=execution,
        simulation=verified.parity,
        files=verified.files,
        seconds={stage: round(seconds, 3) for stage, seconds in bench.seconds.items()},
        environment={**describe(), **bench.elsewhere},
        fingerprint=key,
        notes=(*_warning(request), *explained, *_notes(bench, request, costs, verified, accurate or found.best is None, refused, graph)),
        bounds=bounds,
        certificate=certificate and replace(certificate, measured_drop=verified.verdict.drop),
        gained=_gain(request, costs, verified) if kept else None,
        refused=refused,
        minimize=request.options.minimize,
        distilled=is_distilled(request),
    )


def _warning(request: Request) -> list[str]:
    return [WARNING.format(count=len(request.splits.gate.dataset))] if is_distilled(request) else []


def _gain(request: Request, costs: Costs, verified: Verified) -> Gain | None:
    """What the file takes less of than the float network, of what was to be made small; None where that is not measurably less."""
    goal, latency = request.options.minimize, verified.latency
    name = next(iter(request.options.bounds.given())) if goal == "drop" else goal
    ratio = most = costs.resources[name].total(verified.allocation) / costs.floats[name]
    if name == "bytes":
        ratio = most = size_bytes(verified.files.onnx) / size_bytes(verified.files.reference)
    elif name == "latency" and latency is not None:
        ratio, most = latency.ratio, latency.high
    measured = name != "latency" or latency is not None
    return Gain(name, ratio, measured, verified.verdict.decision == "kept") if most < 1 and not is_all_float(verified.allocation) else None


def check_bounds(request: Request, predictor: Predictor, verified: Verified) -> tuple[BoundRow, ...]:
    """What the file takes, and its time where it was measured; what operations and bits the plan counts."""
    used = predictor.used(verified.allocation) | {"bytes": float(size_bytes(verified.files.onnx))}
    floats = dict(predictor.floats)
    if verified.latency is not None:
        floats["latency"], used["latency"] = verified.latency.float_ms, verified.latency.ratio * verified.latency.float_ms
    rows = []
    for name, bound in request.options.bounds.given().items():
        at_most = bound.at_most(floats[name])
        rows.append(BoundRow(name, at_most, used[name], used[name] <= at_most))
    return tuple(rows)


def _notes(
    bench: Workbench, request: Request, costs: Costs, verified: Verified, kept: bool, refused: Sequence[Refused], graph: Graph
) -> tuple[str, ...]:
    notes = []
    if not kept:
        notes.append("The plan passed on the search split and misses on the gate split: more search items, or a larger --max-drop.")
    if not is_all_float(verified.allocation):
        notes += [f"Not chosen, though it keeps the budget on these items: {row.words()}." for row in refused]
    if verified.verdict.items_to_decide:
        notes.append(f"About {verified.verdict.items_to_decide} gate items would decide.")
    if verified.latency is None:
        model = costs.latency.table.name
        notes.append(f"No latency: {request.options.target} does not run here, so costs are modelled ({model}) and nothing was timed.")
    elif (request.options.minimize == "latency" or request.options.bounds.latency) and not math.isnan(costs.latency.rank_correlation):
        predicted = costs.latency.predicted_ms(verified.allocation)
        notes.append(
            f"Latency: predicted {predicted:.2f} ms, measured {verified.latency.quantized_ms:.2f} ms; "
            f"rank correlation {costs.latency.rank_correlation:.2f} over {len(costs.latency.tested)} held-out plans."
        )
    notes += [f"Latency: measured on {device}, by --latency-workers; all else on this machine." for device in bench.elsewhere.values()]
    if request.options.minimize == "bytes" and verified.promised_bytes is not None:
        promised, written = verified.promised_bytes, size_bytes(verified.files.onnx)
        notes.append(f"Bytes: promised {promised:,}, written {written:,} ({100 * (written / promised - 1):+.1f} %).")
    notes += [*verified.parity.notes(), *filter(None, [verified.parity.of(len(request.splits.gate))])]
    if graph.unsupported:
        notes.append(f"{len(graph.unsupported)} operations have no 8-bit form here and stay float: `quantkit inspect` lists them.")
    nearest = without_moments(graph) if request.options.rounding not in BLIND else ()
    if nearest:
        notes.append(f"Rounded to the nearest codes, as they have too many inputs for {request.options.rounding}: {', '.join(nearest)}.")
    return tuple(notes)
