"""The gate: the conditions of a file, measured now on this host and decided by `statistics`.

Accuracy is paired item by item with a reference, the float file or another one (`against`), in the same runtime; latency is timed in
turn with it. Only what a condition needs is measured. Where a lock file knows the deployment, conditions, metric, preprocessing
and items come from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.core.environment import describe
from quantkit.core.errors import ConfigError, DataError, ModelError, RequestError
from quantkit.core.metrics import METRICS
from quantkit.core.progress import Progress
from quantkit.core.ratios import decide_ratio
from quantkit.export.session_file import read_session
from quantkit.gating.conditions import Conditions, parse_conditions
from quantkit.gating.examine import check_items, judge_files, share_of_file
from quantkit.gating.findings import Finding, judge_bytes, judge_drop, judge_int8, judge_latency
from quantkit.gating.lock import LOCK, Lock, choose_items, label_digest, read_lock, sole_name
from quantkit.loading.from_onnx.opening import file_bytes, open_model
from quantkit.runs.stored_plan import FILE, plan_file, read_plan
from quantkit.runtimes import Runtime, find_runtime
from quantkit.runtimes.evaluation import Feeds, feeds
from quantkit.settings.arguments import Arguments, Required, given, rows
from quantkit.settings.options import Options
from quantkit.settings.request import Check, resolve_items
from quantkit.targets import find_target
from quantkit.verification.side_by_side import random_feeds
from quantkit.verification.sittings import TimedFile, ratios_to_first, time_in_sittings
from quantkit.verification.verify import LATENCY_SECONDS

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A run directory or a file, and its conditions; of `arguments` data, metric, preprocessing, and how to measure and decide."""

    path: Path
    conditions: Conditions = field(default_factory=Conditions)
    arguments: Arguments = field(default_factory=Arguments)
    float_file: Path | None = None
    against: Path | None = None
    lock: Path | None = None


