"""The whole streamed job on one page: blocks → front → search → write → judge → verify → result."""

from __future__ import annotations

import fnmatch
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.core.environment import describe
from quantkit.core.errors import OutputError, SchemeError
from quantkit.core.progress import Progress
from quantkit.core.sources import code_of
from quantkit.core.spec import BLOCK_SIZES, FLOAT, Allocation, Scheme, parse_allocation
from quantkit.core.statistics import SURE, Verdict, stands
from quantkit.core.store import Run, fingerprint, write_atomically
from quantkit.export.onnx_file import copy, data_of, saved, size_bytes
from quantkit.loading.folder import hash_folder
from quantkit.quantization.rounding import BLIND
from quantkit.runs.maintenance import STREAMED
from quantkit.runs.outcome import Gain
from quantkit.runs.progress_file import ProgressFile
from quantkit.runs.result import Baseline, BoundRow, Execution, Files, GroupRow, Result
from quantkit.runs.workbench import Workbench, scratch_folder
from quantkit.runtimes.ort_cpu import run_operators
from quantkit.settings.streamed import StreamedRequest
from quantkit.streaming import files, passes
from quantkit.streaming.checkpoint import Checkpoint
from quantkit.streaming.files import empty_cache, not_as_planned, planned_products, write_decoder, write_model, write_outlines
from quantkit.streaming.items import read_tokens
from quantkit.streaming.passes import Work, run_blocks
from quantkit.streaming.plans import Choices, bits, front, uniform_plans
from quantkit.streaming.rounding import can_use, is_float, weights_of
from quantkit.streaming.search import Bench, Found, answers, bisect
from quantkit.streaming.shelf import Shelf
from quantkit.streaming.simulation import simulate
from quantkit.streaming.skeleton import Skeleton
from quantkit.verification.parity import Parity

MODEL, DECODER = "model.onnx", "decoder.onnx"
SCALE_BITS = 1  # of a scale for each 32 weights
COMPARED = 2  # items on which the file is held against its simulation
NO_FLOAT = "No float file is written: the float network's losses come from torch, block by block."
UNTIMED = "No latency: nothing was timed."


def run(request: StreamedRequest, progress: Progress) -> Result:
    """Allocate, write and judge, block by block. A promise that no plan keeps is not an error: see `Result.kept`."""
    check_schemes([*request.options.menu, *(scheme for _, scheme in request.options.fix)])
    checkpoint = Checkpoint(request.folder)
    skeleton, tokens = Skeleton(request.folder, checkpoint), read_tokens(request.splits)
    splits = [part.fingerprint() for part in (request.splits.calibration, request.splits.search, request.splits.gate)]
    with progress.stage("read the folder"):
        digest = hash_folder(request.folder)
    key = fingerprint(digest, splits, _options(request), code_of(passes.__name__), describe())
    outline_key = fingerprint(digest, code_of(files.__name__), describe())
    folder = (request.options.run or Path("runs") / f"{request.name}-{key[:8]}").absolute()
    told = ProgressFile(progress, folder)
    with Run(folder) as store, scratch_folder(store) as scratch, told:
        bench = Workbench(store, told, request.options.time_limit_s)
        named = {"weights of the network": digest, **dict(zip(("calibration data", "search data", "gate data"), splits, strict=True))}
        bench.begin(STREAMED, named, ())
        shelf, memory_bytes = Shelf(folder, key, outline_key), request.options.memory_mb << 20
        work = Work(skeleton, tokens, shelf, _menu(request), request.options.rounding, memory_bytes)
        check_space(work)
        result = _allocate(bench, request, work, key, scratch)
        with write_atomically(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(result.to_json(), indent=2, allow_nan=False))
        if request.options.output:
            with saved(request.options.output.absolute()) as temporary:
                copy(result.files.onnx, temporary)
        bench.end(result.kept)
    return result


def check_schemes(menu: Sequence[str]) -> None:
    """Raises SchemeError for a scheme that a streamed job has not."""
    for scheme in parse_allocation({name: name for name in menu}).values():
        if not is_float(scheme):
            weights_of(scheme, max(BLOCK_SIZES))


def check_space(work: Work) -> None:
    """Raises OutputError where the disk has no room for all codes, those of the file once more, and hidden states of two blocks."""
    skeleton, tokens, folder = work.skeleton, work.tokens, work.shelf.folder
    there = sum(path.stat().st_size for path in folder.glob("*.bin"))
    each = [bits(scheme) + SCALE_BITS for scheme in work.menu("")]
    needed = skeleton.checkpoint.weights * (sum(each) + max(each)) // 8 + 8 * len(tokens) * tokens.length * skeleton.width - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        got = f"{free / 1e9:.1f} GB free in {folder}"
        raise OutputError(got, f"{needed / 1e9:.1f} GB, for the codes of all schemes and the file", "free some, or choose another --run")


