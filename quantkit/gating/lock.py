"""`quantkit.lock.json`: a deployment at the time of its allocation, so that it can be checked for years.

    {"schema": 1, "files": {NAME: {model, file, float, data, metric, plan, target, runtime, host, conditions, verdicts, …}}}

It lies in the run directory and beside `--output`; a folder has one, with an entry for each file. It holds hashes and no paths, so it can
be committed. Whoever reads it trusts nothing in it: names are names of files beside it, and no code that it names is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.core.environment import PACKAGES, describe, processor
from quantkit.core.errors import ConfigError, QuantkitError, unknown
from quantkit.core.store import write_atomically
from quantkit.data import Preprocessing, Subset
from quantkit.export.onnx_file import content_digest
from quantkit.gating.conditions import Conditions, parse_conditions
from quantkit.gating.examine import share_of_file
from quantkit.runs.result import Result
from quantkit.settings.bounds import Bound
from quantkit.settings.options import CHOICES
from quantkit.settings.request import Request
from quantkit.targets import find_target

LOCK = "quantkit.lock.json"
SCHEMA = 1
DIGEST = 32  # hexadecimal digits that tell items apart
KINDS = {"file": "file", "float": "float file"}
DRIFT = 1000  # the share in int8 is kept to a thousandth, downwards: it is a condition, and sums are rounded


@dataclass(frozen=True, slots=True, eq=False)
class Lock:
    """What the gate needs of one file's entry. `items` are content hashes of the gate split, in its order; `timed_on` is the processor that
    its latency is of, where that is not the host's.
    """

    path: Path
    name: str
    target: str
    conditions: Conditions
    undecided: str
    metric: str
    preprocessing: Preprocessing
    items: tuple[str, ...]
    labels: str | None
    seed: int
    batch_size: int
    threads: int
    hashes: Mapping[str, str]
    float_name: str
    host: Mapping[str, Any]
    timed_on: str | None
    runtime: str

    def check_runtime(self) -> None:
        """Raises ConfigError where the runtime that is installed is older than the lock's range."""
        package = find_target(self.target).PACKAGE
        have, least = str(describe().get(package) or "0"), self.runtime.removeprefix(">=")
        if _numbers(have) < _numbers(least):
            raise ConfigError(f"{self.path} wants {package} {self.runtime}", f"at most {have}, which is installed", "install a newer one")

    def changes(self, files: Mapping[str, Path]) -> list[str]:
        """What is not as it was, in sentences: the files named `file` and `float`, the processor, versions. It fails nothing by itself."""
        found = [
            f"The {KINDS[kind]} {path.name} is not the one that was locked."
            for kind, path in files.items()
            if sha256(path) != self.hashes.get(kind)
        ]
        here = describe()
        names = {"isa": "integer instructions", "cpu": "processor", **{package: package for package in PACKAGES}}
        told = [(names[key], self.host.get(key), here[key]) for key in names if self.host.get(key) not in (None, here[key])]
        told += [("latency", self.timed_on, processor(here))] if self.timed_on not in (None, processor(here)) else []
        return found + [f"{name}: {before} when it was locked, {now} here." for name, before, now in told]


def read_lock(path: Path, name: str) -> Lock | None:
    """The entry of the file `name`; None where the lock file has none of it. Raises ConfigError for what is not a lock file."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["schema"] != SCHEMA:
            raise ConfigError(f"{path} has schema {kept['schema']}", f"schema {SCHEMA}", "allocate again, or install another quantkit")
        if name not in kept["files"]:
            return None
        entry, data = kept["files"][name], kept["files"][name]["data"]
        find_target(entry["target"])
        if entry["undecided"] not in CHOICES["undecided"]:
            raise ValueError(f"undecided is {entry['undecided']!r}")
        return Lock(
            path=path, name=name, target=entry["target"], conditions=parse_conditions(entry["conditions"]), undecided=entry["undecided"],
            metric=str(entry["metric"]["name"]), preprocessing=Preprocessing.from_json(data["preprocessing"]),
            items=tuple(map(str, data["gate"]["digests"])), labels=data["gate"]["labels"], seed=int(entry["seed"]),
            batch_size=int(entry["batch_size"]), threads=int(entry["threads"]),
            hashes={kind: str(entry[kind]["sha256"]) for kind in ("file", "float")}, float_name=Path(entry["float"]["name"]).name,
            host=dict(entry["host"]), timed_on=entry.get("timed_on"), runtime=str(entry["runtime"]["range"]),
        )  # fmt: skip
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QuantkitError) as error:
        got = f"{path} cannot be read: {' '.join(str(error).split())}"
        raise ConfigError(got, "what `quantkit allocate` writes", "allocate again") from error


def sole_name(path: Path, name: str) -> str:
    """The entry in `path` of a file called `name`: its own, or the only one. Raises ConfigError for what is not a lock file."""
    try:
        names = list(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "what `quantkit allocate` writes", "check --lock") from error
    if name not in names and len(names) != 1:
        raise ConfigError(*unknown(f"file in {path}:", name, names))
    return name if name in names else str(names[0])


def lock_result(request: Request, result: Result) -> None:
    """Write the lock of an allocation into its run directory and beside its output; what is locked there already, and the same, stays.

    Raises OutputError where it cannot be written.
    """
    made = hashlib.sha256(json.dumps([result.fingerprint, sha256(result.files.onnx), *_timed_on(result).values()]).encode()).hexdigest()
    entries = _entries(result.run)
    mine = entries.get(result.files.onnx.name, {})
    entry = mine if mine.get("fingerprint") == made else _entry(request, result, made)
    outputs = [request.options.output.absolute()] if request.options.output else []
    for path, name in [(file.parent / LOCK, file.name) for file in (result.files.onnx, *outputs)]:
        others = _entries(path.parent)
        content = {"schema": SCHEMA, "files": {**others, name: {**entry, "file": {**entry["file"], "name": name}}}}
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Of the file's bytes; empty where there is no file."""
    return content_digest(path) if path.is_file() else ""


