"""`quantkit profile --export`: the files of a few plans, to be timed on another device.

A kit is a folder with these files, kit.json, and a script that needs onnxruntime and numpy alone (runtimes/time_files.py). What its times
come to on this machine: device_table.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from quantkit.allocation.costs.measured import spread_plans
from quantkit.allocation.prediction.predictor import Predictor, read_predictor
from quantkit.core.errors import OutputError, RequestError
from quantkit.runs.device_table import kit_of
from quantkit.runs.stored_plan import StoredPlan, export_plan, plan_of
from quantkit.targets import find_target
from quantkit.verification.side_by_side import random_feeds

FILES = 10
SCRIPT, KIT = "time_files.py", "kit.json"
RUNS_IN = ("ort-cpu",)  # targets whose files the script's runtime runs as planned


@dataclass(frozen=True, slots=True, eq=False)
class Kit:
    """Where the kit lies, and how many files are in it."""

    folder: Path
    files: int


def write_kit(run: Path, folder: Path, advance: Callable[[int], None], count: int = FILES) -> Kit:
    """Write a kit of `count` plans into `folder`, which is made. `advance(1)` after each file.

    Raises OutputError for a run without tables or a folder that is there, RequestError for a target whose files run elsewhere.
    """
    predictor, kept = read_predictor(run)
    if kept["plan"]["target"] not in RUNS_IN:
        raise RequestError(f"a run for {kept['plan']['target']}", f"one for {', '.join(RUNS_IN)}", "the script times files by onnxruntime")
    if folder.exists():
        raise OutputError(f"{folder} exists", "a folder to be made", "name another, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _fill(run, partial, predictor, kept["plan"], advance, count)
        partial.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}", "a folder that can be", "name another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Kit(folder, count)


def _fill(run: Path, folder: Path, predictor: Predictor, frame: Mapping[str, Any], advance: Callable[[int], None], count: int) -> None:
    rows = []
    for number, plan in enumerate(spread_plans(predictor.groups, predictor.seed, count)):
        layers = {layer: plan[group.name] for group in predictor.groups for layer in group.layers}
        path = folder / f"plan-{number}.onnx"
        stored = plan_of(run, {**frame, "layers": layers})
        export_plan(stored, stored.target, path)
        rows.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "allocation": dict(plan)})
        advance(1)
    session = dict(find_target(stored.target).SESSION_OPTIONS)
    content = {"schema": 1, "kit": kit_of(predictor), "session": session, "inputs": _inputs(stored), "plans": rows}
    (folder / KIT).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / SCRIPT).write_text((files("quantkit.runtimes") / SCRIPT).read_text(encoding="utf-8"), encoding="utf-8")


def _inputs(plan: StoredPlan) -> list[dict[str, Any]]:
    """Name, numpy type and shape of each input, by the file, as tokens are no tensors of the graph; None for a batch axis of any size."""
    graph, given = plan.graph, random_feeds(plan.float_file)
    return [{"name": name, "type": given[name].dtype.name, "shape": [graph.batch, *given[name].shape[1:]]} for name in graph.inputs]
