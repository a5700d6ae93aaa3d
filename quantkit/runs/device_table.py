"""`quantkit profile --import`: a run's table of latencies, corrected for a device by the times of a kit's files there (device_kit.py)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.allocation import Resource
from quantkit.allocation.costs.transfer import LEAST_FILES, TimedPlan, Transferred, transfer
from quantkit.allocation.prediction.predictor import Predictor, read_predictor
from quantkit.core.errors import RequestError
from quantkit.core.spec import parse_allocation
from quantkit.core.store import fingerprint, write_atomically

DEVICES = "devices"  # in the run directory, a table for each device
NAME = re.compile(r"[\w.-]{1,64}")


def read_times(run: Path, times: Path, name: str | None = None) -> tuple[str, Transferred]:
    """The device's name and its table, which is kept in the run directory under that name (`name`, or what the script was told).

    Raises RequestError where `times` is no file of the script, of another run's kit, or of too few files.
    """
    predictor, _ = read_predictor(run)
    wanted, again = "the times.json that the kit's time_files.py wrote", "run the script again, in a kit of this run"
    try:
        found = json.loads(times.read_text(encoding="utf-8"))
        timed: list[TimedPlan] = [(parse_allocation(row["allocation"]), float(row["ms"])) for row in found["plans"]]
        kit, name = found["kit"], str(name or found["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{times}: {error or type(error).__name__}", wanted, again) from error
    if kit != kit_of(predictor):
        raise RequestError(f"{times} is of the kit of another run, or of one that was measured anew since", wanted, again)
    if len(timed) < LEAST_FILES or not all(math.isfinite(ms) and ms > 0 for _, ms in timed):
        raise RequestError(f"{times} has {len(timed)} times", f"{LEAST_FILES} at least, all above 0 ms", again)
    if not NAME.fullmatch(name):
        raise RequestError(f"a device named {name!r}", "letters, digits, dots and dashes, 64 at most", "pass --name")
    device = transfer(predictor.resources["latency"], timed)
    (run / DEVICES).mkdir(exist_ok=True)
    told = {key: found.get(key) for key in ("threads", "batch", "optimization", "machine", "onnxruntime")}
    with write_atomically(run / DEVICES / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({"kit": kit, "name": name, "times": told, **device.to_json()}, indent=1))
    return name, device


def latency_of(run: Path, predictor: Predictor, name: str) -> Resource:
    """The latency of the device of that name. Raises RequestError where the run has none, or one of other tables."""
    path = run / DEVICES / f"{name}.json"
    known = sorted(file.stem for file in (run / DEVICES).glob("*.json"))
    if name not in known:
        got = f"no device {name!r} in {run}"
        raise RequestError(got, f"one of {', '.join(known)}" if known else "a device", "`quantkit profile RUN --import times.json`")
    kept: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if kept["kit"] != kit_of(predictor):
        got = f"{path} is of tables that were measured anew since"
        raise RequestError(got, "times of a kit of these", "`quantkit profile RUN --export KIT`, and time it again")
    return Resource.from_json(kept["resource"])


def kit_of(predictor: Predictor) -> str:
    """What times must be of: this table, for these groups."""
    return fingerprint(predictor.resources["latency"].to_json(), [group.name for group in predictor.groups])[:16]
