"""The whole job on one page: load → capture → groups → calibrate → score → cost → front → search → emit → verify → report.

Each stage takes frozen data and returns frozen data; what it returns is kept in the run directory under the fingerprint of all that it
depends on, so that a second call repeats nothing. The search sees the calibration and search splits; the gate split is opened once,
at the end, by `verify_plan`; before all work its items are only read, with the others', to refuse what cannot be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from quantkit.allocation import MeasuredLoss, Plan
from quantkit.allocation.costs.overview import Overview, overview
from quantkit.allocation.prediction.certificate import Certificate
from quantkit.allocation.prediction.predictor import Predictor, front_report, write_predictor
from quantkit.allocation.search import SearchResult, Space, Trial
from quantkit.core.errors import CaptureError
from quantkit.core.graph import Graph, Group
from quantkit.core.progress import Progress
from quantkit.core.store import Run, write_atomically
from quantkit.export.onnx_file import copy, saved
from quantkit.gating import lock_result
from quantkit.loading import LoadedModel
from quantkit.network.capture import capture
from quantkit.runs.cluster import open_workers
from quantkit.runs.device_worker import open_device
from quantkit.runs.progress_file import ProgressFile
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import forget_pick
from quantkit.runs.workbench import Workbench, scratch_folder
from quantkit.sensitivity import Scores
from quantkit.settings.arguments import Arguments
from quantkit.settings.options import Options
from quantkit.settings.request import Request, Source, resolve, resolve_streamed
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network, capture_network, network_of
from quantkit.stages.certify import certificate_of, certify, learn, refit
from quantkit.stages.costs import Costs, cost_groups
from quantkit.stages.drop_in import write_drop_in
from quantkit.stages.effort import forget_dominated, round_for_search, round_once_more
from quantkit.stages.finalists import choose
from quantkit.stages.front import find_front
from quantkit.stages.groups import find_groups
from quantkit.stages.items import check_items
from quantkit.stages.judge import Judge, open_judge
from quantkit.stages.latency_bound import keep_latency
from quantkit.stages.make_items import make_items
from quantkit.stages.plan_file import plan_frame, write_plan
from quantkit.stages.ranges import calibrate_ranges
from quantkit.stages.refused import find_alternative, search_chances
from quantkit.stages.request_record import job_fingerprint, request_inputs, write_request
from quantkit.stages.scores import score_groups
from quantkit.stages.search import explain, measure_anchors, new_anchors, search
from quantkit.stages.stored_result import keep_result
from quantkit.stages.variants import write_variants
from quantkit.stages.verdict import check_bounds, report
from quantkit.stages.verify import verify_plan
from quantkit.stages.weights import prepare_candidates
from quantkit.streaming.job import run as run_streamed
from quantkit.targets import find_target

__all__ = ["Inspection", "Measurement", "Result", "allocate", "inspect", "measure", "run"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What can be decided about a network, before anything is. `behind`: operators that stay behind it as they are in the user's file."""

    graph: Graph
    groups: tuple[Group, ...]
    overview: Overview
    behind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """Where everything lies that was measured, and the front that follows from it."""

    run: Path
    front: Mapping[str, Any]
    seconds: Mapping[str, float]


def inspect(model: LoadedModel, example: Mapping[str, Tensor] | None, options: Options) -> Inspection:
    """The groups of `model` and what stays float. Raises CaptureError where torch.export refuses the network."""
    captured = capture(network_of(model), example or {}, outputs=model.outputs)
    groups = find_groups(captured.graph, options)
    behind = model.file.rest.kinds if model.file is not None and model.file.rest is not None else ()
    return Inspection(captured.graph, groups, overview(captured.graph, groups, find_target(options.target)), behind)


@contextmanager
def _begun(request: Request, progress: Progress, command: str, job: str) -> Iterator[tuple[Workbench, Request, Network, Path]]:
    """The workbench in the run directory, the request with its items, the captured network, and a folder for temporary files."""
    folder = (request.options.run or Path("runs") / f"{request.model.name}-{job[:8]}").absolute()
    told = ProgressFile(progress, folder)
    options, package = request.options, find_target(request.options.target).PACKAGE
    with (
        Run(folder) as store, scratch_folder(store) as scratch, told, open_workers(options.workers, told) as workers,
        open_device(options.latency_workers, package, scratch) as device,
    ):  # fmt: skip
        bench = Workbench(store, told, options.time_limit_s, workers, device)
        request = make_items(bench, request)
        check_items(bench, request)
        network = capture_network(bench, request)
        bench.begin(command, {**request_inputs(request, network), **bench.elsewhere}, network.files)
        yield bench, request, network, scratch


