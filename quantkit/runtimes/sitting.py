"""One sitting: ONNX files opened in a process of their own and timed in turn. A script that needs onnxruntime and numpy alone, so that it
is there at once.

    python sitting.py REQUEST.json

REQUEST.json: `files`, each with `path`, `options` of its session and its `names` of the inputs; `feeds`, an .npz of these in order;
`threads`; `rounds`, or null for what fits into `seconds`, between `least` and `most`; `output`, the .npy of milliseconds of one
inference, [files, rounds].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ERRORS_ONLY = 3
WARM_UP = 2  # each timed run has one before it, too


def main() -> None:
    """Times what the request names."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with np.load(request["feeds"]) as arrays:
        feeds = [arrays[name] for name in arrays.files]
    opened = [(_open(file, request["threads"]), dict(zip(file["names"], feeds, strict=True))) for file in request["files"]]
    for session, given in opened:
        for _ in range(WARM_UP):
            session.run(None, given)
    clock = time.thread_time if request["threads"] == 1 else time.perf_counter  # what a neighbour takes of the core does not count
    start = time.perf_counter()
    opened[0][0].run(None, opened[0][1])
    fitting = int(request["seconds"] / max(time.perf_counter() - start, 1e-6))
    times = np.zeros((len(opened), request["rounds"] or min(max(fitting, request["least"]), request["most"])))
    for turn in range(times.shape[1]):
        for place in range(len(opened)) if turn % 2 == 0 else range(len(opened) - 1, -1, -1):
            session, given = opened[place]
            session.run(None, given)  # untimed: the file before it has filled the cache, and a network that serves runs again and again
            start = clock()
            session.run(None, given)
            times[place, turn] = 1e3 * (clock() - start)
    np.save(request["output"], times)


def _open(file: dict[str, Any], threads: int) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, ERRORS_ONLY
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or threads of one file take the cores from the next
    for key, value in file["options"].items():
        settings.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(file["path"], settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
