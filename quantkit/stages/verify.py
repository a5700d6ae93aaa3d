"""The file that ships on the gate split: opened here and nowhere before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.allocation.costs.measured import PROFILE_RUNS, layer_ms
from quantkit.allocation.search import Trial
from quantkit.core.environment import describe
from quantkit.core.metric import Outputs
from quantkit.core.spec import Allocation
from quantkit.core.statistics import Verdict
from quantkit.core.store import write_atomically
from quantkit.data import KeptBatches, Subset
from quantkit.export.companions import write_companions
from quantkit.export.executed_layers import Executed
from quantkit.export.onnx_file import saved, size_bytes
from quantkit.export.session_file import write_session
from quantkit.runs.result import Baseline, Files
from quantkit.runs.workbench import Plain, Workbench
from quantkit.runtimes import Rival
from quantkit.runtimes.evaluation import evaluate, feeds, items_at_once
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, example_feeds
from quantkit.stages.judge import budget_for, labels_for
from quantkit.stages.refused import write_alternative
from quantkit.stages.weights import UNIFORM
from quantkit.verification.parity import Parity, compare_enough, compare_outputs, compare_simulation
from quantkit.verification.sittings import TimedFile
from quantkit.verification.verify import Latency, int8_share, judge, time_apart

if TYPE_CHECKING:
    from quantkit.settings.request import Request


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """All that was measured on the final file and on the baselines beside it, each with the items that would decide it."""

    allocation: Allocation
    files: Files
    budget: float
    verdict: Verdict
    latency: Latency | None
    baselines: Mapping[Baseline, int | None]
    executed: Executed
    int8_macs: float
    parity: Parity
    promised_bytes: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Accuracy:
    """The plan's verdict on the gate split, the budget in the metric's unit; of rivals name, bytes, drop and items needed."""

    budget: float
    verdict: Verdict
    rivals: tuple[tuple[str, int, float, int | None], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"budget": self.budget, "verdict": self.verdict.to_json(), "rivals": [list(row) for row in self.rivals]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Accuracy:
        """The inverse of `to_json`."""
        return cls(data["budget"], Verdict(**data["verdict"]), tuple((name, size, drop, n) for name, size, drop, n in data["rivals"]))


def verify_plan(
    bench: Workbench, request: Request, network: Network, candidates: Candidates, allocation: Allocation, alternative: Trial | None
) -> Verified:
    """Write the plan's file into the run directory; measure it, float and the uniform baselines on the gate split, in one run.

    With an `alternative`, that plan's file is written beside it, and is one of the baselines.
    """
    final, scratch = bench.store.folder / "model.onnx", candidates.folder
    with saved(final) as temporary:
        emitted = candidates.emit(allocation, temporary)
    gate, options, host = request.splits.gate, network.target.SESSION_OPTIONS, describe()
    beside = write_alternative(candidates, bench.store.folder, alternative)
    rivals = cache(lambda: [*_write_rivals(bench, request, network, candidates), *beside])
    on = {
        "weights": candidates.weights_key(allocation), "plan": dict(allocation),
        "alternative": alternative and dict(alternative.plan.allocation),
        "calibration data": request.splits.calibration.fingerprint(),
        "batch_size": request.options.batch_size,
    }  # fmt: skip
    judged = {
        "gate data": gate.fingerprint(), "metric": [request.metric.name, request.metric.source], "max drop": asdict(request.budget),
        "seed": request.options.seed,
    }  # fmt: skip
    here = {**on, "processor": host["cpu"], "integer instructions": host["isa"]}
    accuracy = bench.keep(
        "accuracy", {**here, **judged}, lambda: _judge(bench, request, network, candidates, final, rivals()), Accuracy.from_json
    )
    timed = bench.keep(
        "file_latency", {**on, **bench.timed_on, "threads": request.options.threads},
        lambda: _time(bench, request, network, candidates, final, rivals()), Plain,
    )  # fmt: skip
    times = [Latency(**row) for row in timed.value]

    def simulate(some: Subset) -> Parity:
        with bench.progress.stage("compare with the simulation", len(some), "items") as advance:
            placement, bank, batch = candidates.placement(allocation), candidates.weights(allocation), request.options.batch_size
            if candidates.runtime.SHOWS_CODES:
                return compare_simulation(
                    network.captured, placement, bank, final, emitted, some, batch, scratch, advance, options
                )  # fmt: skip
            session = candidates.open(final, threads=0)
            return compare_outputs(network.captured, placement, bank, session, some, batch, advance)

    _profile(bench, request, network, candidates, final)
    on_gate = {**here, "gate data": gate.fingerprint()}
    parity = bench.keep("simulation", on_gate, lambda: compare_enough(gate, simulate), Parity.from_json)
    ran = candidates.runtime.read_executed(final, candidates.graph, candidates.placement(allocation), options, scratch)
    size = size_bytes(network.float_file)
    rows: dict[Baseline, int | None] = {Baseline("float", 0.0, 1.0 if times else None, 1.0): None}
    for place, (name, bytes_, drop, items) in enumerate(accuracy.rivals):
        rows[Baseline(name, drop, times[2 + place].ratio if times else None, bytes_ / size)] = items
    write_companions(final, candidates.graph, request.options.target)
    located = Files(final, network.float_file, write_session(network.target, bench.store.folder), beside[0].path if beside else None)
    return Verified(
        allocation, located, accuracy.budget, accuracy.verdict, times[1] if times else None, rows, ran,
        int8_share(candidates.graph, ran), parity, candidates.promised_bytes(allocation),
    )  # fmt: skip


def _write_rivals(bench: Workbench, request: Request, network: Network, candidates: Candidates) -> list[Rival]:
    """Our own uniform plan, whatever the menus, as it is what others would ship, and what the runtime's users have."""
    uniform = candidates.folder / "uniform.onnx"
    candidates.emit({group.name: UNIFORM for group in candidates.groups}, uniform)
    names = network.captured.graph.inputs
    calibration = network_batches(network.captured.graph, request.splits.calibration, 1)
    with bench.timed("baselines", "baselines on the calibration items"):
        theirs = candidates.runtime.write_rivals(network.float_file, (feeds(batch, names) for batch in calibration), candidates.folder)
    return [Rival(f"uniform {UNIFORM}", uniform, size_bytes(uniform)), *theirs]


