"""Files timed side by side in several sittings, each of which opens them anew, in a process of its own where the runtime has a script for
that. What the rounds of one sitting share, where weights lie and who is busy beside, they cannot tell; sittings can.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.allocation.costs.timing import interleave, rounds_within
from quantkit.core.errors import ModelError
from quantkit.core.ratios import ratio_interval, sittings_interval
from quantkit.runtimes import Feeds, Runtime

Times = NDArray[np.float64]  # milliseconds of one inference, [files, rounds]

SITTINGS = 10
LEAST, MOST = 3, 30  # rounds of one, where no number is asked for


@dataclass(frozen=True, slots=True)
class TimedFile:
    """A file, the options of its session, and its names of the inputs where they are not those of the feeds, in their order."""

    path: Path
    options: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None


def time_in_sittings(
    runtime: Runtime, files: Sequence[TimedFile], feeds: Feeds, *, threads: int, seconds: float, rounds: int | None = None
) -> list[Times]:
    """What each sitting measured. `rounds` of all together, or as many as fit into `seconds`.

    Raises ModelError where the runtime refuses a file.
    """
    parts = [None] * SITTINGS if rounds is None else [len(part) for part in np.array_split(range(rounds), min(SITTINGS, rounds))]
    if runtime.SITTING is None:
        return [_here(runtime, files, feeds, threads, seconds / SITTINGS, part) for part in parts]
    for file in files:  # so that a file that is refused is one line
        runtime.open_file(file.path, threads=threads, options=file.options)
    return [_apart(runtime.SITTING, files, feeds, threads, seconds / SITTINGS, part) for part in parts]


def ratios_to_first(sittings: Sequence[Times], place: int) -> Times:
    """Of a file's time to the first's: each sitting's median over its rounds."""
    return np.array([np.median(sitting[place] / sitting[0]) for sitting in sittings])


def interval_to_first(sittings: Sequence[Times], place: int) -> tuple[float, float, float]:
    """The ratio of a file's time to the first's with its 95 % interval: over sittings, or over rounds where there is one sitting.

    The first's own is 1, of which there is no doubt.
    """
    if place == 0:
        return 1.0, 1.0, 1.0
    if len(sittings) == 1:
        return ratio_interval(sittings[0][place], sittings[0][0])
    return sittings_interval(ratios_to_first(sittings, place))


def median_ms(sittings: Sequence[Times], place: int) -> float:
    """Over all rounds."""
    return float(np.median(np.concatenate([sitting[place] for sitting in sittings])))


def _here(runtime: Runtime, files: Sequence[TimedFile], feeds: Feeds, threads: int, seconds: float, rounds: int | None) -> Times:
    """In this process."""
    sessions = [runtime.open_file(file.path, threads=threads, options=file.options, example=feeds) for file in files]
    return interleave(
        sessions, feeds, rounds=rounds or rounds_within(sessions[0], feeds, seconds / len(files), least=LEAST, most=MOST)
    )  # fmt: skip


def _apart(script: Path, files: Sequence[TimedFile], feeds: Feeds, threads: int, seconds: float, rounds: int | None) -> Times:
    """In a process of its own."""
    with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
        folder = Path(name)
        given, request, output = folder / "feeds.npz", folder / "request.json", folder / "times.npy"
        np.savez(given, *feeds.values())
        wanted = [
            {"path": str(file.path.absolute()), "options": dict(file.options), "names": list(file.names or feeds)} for file in files
        ]  # fmt: skip
        asked = {"files": wanted, "feeds": str(given), "threads": threads, "rounds": rounds, "seconds": seconds / len(files) / 2}
        request.write_text(json.dumps({**asked, "least": LEAST, "most": MOST, "output": str(output)}))
        done = subprocess.run([sys.executable, str(script), str(request)], check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1][:200]
            raise ModelError(f"{files[-1].path.name} cannot be timed: {reason}", "a file that runs", "`quantkit lint` may say why")
        times: Times = np.load(output)
        return times
