"""Times the files of this folder where it lies: needs Python 3.10, onnxruntime and numpy, nothing else; no network is opened.

    python time_files.py --name my-device          # writes times.json; bring it back: quantkit profile RUN --import times.json

Files are run one after the other, round by round, so that a clock that drifts meets all of them; the median of each counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
WARM = 3  # rounds that do not count
LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}


def main() -> None:
    """Times what kit.json names, and writes the medians."""
    parser = argparse.ArgumentParser(description="Times the files of this folder.")
    parser.add_argument("--name", default=platform.node() or "device")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--optimization", default="all", choices=list(LEVELS))
    parser.add_argument("--output", default=str(HERE / "times.json"))
    given = parser.parse_args()
    kit = json.loads((HERE / "kit.json").read_text(encoding="utf-8"))
    sessions, feeds = [], {}
    for row in kit["plans"]:
        path = HERE / row["file"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            sys.exit(f"{path} is missing or another file than kit.json names; copy the whole folder again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = given.threads, 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[given.optimization])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or threads of one file take the cores from the next
        for key, value in kit["session"].items():
            options.add_session_config_entry(key, value)
        sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    random = np.random.default_rng(0)
    for one in kit["inputs"]:
        shape = [given.batch if side is None else side for side in one["shape"]]
        drawn = random.standard_normal(shape) if one["type"].startswith("float") else np.ones(shape)
        feeds[one["name"]] = drawn.astype(one["type"])
    times: list[list[float]] = [[] for _ in sessions]
    for number in range(WARM + given.rounds):
        for place, session in enumerate(sessions):
            session.run(None, feeds)  # untimed: the file before it has filled the cache, and a network that serves runs again and again
            start = time.perf_counter()
            session.run(None, feeds)
            if number >= WARM:
                times[place].append(1000 * (time.perf_counter() - start))
        print(f"\rround {number + 1} of {WARM + given.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = [{"allocation": row["allocation"], "ms": statistics.median(own)} for row, own in zip(kit["plans"], times, strict=True)]
    found = {
        "schema": 1, "kit": kit["kit"], "name": given.name, "threads": given.threads, "batch": given.batch,
        "optimization": given.optimization, "machine": platform.machine(), "onnxruntime": onnxruntime.__version__, "plans": rows,
    }  # fmt: skip
    temporary = Path(f"{given.output}.partial")
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    temporary.replace(given.output)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