def _options(request: StreamedRequest) -> dict[str, Any]:
    """What decides codes and losses."""
    options = request.options
    return {
        "schemes": list(options.menu), "fix": list(options.fix), "exclude": list(options.exclude), "rounding": options.rounding,
        "seed": options.seed,
    }  # fmt: skip


def _menu(request: StreamedRequest) -> Callable[[str], tuple[Scheme, ...]]:
    """The schemes of a group: the menu, or its pin, or float."""
    menu = tuple(parse_allocation({name: name for name in request.options.menu}).values())
    pins = parse_allocation(dict(request.options.fix))

    def of(group: str) -> tuple[Scheme, ...]:
        if any(fnmatch.fnmatchcase(group, pattern) for pattern in request.options.exclude):
            return (FLOAT,)
        return (pins[group],) if group in pins else menu

    return of


def _allocate(bench: Workbench, request: StreamedRequest, work: Work, key: str, scratch: Path) -> Result:
    options = request.options
    with bench.timed("blocks"), bench.progress.stage("blocks", work.skeleton.blocks + 1, "blocks") as advance:
        passed = run_blocks(work, advance)
    choices = Choices(passed.records, passed.table.table.bytes, work.skeleton.checkpoint.weights)
    unknown = sorted({name for name, _ in options.fix} - choices.groups.keys())
    if unknown:
        raise SchemeError(f"--fix {unknown[0]}", "a group of the network", f"such as {next(iter(choices.groups))}")
    with bench.timed("outline", "write the graph without weights"):
        uncached = write_outlines(work)
    confidence = SURE if options.confidence is None else options.confidence
    judge = Bench(
        work, choices, passed, fingerprint(key, code_of(__name__)), request.metric, request.budget.points, confidence,
        options.threads, options.seed,
    )  # fmt: skip
    with bench.timed("front"):
        plans = front(choices, options.bounds, smaller=options.minimize == "bytes")
    most = 2 + math.ceil(math.log2(len(plans) + 1))
    with bench.timed("search"), bench.progress.stage("candidates", most, "files") as advance:
        found = bisect(judge, plans, bench.is_late, advance, smallest=options.minimize == "bytes")
    model = bench.store.folder / MODEL
    with bench.timed("emit", "write the file"):
        parts = judge.parts(found.plan)
        write_model(work, parts, model)
        if not uncached:
            write_decoder(work, parts, bench.store.folder / DECODER, data_of(model))
    menu = [scheme for scheme in parse_allocation({name: name for name in options.menu}).values() if not is_float(scheme)]
    uniform = uniform_plans(choices, menu)
    with bench.timed("accuracy"), bench.progress.stage("gate", len(uniform) + 1, "files") as advance:
        verdict = judge.judge(found.plan, work.tokens.gate_part, model)
        advance(1)
        drops = {}
        for name, plan in uniform.items():
            drops[name] = judge.judge(plan, work.tokens.gate_part).drop
            advance(1)
    with bench.timed("verify", "compare with the simulation"):
        executed, parity, apart = _verify(judge, found.plan, model, scratch)
        cache = f"{DECODER} is not written: {uncached}" if uncached else _check_cache(judge, model, bench.store.folder / DECODER)
    return _result(bench, request, judge, found, verdict, drops, executed, parity, (apart, cache), key)


def _verify(judge: Bench, plan: Allocation, model: Path, scratch: Path) -> tuple[Execution, Parity, str]:
    """What ran, on one item; how the file's scores compare with the simulation's on COMPARED items, and that in words."""
    tokens, parts = judge.work.tokens, judge.parts(plan)
    ids, mask = tokens.ids[tokens.gate_part][:COMPARED], tokens.mask[tokens.gate_part][:COMPARED]
    ran = run_operators(model, {"input_ids": ids[:1].numpy(), "attention_mask": mask[:1].numpy()}, scratch)
    mismatches = not_as_planned(model, parts, ran)
    levels = planned_products(parts)
    counts = judge.choices.counts
    integers = [name for name, (_, level) in levels.items() if level == 4]
    share = sum(counts[name] for name in integers) / sum(counts.values())
    executed = Execution(not mismatches, len(integers), len(counts) - len(integers), share, tuple(mismatches))
    theirs, mine = answers(judge.open(model), ids, mask), simulate(judge.work, judge.choices, plan, ids, mask).numpy()
    known = mask.numpy() > 0
    theirs, mine = theirs[known], mine[known]
    agreement = float((theirs.argmax(axis=-1) == mine.argmax(axis=-1)).mean())
    apart = float(np.abs(theirs - mine).max() / np.abs(mine).max())
    told = f"On {len(ids)} items its scores differ from the simulation's by at most {apart:.2g} of the largest."
    return executed, Parity(len(ids), agreement, float((theirs == mine).all()), None), told