def _judge(bench: Workbench, request: Request, network: Network, candidates: Candidates, final: Path, rivals: Sequence[Rival]) -> Accuracy:
    """Every file on the gate split, against the float file."""
    gate, options = request.splits.gate, network.target.SESSION_OPTIONS
    items, session, size = KeptBatches(gate), candidates.open(candidates.float_file, threads=0), request.options.batch_size
    with bench.progress.stage("read the gate split", len(gate), "items") as advance:
        items.read(items_at_once(session, size), advance)
    with bench.progress.stage("accuracy on the gate split", (2 + len(rivals)) * len(gate), "items") as advance:
        reference = evaluate(session, items, size, None, advance)
        labels = labels_for(request, gate, reference)
        budget = budget_for(request, reference, labels)
        verdicts = []
        for path, own in [(final, options), *((rival.path, {**options, **rival.options}) for rival in rivals)]:
            session = candidates.runtime.open_file(path, threads=0, options=own)
            outputs: Outputs = evaluate(session, items, size, None, advance)
            verdicts.append(judge(request.metric, reference, outputs, labels, budget, request.options.seed))
    mine, *theirs = verdicts
    rows = ((rival.name, rival.bytes, verdict.drop, verdict.items_to_decide) for rival, verdict in zip(rivals, theirs, strict=True))
    return Accuracy(budget, mine, tuple(rows))


def _time(bench: Workbench, request: Request, network: Network, candidates: Candidates, final: Path, rivals: Sequence[Rival]) -> Plain:
    """The float file, the plan's and the rivals', timed side by side; nothing where times mean nothing."""
    if not candidates.runtime.TIMES:
        return Plain([])
    options, timing = network.target.SESSION_OPTIONS, candidates.timing(request.options.threads, example_feeds(request, network))
    files = [TimedFile(network.float_file, options), TimedFile(final, options)]
    files += [TimedFile(rival.path, {**options, **rival.options}) for rival in rivals]
    with bench.progress.stage("time the files side by side"):
        return Plain([asdict(latency) for latency in bench.device.run(time_apart, [file.path for file in files], (timing, files))])


def _profile(bench: Workbench, request: Request, network: Network, candidates: Candidates, final: Path) -> None:
    """profile.json in the run directory: the milliseconds of each layer's own nodes in the float file and in the plan's, for the report."""
    if not candidates.runtime.TIMES:
        return
    timing, found = candidates.timing(request.options.threads, example_feeds(request, network)), {}
    with bench.timed("time of the layers", "time the layers of both files"):
        for name, path in (("float", network.float_file), ("plan", final)):
            found[name] = bench.device.run(layer_ms, [path], (timing, candidates.graph))
    with write_atomically(bench.store.folder / "profile.json") as temporary:
        temporary.write_text(json.dumps({"unit": "ms", "runs": PROFILE_RUNS, "threads": timing.threads, **found}))
