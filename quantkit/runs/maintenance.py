"""`quantkit status` and `quantkit clean`: what a run directory holds, what of it is stale and why, what is still to do; without torch.

A stage's result is stale where neither the last request nor the last one that came to its end used it. A request that is asked again under
the inputs of such a result would find it still; `clean` removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import OutputError
from quantkit.core.run_files import ARRAYS, PICKED, PLAN, PLAN_WEIGHTS, TABLES, WEIGHTS, plan_weights_key
from quantkit.core.store import JOURNAL, Run, fingerprint, stage_name
from quantkit.runs.history import Session, changes, read_sessions
from quantkit.runs.progress_file import Doing, read_progress
from quantkit.runs.workbench import SCRATCH, TORN

# What an allocation keeps, in its order; `finalists` only where files are timed for the choice.
STAGES = (
    "items", "ranges", "weights", "scores", "latency", "file_bytes", "front", "float_on_search", "finalists", "accuracy", "file_latency",
    "simulation", "result",
)  # fmt: skip
RESULT, FINALISTS, TIMED = "result", "finalists", ("latency", "bytes")
# Dependencies that stand for others: behind them lie other stages, or inputs of the request.
BEHIND: Mapping[str, Sequence[str]] = {"weights": ("weights",), "scores and costs": ("scores", "latency", "file_bytes")}
NETWORK = ("weights of the network", "code of the network", "target", "code of quantkit", "quantkit", "torch", "onnxruntime", "openvino")
STREAMED = "allocate --streamed"
WHOLE = ("request", "plan", "plans")
ALWAYS = ("capture",)  # done by every request, as it says what all hangs on


@dataclass(frozen=True, slots=True)
class Kept:
    """A file or folder of the run: which stage's, how large, how long it took to make; `why` it is stale, or what it is for."""

    path: str
    stage: str
    bytes: int
    seconds: float | None
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """What there is. `to_do` is what the last request, asked again, would still do; `finished` whether it is finished; `doing` where the
    process that works in the run is.
    """

    run: str
    process: int | None
    doing: Doing | None
    requests: int
    at: str | None
    command: str | None
    finished: bool
    changed: tuple[str, ...]
    kept: tuple[Kept, ...]
    stale: tuple[Kept, ...]
    left_over: tuple[Kept, ...]
    candidates: int
    candidates_of_others: int
    steps: Mapping[str, float]
    to_do: tuple[str, ...]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


def read_status(folder: Path) -> Status:
    """Reads only. Raises OutputError for what is not a run directory."""
    _check(folder)
    store, sessions = Run(folder), read_sessions(Run(folder))
    last = sessions[-1] if sessions else None
    mine, others = _candidates(folder, store)
    kept, stale = _stages(folder, sessions)
    process = _holder(folder)
    left_over = tuple(_left_over(folder, sessions)) if process is None else ()  # what it uses is nobody's leftover
    return Status(
        run=str(folder), process=process, doing=None if process is None else read_progress(folder), requests=len(sessions),
        at=last.at if last else None,
        command=last.command if last else None,
        finished=last is not None and last.done is not None,
        changed=tuple(changes(sessions[-2].inputs, sessions[-1].inputs)) if len(sessions) > 1 else (),
        kept=kept, stale=stale, left_over=left_over, candidates=mine, candidates_of_others=others,
        steps=dict(last.steps) if last else {}, to_do=_to_do(last, kept, mine),
        bytes=sum(_bytes(path) for path in folder.iterdir()),
    )  # fmt: skip


def clean(folder: Path, *, dry_run: bool) -> tuple[Kept, ...]:
    """Removes what is stale and what killed processes left, or, if `dry_run`, only says what that is.

    Raises OutputError for what is not a run directory, and for one that a process works in.
    """
    _check(folder)
    if dry_run:
        status = read_status(folder)
        return (*status.left_over, *status.stale)
    sessions, left_over = read_sessions(Run(folder)), tuple(_left_over(folder, read_sessions(Run(folder))))
    with Run(folder):
        removed = (*left_over, *_stages(folder, sessions)[1])
        for row in removed:
            path = folder / row.path
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return removed


def _check(folder: Path) -> None:
    if not (folder / "stages").is_dir():
        raise OutputError(f"{folder} is not a run directory", "one of `quantkit allocate` or `measure`", "check the path")


def _stages(folder: Path, sessions: Sequence[Session]) -> tuple[tuple[Kept, ...], tuple[Kept, ...]]:
    """The stages' files that are needed, and those that are stale, in the order of the job."""
    made = {use.file: (stage, use, session) for session in sessions for stage, use in session.stages.items()}
    took = {use.file: use.seconds for session in sessions for use in session.stages.values() if use.made}
    needed, kept, stale = _needed(folder, sessions), [], []
    for path in sorted((folder / "stages").glob("[!.]*")):
        stage = path.stem.rpartition("-")[0]
        row = Kept(f"stages/{path.name}", stage, path.stat().st_size, took.get(path.stem))
        if path.stem in needed or not sessions:
            kept.append(row)
        else:
            why = _reasons(stage, made[path.stem][2], sessions[-1]) if path.stem in made else ["no request of the history used it"]
            stale.append(Kept(row.path, stage, row.bytes, row.seconds, tuple(why)))
    order = {stage: place for place, stage in enumerate(STAGES)}
    kept.sort(key=lambda row: order.get(row.stage, len(order)))
    return tuple(kept), tuple(stale)