def _check_cache(judge: Bench, model: Path, decoder: Path) -> str:
    """How far decoder.onnx, given the last token of an item behind the cache of the others, is from the whole window's scores."""
    skeleton, tokens = judge.work.skeleton, judge.work.tokens
    ids = tokens.ids[tokens.gate_part][:1]
    mask = np.ones(tuple(ids.shape), np.int64)
    whole = judge.open(model).run({"input_ids": ids.numpy(), "attention_mask": mask})[0]
    session = judge.open(decoder)
    first = session.run({"input_ids": ids[:, :-1].numpy(), "attention_mask": mask[:, :-1], **empty_cache(skeleton, 1)})
    past = dict(zip(empty_cache(skeleton, 1), first[1:], strict=True))
    last = session.run({"input_ids": ids[:, -1:].numpy(), "attention_mask": mask, **past})[0]
    apart = float(np.abs(last[:, -1] - whole[:, -1]).max() / np.abs(whole).max())
    return f"{DECODER} reads the same weights, with a cache; one step of it differs by {apart:.2g} from the window's scores."


def _result(
    bench: Workbench, request: StreamedRequest, judge: Bench, found: Found, verdict: Verdict, drops: Mapping[str, float],
    executed: Execution, parity: Parity, compared: Sequence[str], key: str,
) -> Result:  # fmt: skip
    choices, plan, model, options = judge.choices, found.plan, bench.store.folder / MODEL, request.options
    budget = request.budget.points(verdict.float)
    before, after = 4.0 * choices.weights, float(size_bytes(model))
    bounds = _bounds(request, choices, plan, before, after)
    kept = stands(verdict.decision, verdict.drop <= budget, options.undecided) and all(row.kept for row in bounds)
    graph = after - choices.bytes(plan)  # as large whatever the plan
    baselines = tuple(
        Baseline(f"uniform {name}", drop, None, (choices.bytes(choices.uniform(name)) + graph) / before) for name, drop in drops.items()
    )
    rows = tuple(
        GroupRow(name, choices.groups[name], scheme, choices.loss[name][scheme], float(choices.bytes_of(name, scheme)), None)
        for name, scheme in plan.items()
    )
    told = f"{choices.average_bits(plan):.2f} bits a weight on average, scales and the table of tokens aside."
    notes = [told, NO_FLOAT, UNTIMED, *compared]
    if not found.sure:
        notes.append("No plan of the front was sure enough on the search split: the most careful one is written.")
    wide = [name for name in judge.work.skeleton.linears if not can_use(judge.work.skeleton.inputs(name))]
    if wide and options.rounding not in BLIND:
        notes.append(f"Rounded to the nearest codes, as they have too many inputs for {options.rounding}: {', '.join(wide)} of all blocks.")
    if verdict.items_to_decide:
        notes.append(f"About {verdict.items_to_decide} gate items would decide.")
    gained = Gain("bytes", after / before, True, verdict.decision == "kept") if kept and after < before else None
    return Result(
        run=bench.store.folder, kept=kept, max_drop=budget, unit=request.metric.unit, metric=request.metric.name, verdict=verdict,
        latency=None, bytes={"float": before, "quantized": after, "ratio": after / before}, baselines=baselines, allocation=rows,
        executed=executed, simulation=parity, files=Files(model, None, None),
        seconds={stage: round(seconds, 3) for stage, seconds in bench.seconds.items()} | {"total": round(sum(bench.seconds.values()), 3)},
        environment=describe(), fingerprint=key, notes=tuple(notes), bounds=bounds, gained=gained, minimize=options.minimize,
    )  # fmt: skip


def _bounds(request: StreamedRequest, choices: Choices, plan: Allocation, before: float, after: float) -> tuple[BoundRow, ...]:
    used = {"bytes": (before, after), "average_bits": (32.0, choices.average_bits(plan))}
    rows = []
    for name, bound in request.options.bounds.given().items():
        at_most = bound.at_most(used[name][0])
        rows.append(BoundRow(name, at_most, used[name][1], used[name][1] <= at_most))
    return tuple(rows)
