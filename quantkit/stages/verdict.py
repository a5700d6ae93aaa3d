"""The file that ships on the gate split: opened here and nowhere before."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.candidates import Candidates
from quantkit.environment import describe, has_vnni
from quantkit.evaluation import evaluate, feeds, open_session
from quantkit.export.executed import Executed
from quantkit.export.static_baseline import NAME as STATIC
from quantkit.export.static_baseline import quantize_with_onnxruntime
from quantkit.metric import Outputs
from quantkit.passes.batches import network_batches
from quantkit.request import Request
from quantkit.result import Baseline, Execution, Files, GroupRow, Result
from quantkit.search import SearchResult
from quantkit.sensitivity import Scores
from quantkit.spec import FLOAT
from quantkit.stages.choice import budget_for, float_outputs, labels_for
from quantkit.stages.network import UNIFORM, Network, example_feeds
from quantkit.stages.tables import Costs
from quantkit.statistics import Verdict
from quantkit.store import write_atomically
from quantkit.verify import Latency, Parity, compare_simulation, executed, int8_share, judge, time_files
from quantkit.workbench import Workbench


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """All that was measured on the final file and on the baselines beside it."""

    allocation: Mapping[str, str]
    files: Files
    budget: float
    verdict: Verdict
    latency: Latency
    baselines: tuple[Baseline, ...]
    executed: Executed
    int8_macs: float
    parity: Parity
    promised_bytes: int


def verify_plan(bench: Workbench, request: Request, network: Network, candidates: Candidates, allocation: Mapping[str, str]) -> Verified:
    """Write the plan's file into the run directory; measure it, float and the uniform baselines on the gate split, in one run."""
    folder, scratch = bench.store.folder, candidates.folder
    final = folder / "model.onnx"
    with write_atomically(final) as temporary:
        emitted = candidates.emitted(allocation, temporary)
    placement = candidates.placement(allocation)
    rivals = _write_baselines(bench, request, network, candidates)
    gate, graph = request.splits.gate, network.captured.graph
    with bench.timed("accuracy"), bench.progress.stage("accuracy on the gate split", 2 + len(rivals), "files") as advance:
        reference = float_outputs(request, network.float_file, gate)
        labels = labels_for(request, gate, reference)
        budget = budget_for(request, reference, labels)
        advance(1)
        verdicts = []
        for path in [final, *rivals.values()]:
            outputs: Outputs = evaluate(
                open_session(path, threads=0, options=network.target.SESSION_OPTIONS), gate, request.options.batch_size
            )
            verdicts.append(judge(request.metric, reference, outputs, labels, budget, request.options.seed))
            advance(1)
    with bench.timed("latency of the files", "time the files side by side"):
        files = [network.float_file, final, *rivals.values()]
        times = time_files(files, example_feeds(request, network), request.options.threads, network.target.SESSION_OPTIONS)
    with bench.timed("simulation"), bench.progress.stage("compare with the simulation", len(gate), "items") as advance:
        parity = compare_simulation(
            network.captured, placement, candidates.bank, final, emitted, gate, request.options.batch_size, scratch, advance
        )
    ran = executed(final, graph, placement, network.target.SESSION_OPTIONS, scratch)
    size = network.float_file.stat().st_size
    rows = [Baseline("float", 0.0, 1.0, 1.0)]
    for (name, path), verdict, time in zip(rivals.items(), verdicts[1:], times[2:], strict=True):
        rows.append(Baseline(name, verdict.drop, time.ratio, path.stat().st_size / size))
    located = Files(final, network.float_file, _write_session(network, folder))
    return Verified(
        allocation, located, budget, verdicts[0], times[1], tuple(rows), ran, int8_share(graph, ran), parity,
        candidates.promised_bytes(allocation),
    )  # fmt: skip