def ask(
    path: Path, said: Mapping[str, Any], *, float_file: Path | None = None, against: Path | None = None, lock: Path | None = None
) -> Asked:
    """What `said`, options of `Gating`, asks of a file. Raises RequestError for a condition that is none."""
    conditions = {name: said.get(name) for name in rows(Required)}
    others = given({name: value for name, value in said.items() if name not in conditions})
    return Asked(
        path=path, conditions=parse_conditions(conditions), arguments=others, float_file=float_file, against=against, lock=lock
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """The answer: every finding stands, or not. `changes` are what is not as it was locked; they fail nothing by themselves."""

    file: Path
    reference: Path | None
    lock: Path | None
    target: str
    undecided: str
    findings: tuple[Finding, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]

    @property
    def kept(self) -> bool:
        """What the exit code says."""
        return all(finding.stands for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`, which every report is written from."""
        rows = [
            {**row.to_json(), "verdict": row.verdict(), "line": row.line(), "seconds": self.seconds[row.condition]} for row in self.findings
        ]
        return {
            "schema": SCHEMA, "kept": self.kept, "file": _shown(self.file), "reference": self.reference and _shown(self.reference),
            "lock": self.lock and _shown(self.lock), "target": self.target, "undecided": self.undecided, "findings": rows,
            "changes": list(self.changes), "notes": list(self.notes), "seconds": sum(self.seconds.values()),
            "environment": dict(self.environment),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """The file, its float file if that is known, and the lock that knows both."""

    file: Path
    float_file: Path | None
    target: str | None
    lock: Lock | None


@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    """Both files in the runtime."""

    file: Path
    reference: Path | None
    target: str
    options: Options
    check: Check | None

    @property
    def runtime(self) -> Runtime:
        return find_runtime(self.target)

    @property
    def pair(self) -> tuple[Path, Path]:
        """The reference and the file."""
        if self.reference is None:
            got, next_step = f"no reference file for {self.file}", "pass --float FILE, or --against FILE"
            raise ModelError(got, "the float ONNX file", next_step)
        return self.reference, self.file

    @property
    def session_options(self) -> Mapping[str, str]:
        return read_session(self.file.parent, find_target(self.target))


def gate(asked: Asked, progress: Progress) -> Gated:
    """Whether the file meets its conditions. Raises RequestError without conditions, or without what is needed to judge them."""
    subject = _find(asked)
    lock, said = subject.lock, asked.arguments
    conditions = _conditions(asked, lock)
    target = said.get("target") or (lock.target if lock else None) or subject.target or "ort-cpu"
    told = {name: getattr(lock, name) for name in ("undecided", "seed", "batch_size", "threads")} if lock else {}
    told |= {name: value for name in ("undecided", "seed", "batch_size", "threads") if (value := said.get(name)) is not None}
    options = Options(target=target, **told)
    for path in (subject.file, asked.against or subject.float_file):
        if path is not None:
            open_model(path)
    check, notes = _items(said, conditions, lock) if conditions.max_drop is not None else (None, [])
    bench = _Bench(subject.file, asked.against or subject.float_file, target, options, check)
    if conditions.needs_reference():
        _ = bench.pair
    if conditions.max_latency_ratio is not None and not bench.runtime.TIMES:
        got = f"--max-latency-ratio for {target}, which does not run here"
        raise RequestError(got, "a condition that can be measured here", "pass --max-bytes, or leave it out")
    findings, seconds = _measure(bench, conditions, progress)
    changes = tuple(_changes(subject, check))
    return Gated(
        subject.file, bench.reference, lock.path if lock else None, target, options.undecided, findings, changes, tuple(notes), seconds,
        describe(),
    )  # fmt: skip


def _find(asked: Asked) -> _Subject:
    """The file that is meant, and what is known of it."""
    if asked.path.is_dir():
        plan = read_plan(asked.path)
        file, float_file, target = plan_file(plan), plan.float_file, plan.target
        path, name = asked.path / LOCK, FILE
    else:
        file, float_file, target = asked.path, None, None
        path, name = asked.path.parent / LOCK, asked.path.name
    lock = None
    if asked.lock is not None:
        lock = read_lock(asked.lock, sole_name(asked.lock, name))
    elif path.is_file():
        lock = read_lock(path, name)
    if lock is not None:
        lock.check_runtime()
        beside = lock.path.parent / lock.float_name
        float_file = float_file or (beside if beside.is_file() else None)
    return _Subject(file, asked.float_file or float_file, target, lock)


def _conditions(asked: Asked, lock: Lock | None) -> Conditions:
    """Those that were said, or those of the lock. Raises ConfigError where there are none."""
    if asked.conditions.given():
        return asked.conditions
    if asked.against is not None:
        next_step = "pass --max-drop 0.2 or --max-latency-ratio 1.05"
        raise ConfigError("--against without a condition", "what must hold against that file", next_step)
    if lock is None or not lock.conditions.given():
        got = f"no condition for {asked.path}, neither given nor in a {LOCK} beside it"
        options = "--max-drop 0.5, --max-latency-ratio 0.6, --max-bytes 2MB or --require-int8 95%"
        raise ConfigError(got, "at least one condition", f"pass {options}")
    return lock.conditions


def _items(said: Arguments, conditions: Conditions, lock: Lock | None) -> tuple[Check, list[str]]:
    """The items to judge on: those that the lock knows, where they are among the data; else all of it, and a note."""
    if lock is not None and said.get("metric") is None and lock.metric not in METRICS:
        got = f"metric {lock.metric} of {lock.path}, which is code"
        raise ConfigError(got, "a metric that is named in the request", f"pass --metric {lock.metric}")
    metric, preprocessing = (lock.metric, lock.preprocessing) if lock else (None, None)
    found = resolve_items(said, metric=metric, preprocessing=preprocessing)
    if found is None:
        known = f" (the {len(lock.items)} items of the lock are found in it by their content)" if lock else ""
        raise DataError(
            "an accuracy condition without data", "items to judge it on", f"pass --data PATH{known}, or name it in quantkit.toml"
        )
    items, resolved = found
    chosen = choose_items(items, lock.items) if lock else None
    notes = []
    if lock is not None and chosen is None:
        notes.append(f"None of the {len(lock.items)} items that it was locked on are in the data: judged on all {len(items)}.")
    return Check(chosen or items, resolved, conditions.max_drop), notes


def _changes(subject: _Subject, check: Check | None) -> list[str]:
    """What is not as the lock has it."""
    lock = subject.lock
    if lock is None:
        return []
    found = lock.changes({"file": subject.file, **({"float": subject.float_file} if subject.float_file else {})})
    if check is not None:
        if check.metric.name != lock.metric:
            found.append(f"The metric is {check.metric.name}, {lock.metric} when it was locked.")
        if len(check.items) == len(lock.items) and label_digest(check.items) != lock.labels:
            found.append("The labels are not those of the lock.")
    return found


def _measure(bench: _Bench, conditions: Conditions, progress: Progress) -> tuple[tuple[Finding, ...], dict[str, float]]:
    """Every condition that is asked, the exact ones first, and how long each took."""
    asked: dict[str, Callable[[], Finding]] = {}
    if conditions.max_bytes is not None:
        asked["max-bytes"] = lambda: _bytes(bench, conditions)
    if conditions.int8_share is not None:
        share = conditions.int8_share
        asked["require-int8"] = lambda: judge_int8(share_of_file(bench.file, bench.target), share)
    if conditions.max_drop is not None:
        asked["max-drop"] = lambda: _drop(bench)
    if conditions.max_latency_ratio is not None:
        ratio = conditions.max_latency_ratio
        asked["max-latency-ratio"] = lambda: _latency(bench, ratio)
    findings, seconds = [], {}
    for name, judge in asked.items():
        start = time.perf_counter()
        with progress.stage(name):
            findings.append(judge())
        seconds[name] = round(time.perf_counter() - start, 3)
    return tuple(findings), seconds


def _bytes(bench: _Bench, conditions: Conditions) -> Finding:
    bound = conditions.max_bytes
    assert bound is not None
    return judge_bytes(file_bytes(bench.file), bound.at_most(file_bytes(bench.pair[0]) if bound.relative else 0.0))


def _drop(bench: _Bench) -> Finding:
    assert bench.check is not None
    check_items(bench.pair[0], bench.check)
    options = bench.options
    budget, verdict = judge_files(bench.runtime, bench.session_options, bench.pair, bench.check, options.batch_size, options.seed)
    assert budget is not None
    return judge_drop(verdict, budget, bench.check.metric, options.undecided)


def _latency(bench: _Bench, at_most: float) -> Finding:
    """On one item of the data, or on noise of its shape."""
    examples = [random_feeds(file) for file in bench.pair]
    shapes = [{name: array.shape for name, array in example.items()} for example in examples]
    if shapes[0] != shapes[1]:
        got = f"{bench.pair[1].name} takes {shapes[1]}, {bench.pair[0].name} takes {shapes[0]}"
        raise ModelError(got, "two files of the same inputs", "pass the file that it was made of")
    example: Feeds = examples[0]
    if bench.check is not None:
        count = len(next(iter(example.values())))
        example = feeds(next(iter(bench.check.items.batches(count))), tuple(example))
    files = [TimedFile(file, bench.session_options) for file in bench.pair]
    sittings = time_in_sittings(bench.runtime, files, example, threads=bench.options.threads, seconds=LATENCY_SECONDS)
    return judge_latency(decide_ratio(ratios_to_first(sittings, 1), at_most), at_most, bench.options.undecided)


def _shown(path: Path) -> str:
    """The path as it is seen from here, so that a report names a file of the repository."""
    full = path.absolute()
    return full.relative_to(Path.cwd()).as_posix() if full.is_relative_to(Path.cwd()) else str(path)