def item_digests(items: Subset) -> tuple[str, ...]:
    """The hashes by which a lock knows items."""
    return tuple(digest[:DIGEST] for digest in items.digests())


def label_digest(items: Subset) -> str | None:
    """A hash of the labels; None where there are none."""
    labels = items.labels()
    return None if labels is None else hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()


def promised(request: Request, result: Result, share: float) -> Conditions:
    """The conditions of an allocation: its budget and bounds, a latency as a share of float's, and what ran in int8."""
    bounds = request.options.bounds
    ratio = None
    if bounds.latency is not None and result.latency is not None:
        ratio = bounds.latency.at_most(result.latency.float_ms) / result.latency.float_ms
    size = None if bounds.bytes is None else Bound(bounds.bytes.value, bounds.bytes.relative)
    least = floor(share * DRIFT) / DRIFT
    return Conditions(max_drop=request.budget, max_latency_ratio=ratio, max_bytes=size, int8_share=least or None)


def _entry(request: Request, result: Result, made: str) -> dict[str, Any]:
    target, host, splits = find_target(request.options.target), describe(), request.splits
    share = share_of_file(result.files.onnx, request.options.target)
    files = {"file": result.files.onnx, "float": result.files.reference}
    return {
        "fingerprint": made,
        "model": {"name": request.model.name, "digest": request.model.digest},
        **{kind: {"name": path.name, "sha256": sha256(path), "bytes": path.stat().st_size} for kind, path in files.items()},
        "target": request.options.target,
        "runtime": {
            "package": target.PACKAGE, "range": f">={target.MINIMUM_RUNTIME}", "tried_with": host.get(target.PACKAGE),
            "session_options": dict(target.SESSION_OPTIONS),
        },
        "host": {key: host[key] for key in ("cpu", "isa", *PACKAGES)}, **_timed_on(result),
        "metric": {
            "name": request.metric.name, "unit": request.metric.unit, "higher_is_better": request.metric.higher_is_better,
            "source_sha256": hashlib.sha256(request.metric.source.encode()).hexdigest() if request.metric.source else None,
        },
        "seed": request.options.seed, "batch_size": request.options.batch_size, "threads": request.options.threads,
        "conditions": promised(request, result, share).to_json(),
        "undecided": request.options.undecided,
        "verdicts": {
            "kept": result.kept, "drop": result.verdict.to_json(), "latency": None if result.latency is None else asdict(result.latency),
            "bytes": dict(result.bytes), "int8_share": share, "as_planned": result.executed.as_planned,
        },
        "plan": _plan(result),
        "data": {
            **{name: _described(part) for name, part in (("calibration", splits.calibration), ("search", splits.search))},
            "gate": {**_described(splits.gate), "labels": label_digest(splits.gate), "digests": list(item_digests(splits.gate))},
            "preprocessing": request.preprocessing.to_json(), "distilled": result.distilled,
        },
    }  # fmt: skip


def _timed_on(result: Result) -> dict[str, str]:
    return {key: value for key, value in result.environment.items() if key == "timed_on"}


def _plan(result: Result) -> dict[str, str]:
    return {layer: row.scheme for row in result.allocation for layer in row.layers}


def _described(part: Subset) -> dict[str, Any]:
    return {"items": len(part), "fingerprint": part.fingerprint()}


def _entries(folder: Path) -> dict[str, Any]:
    """The entries of a folder's lock file that are of this schema; none where there is no such file."""
    try:
        kept = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return dict(kept["files"]) if kept["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def choose_items(found: Subset, digests: Sequence[str]) -> Subset | None:
    """Those items of `found` that the lock knows as its gate split, in its order; None where none is there.

    Raises ConfigError where only some are.
    """
    places: dict[str, list[int]] = {}
    for place, digest in enumerate(item_digests(found)):
        places.setdefault(digest, []).append(place)
    chosen = [places[digest].pop(0) for digest in digests if places.get(digest)]
    if chosen and len(chosen) < len(digests):
        got = f"{len(chosen)} of the {len(digests)} items that the lock was judged on"
        raise ConfigError(got, "all of them, or none, to judge on others", "pass the data that it was made with")
    return Subset(found, tuple(chosen)) if chosen else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