def report(
    bench: Workbench,
    request: Request,
    candidates: Candidates,
    scores: Scores,
    costs: Costs,
    found: SearchResult,
    verified: Verified,
    key: str,
) -> Result:
    """The result object, and the sentences that belong to it."""
    decided = {"kept": True, "broken": False, "undecided": verified.verdict.drop <= verified.budget}
    kept = decided[verified.verdict.decision]
    if verified.verdict.decision == "undecided" and request.options.undecided != "point":
        kept = request.options.undecided == "pass"
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
    before, after = (path.stat().st_size for path in (verified.files.float_onnx, verified.files.onnx))
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
        baselines=verified.baselines,
        allocation=rows,
        executed=execution,
        simulation=verified.parity,
        files=verified.files,
        seconds={stage: round(seconds, 3) for stage, seconds in bench.seconds.items()},
        environment=describe(),
        fingerprint=key,
        notes=_notes(request, found, costs, verified, kept, len(graph.unsupported)),
    )


def _notes(request: Request, found: SearchResult, costs: Costs, verified: Verified, kept: bool, unsupported: int) -> tuple[str, ...]:
    notes = []
    if found.best is None:
        notes.append(
            f"No plan kept the promise on the search split with room to spare; this is the nearest of {len(found.measured)}, "
            f"which lost {found.nearest.measured.drop:.2f} there. The accuracy budget binds: a larger --max-drop or more search items "
            "relax it."
        )
    elif not kept:
        notes.append("The plan passed on the search split and misses on the gate split: more search items, or a larger --max-drop.")
    if all(scheme == FLOAT.name for scheme in verified.allocation.values()):
        notes.append("Nothing that keeps the promise is faster than the float network on this machine, so it stays as it is.")
    if verified.verdict.items_to_decide:
        notes.append(f"About {verified.verdict.items_to_decide} gate items would decide.")
    if request.options.minimize == "latency" and not math.isnan(costs.latency.rank_correlation):
        predicted = costs.latency.predicted_ms(verified.allocation)
        notes.append(
            f"Latency: predicted {predicted:.2f} ms, measured {verified.latency.quantized_ms:.2f} ms; "
            f"rank correlation {costs.latency.rank_correlation:.2f} over {len(costs.latency.tested)} plans that the model never saw."
        )
    if request.options.minimize == "bytes":
        promised, written = verified.promised_bytes, verified.files.onnx.stat().st_size
        notes.append(f"Bytes: promised {promised:,}, written {written:,} ({100 * (written / promised - 1):+.1f} %).")
    if verified.parity.exact < 1:
        reason = "float layers sum in another order in torch"
        notes.append(f"Simulation and file: equal bits on {100 * verified.parity.exact:.1f} % of the items ({reason}).")
    if unsupported:
        notes.append(f"{unsupported} operations have no 8-bit form here and stay float: `quantkit inspect` lists them.")
    return tuple(notes)


def _write_baselines(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> dict[str, Path]:
    uniform = {group.name: UNIFORM for group in candidates.groups}  # whatever the menus: it is what others would ship
    rivals = {f"uniform {UNIFORM}": candidates.emit(uniform, candidates.folder / "uniform.onnx")}
    static = candidates.folder / "static.onnx"
    names = network.captured.graph.inputs
    calibration = network_batches(network.captured.graph, request.splits.calibration, 1)
    with bench.timed("baseline", f"{STATIC} on the calibration items"):
        quantize_with_onnxruntime(network.float_file, (feeds(batch, names) for batch in calibration), static, reduce_range=not has_vnni())
    rivals[STATIC + ("" if has_vnni() else " (reduced range)")] = static
    return rivals


def _write_session(network: Network, folder: Path) -> Path | None:
    options: Mapping[str, Any] = network.target.SESSION_OPTIONS
    if not options:
        return None
    path = folder / "session.json"
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"session_options": dict(options), "onnxruntime": f">={network.target.MINIMUM_RUNTIME}"}))
    return path