def allocate(source: Source, arguments: Arguments, progress: Progress) -> Result:
    """As `run` of what was asked; block by block where that was asked too. Raises RequestError for a wrong request."""
    if arguments.get("streamed"):
        return run_streamed(resolve_streamed(source, arguments), progress)
    return run(resolve(source, arguments), progress)


def run(request: Request, progress: Progress) -> Result:
    """Allocate, export and judge. A promise that no plan keeps is not an error: `kept` is then False and the nearest plan is written."""
    job = job_fingerprint(request)
    with _begun(request, progress, "allocate", job) as (bench, request, network, scratch):
        folder = bench.store.folder
        forget_pick(folder)
        result = keep_result(bench, job, network, lambda: _allocate(bench, request, network, scratch, job))
        with write_atomically(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(result.to_json(), indent=2, allow_nan=False))
        if request.options.output:
            with saved(request.options.output.absolute()) as temporary:
                copy(result.delivered, temporary)
        lock_result(request, result)
        bench.end(result.kept)
    return result


def measure(request: Request, progress: Progress) -> Measurement:
    """Every stage up to the tables and the front, and a few plans evaluated: all that `pick` needs and `run` reuses."""
    with _begun(request, progress, "measure", job_fingerprint(request)) as (bench, request, network, scratch):
        tables = _measure(bench, request, network, scratch)
        with progress.stage("evaluate a few plans", new_anchors(tables.judge, tables.space), "plans") as advance:
            measure_anchors(bench, tables.judge, tables.space, advance)
        front = tables.write_front(bench)
        bench.end(True)
        return Measurement(bench.store.folder, front, bench.seconds)


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What is known once everything is scored and costed, and predictions are fitted: `prior` is as it was before, `seen` to what."""

    candidates: Candidates
    frame: Mapping[str, Any]
    scores: Scores
    costs: Costs
    prior: Predictor
    predictor: Predictor
    space: Space
    judge: Judge
    seen: tuple[MeasuredLoss, ...]

    def refitted(self, bench: Workbench, request: Request, seen: tuple[MeasuredLoss, ...]) -> _Tables:
        """The same with `seen` among what predictions are fitted to."""
        predictor = refit(self.prior, (*self.seen, *seen))
        again = replace(self, predictor=predictor, space=find_front(bench, request, predictor, "refitted_front"), seen=(*self.seen, *seen))
        again.write(bench, request)
        return again

    def write(self, bench: Workbench, request: Request) -> None:
        """tables.json."""
        told = {"judging": self.judge.settings(), "latency_fit": self.costs.latency.fit()}
        write_predictor(bench.store, self.predictor, {"minimize": request.options.minimize, "plan": self.frame, **told})

    def write_front(self, bench: Workbench) -> dict[str, Any]:
        """front.json, with all that was measured so far."""
        report = front_report(self.predictor, self.space, self.judge.measured_plans(), self.judge.near)
        with write_atomically(bench.store.folder / "front.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1, allow_nan=False))
        return report


def _measure(bench: Workbench, request: Request, network: Network, scratch: Path) -> _Tables:
    write_request(request, network, bench.store.folder)
    groups = find_groups(network.captured.graph, request.options)
    if not groups:
        reasons = sorted({refused.reason for refused in network.captured.graph.unsupported})[:3]
        raise CaptureError(
            f"nothing in the network can be quantized: {', '.join(reasons) or 'it has no operation with weights'}",
            "a convolution, a linear layer, or a sum of activations",
            "see `quantkit inspect` for every operation and why it stays float",
        )
    ranges = calibrate_ranges(bench, request, network)
    candidates = round_for_search(bench, request, network, prepare_candidates(bench, request, network, groups, ranges, scratch))
    scores = score_groups(bench, request, network, candidates)
    costs = cost_groups(bench, request, network, candidates)
    predictor = Predictor(groups, scores.table, scores.interactions, costs.resources, costs.floats, costs.sizes, request.options.seed)
    space = find_front(bench, request, predictor)
    judge = open_judge(bench, request, candidates)
    frame = plan_frame(request, network, candidates, ranges)
    fitted, seen = learn(bench, request, judge, predictor, space)
    if seen:
        space = find_front(bench, request, fitted, "fitted_front")
    tables = _Tables(candidates, frame, scores, costs, predictor, fitted, space, judge, seen)
    tables.write(bench, request)
    return tables


def _allocate(bench: Workbench, request: Request, network: Network, scratch: Path, job: str) -> Result:
    tables, certificate, tested, walked = _certified(bench, request, _measure(bench, request, network, scratch))
    found, plan = _searched(bench, request, network, tables, walked)
    if certificate is not None:
        certificate = certificate_of(certificate, plan, tables.judge, tables.predictor)
    tables.write_front(bench)
    forget_dominated(tables.judge, tables.space, [allocation for allocation, _ in (*tables.seen, *tested)], plan.allocation)
    candidates, rounded = round_once_more(bench, request, network, tables.judge, tables.candidates, plan.allocation)
    write_plan(bench, candidates, tables.frame, plan.allocation)
    alternative = find_alternative(tables.space, found, plan)
    verified = verify_plan(bench, request, network, candidates, plan.allocation, alternative)
    variants = write_variants(bench, request, candidates, plan.allocation)
    variants += write_drop_in(bench, request, network, candidates, verified)
    bounds = check_bounds(request, tables.predictor, verified)
    explained = (*explain(request, tables.judge, tables.space, found), *rounded)
    chances, confidence = search_chances(candidates, found, alternative), tables.judge.confidence
    result = report(
        bench, request, candidates, tables.scores, tables.costs, found, verified, bounds, explained, certificate, chances, confidence, job
    )
    return replace(result, variants=variants)


def _certified(
    bench: Workbench, request: Request, tables: _Tables
) -> tuple[_Tables, Certificate | None, tuple[MeasuredLoss, ...], tuple[Trial, ...]]:
    """The tables with predictions that were tested about the plan where the search first gets to, before its last touches; what was
    measured for it, and the trials on the way. Where that plan is out of the band, what was measured is learned from, and tested again.
    """

    def walked() -> SearchResult:
        return search(bench, request, tables.judge, tables.predictor, replace(tables.space, tie=None), repairs=0)

    def tested(plan: Plan, refits: int) -> tuple[Certificate | None, tuple[MeasuredLoss, ...]]:
        return certify(bench, request, tables.judge, tables.prior, tables.predictor, tables.scores.gram, plan, tables.seen, refits)

    if not request.options.tested_plans:
        return tables, None, (), ()
    first = walked()
    certificate, seen = tested(first.nearest.plan, 0)
    if certificate is None or certificate.is_within_band:
        return tables, certificate, seen, first.measured
    tables = tables.refitted(bench, request, seen)
    second = walked()
    return tables, *tested(second.nearest.plan, 1), (*first.measured, *second.measured)


def _searched(
    bench: Workbench, request: Request, network: Network, tables: _Tables, before: Sequence[Trial]
) -> tuple[SearchResult, Plan]:
    """What the search found and the plan that is chosen of it, as fast as asked; trials `before` it count too, so that no answer is worse
    than the last.
    """
    found = _search_under(bench, request, network, tables, before)

    def again(asked: Request, last: SearchResult) -> tuple[SearchResult, Plan] | None:
        space = find_front(bench, asked, tables.predictor, "bounded_front")
        return None if space.shortage else _search_under(bench, asked, network, replace(tables, space=space), last.measured)

    return keep_latency(bench, request, network, tables.candidates, found, again)


def _search_under(
    bench: Workbench, request: Request, network: Network, tables: _Tables, before: Sequence[Trial]
) -> tuple[SearchResult, Plan]:
    found = search(bench, request, tables.judge, tables.predictor, tables.space)
    known = [trial.plan.allocation for trial in found.measured]
    more = {tuple(trial.plan.allocation.items()): trial for trial in before if trial.plan.allocation not in known}
    older = [Trial(tables.space.plan(trial.plan.allocation), trial.measured) for trial in more.values()]
    found = found.extended(tables.space, older)
    return found, choose(bench, request, network, tables.candidates, tables.space, found, tables.costs)