def _needed(folder: Path, sessions: Sequence[Session]) -> set[str]:
    """Names of stages' files that the last request used, or the last that came to its end, or that the plan and the tables name."""
    finished = next((session for session in reversed(sessions) if session.done is not None), None)
    wanted = [session.inputs for session in (*sessions[-1:], *([finished] if finished else []))]
    found = {use.file for session in sessions if session.inputs in wanted for use in session.stages.values()}
    for name in (PLAN, PICKED):
        found |= {stage_name(stage, str(_json(folder / name).get("weights", ""))) for stage in (WEIGHTS, PLAN_WEIGHTS)}
    tables = _json(folder / TABLES)
    found.add(stage_name(ARRAYS, str((tables.get("interactions") or [""])[0])))
    frame = tables.get("plan", {})
    found.add(stage_name(WEIGHTS, str(frame.get("weights", ""))))
    if frame.get("rounded"):
        found |= {stage_name(PLAN_WEIGHTS, plan_weights_key(frame["rounded"], row["allocation"])) for row in Run(folder).records(JOURNAL)}
    return found


def _left_over(folder: Path, sessions: Sequence[Session]) -> Iterator[Kept]:
    """What killed processes left, and networks that no request needs any more."""
    for path in sorted(folder.glob(".*")):
        if path.name.startswith(SCRATCH) or TORN.fullmatch(path.name):
            yield Kept(path.name, "", _bytes(path), None, ("left by a process that was killed",))
    for path in sorted((folder / "stages").glob(".*")):
        yield Kept(f"stages/{path.name}", "", _bytes(path), None, ("left by a process that was killed",))
    plans = [_json(folder / name) for name in (PLAN, PICKED)] + [_json(folder / TABLES).get("plan", {})]
    wanted = {plan.get(key) for plan in plans for key in ("float_onnx", "program")}
    finished = next((session for session in reversed(sessions) if session.done is not None), None)
    wanted |= {name for session in (*sessions[-1:], *([finished] if finished else [])) for name in session.files}
    for path in sorted([*folder.glob("float-*.onnx"), *folder.glob("float-*.onnx.data"), *folder.glob("captured-*.pt2")]):
        if sessions and path.name.removesuffix(".data") not in wanted:
            yield Kept(path.name, "capture", _bytes(path), None, ("of a network that was replaced",))


def _reasons(stage: str, before: Session, now: Session) -> list[str]:
    """Which inputs made the stage's old result stale."""
    old, new = before.stages.get(stage), now.stages.get(stage)
    if old is None or new is None:
        return changes(before.inputs, now.inputs) or ["the last request did not reach this stage"]
    found: list[str] = []
    for name in {**old.depends_on, **new.depends_on}:
        one, other = ({name: text} if (text := use.depends_on.get(name)) else {} for use in (old, new))
        if one == other:
            continue
        if name in BEHIND:
            found += [reason for behind in BEHIND[name] for reason in _reasons(behind, before, now)]
        elif name == "network":
            found += changes(*({key: session.inputs.get(key, "") for key in NETWORK} for session in (before, now)))
        else:
            found += changes(before.inputs, now.inputs) if name in WHOLE else changes(one, other)
    return list(dict.fromkeys(found))


def _to_do(last: Session | None, kept: Sequence[Kept], candidates: int) -> tuple[str, ...]:
    """What the last request would still do if it was asked again."""
    if last is None or last.command == STREAMED:  # whose blocks say themselves what is there
        return ()
    there = {Path(row.path).stem for row in kept}
    ready = {stage for stage, use in last.stages.items() if use.file in there}
    if RESULT in ready:
        return ALWAYS
    stages = [stage for stage in STAGES if stage != FINALISTS or last.inputs.get("minimize") in TIMED]
    if last.command == "measure":
        stages = stages[: stages.index("float_on_search") + 1]
    missing = [stage for stage in stages if stage not in ready]
    search = f"search ({candidates} candidates are measured)"
    place = next((place for place, stage in enumerate(missing) if STAGES.index(stage) > STAGES.index("float_on_search")), len(missing))
    return (*ALWAYS, *missing[:place], search, *missing[place:])


def _candidates(folder: Path, store: Run) -> tuple[int, int]:
    """How many plans the journal holds that the present tables know, and how many others."""
    key = _json(folder / TABLES).get("judging", {}).get("key")
    records = {record["key"]: record["allocation"] for record in store.records(JOURNAL)}
    mine = sum(key is not None and own == fingerprint(key, allocation) for own, allocation in records.items())
    return mine, len(records) - mine


def _holder(folder: Path) -> int | None:
    """The process that works in the run; None where none does."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(lock, 20).decode().strip() or 0)
    finally:
        os.close(lock)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
