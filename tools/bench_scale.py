"""What workers gain and cost, and whether they give the numbers of one process; writes docs/results/scale.json.

    python tools/bench_scale.py                   # ten minutes on two cores
    python tools/bench_scale.py --only identical kills

`seconds`: the passes of the default sensitivity on ResNet44, calibration items of its recipe, one thread a worker, against this process
with one thread; workers are started and have the network before the clock. `ceiling_2` is what the machine itself gives two processes
that do half each and know nothing of each other. `identical`: scores and rounded weights bit for bit. `kills`:
twenty jobs during which a worker is killed at a random moment. `eta`: how far off the time is that a bar says is left, in allocations of a
small network for time and for bytes: at each step of a stage of STAGE_S or longer, once a tenth of what it came to is done, against what
was really left; where a step moves the end, what the bar says behind that. `cuda.measured` is 0 until
`tools/bench_cuda.py --write` has run where a GPU is.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bench_sensitivity import Bed, prepare
from known import known_figures, write_figures

import quantkit
from quantkit.core.progress import Advance, Pace, Silent
from quantkit.core.store import Run
from quantkit.core.workers import Here, Workers
from quantkit.runs.cluster import open_workers
from quantkit.runs.workbench import Workbench
from quantkit.sensitivity import kl
from quantkit.sensitivity.passes.bound import Passes
from quantkit.settings.recipe import load_recipe
from quantkit.stages.weights import _rounded

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("seconds", "identical", "kills", "eta")
NETWORK, SMALL = "resnet44", "resnet20"
ITEMS, FEW = 128, 32
JOBS = 20
STAGE_S = 3.0  # of shorter stages nobody reads what is left


@contextmanager
def bed(name: str) -> Iterator[Bed]:
    with TemporaryDirectory() as folder, Run(Path(folder) / "run") as store:
        yield prepare(Workbench(store, Silent()), name, 0, Path(folder))


def scored(found: Bed, workers: Workers, items: int) -> Any:
    """The tables, on so many items."""
    engine = found.context.engine
    assert isinstance(engine, Passes)
    context = replace(found.context, engine=replace(engine, workers=workers), items=found.request.splits.calibration.first(items))
    return kl.estimate(context)


def clock(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def in_two(job: Callable[[], Any]) -> None:
    """The job in two copies of this process at once. Raises RuntimeError where one fails."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                job()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    if any(ends):
        raise RuntimeError("a copy of the process failed")


def seconds() -> dict[str, float]:
    """The best of two, of each count of workers; the first run of each gives the workers the network."""
    with bed(NETWORK) as found:
        here = min(clock(lambda: scored(found, Here(), ITEMS)) for _ in range(2))
        halves = min(clock(lambda: in_two(lambda: scored(found, Here(), ITEMS // 2))) for _ in range(2))
        times = {}
        for count in (1, 2):
            with open_workers(str(count), Silent()) as workers:
                assert workers is not None
                scored(found, workers, 8)
                times[count] = min(clock(lambda w=workers: scored(found, w, ITEMS)) for _ in range(2))
    return {
        "workers.seconds_here": here,
        "workers.ceiling_2": here / halves,
        "workers.overhead_1": times[1] / here,
        "workers.speedup_2": times[1] / times[2],
    }


def identical() -> dict[str, float]:
    """Whether 1, 2 and 4 workers give the bits of this process."""
    same = True
    with bed(SMALL) as found:
        mine = scored(found, Here(), FEW)
        bank, graph = found.context.engine.bank, found.context.graph
        parts = [[(layer, scheme) for scheme in found.context.schemes if scheme != "fp32"] for layer in graph.layers if layer.weight]
        codes = list(Here().run(_rounded, bank, parts))
        for count in (1, 2, 4):
            with open_workers(str(count), Silent()) as workers:
                assert workers is not None
                theirs = scored(found, workers, FEW)
                same &= np.array_equal(mine.table.values, theirs.table.values, equal_nan=True)
                same &= np.array_equal(mine.gram.matrix, theirs.gram.matrix)
                for one, other in zip(codes, workers.run(_rounded, bank, parts), strict=True):
                    same &= all(np.array_equal(one[key], other[key]) for key in one)
    return {"workers.identical": float(same)}


def kills() -> dict[str, float]:
    """Of JOBS jobs on two workers, how many end with the numbers of one process though a worker is killed at a random moment."""
    drawn, ended = random.Random(0), 0
    with bed(SMALL) as found:
        mine = scored(found, Here(), FEW).table.values
        whole = clock(lambda: scored(found, Here(), FEW))
        for _ in range(JOBS):
            with open_workers("2", Silent()) as workers:
                assert workers is not None
                killer = threading.Timer(drawn.uniform(0, whole), kill_one, [workers, drawn])
                killer.start()
                ended += np.array_equal(scored(found, workers, FEW).table.values, mine, equal_nan=True)
                killer.join()
    return {"kill.jobs": float(JOBS), "kill.resumed": float(ended)}


def kill_one(workers: Any, drawn: random.Random) -> None:
    """One worker's process, by the pid that it gives."""
    client = workers._client
    pids = list(client.run(os.getpid).values())
    os.kill(drawn.choice(pids), signal.SIGKILL)


class Estimates:
    """Holds what each step of a stage estimated against what was left at its end."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.stages = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:  # noqa: ARG002 - the protocol's
        """A stage; only one whose total was told at the start."""
        steps = Told(total)
        yield steps
        took = steps.elapsed_s
        if total is None or took < STAGE_S:
            return
        late = [(elapsed, left) for elapsed, count, left in steps.told if count >= steps.done / 10 and took - elapsed > took / 20]
        found = [100 * abs(left - (took - elapsed)) / (took - elapsed) for elapsed, left in late if left is not None]
        if found:
            self.stages += 1
            self.errors.append(float(np.median(found)))
            print(f"{name}: {took:.1f} s, off by {self.errors[-1]:.0f} %", flush=True)

    def note(self, text: str) -> None:
        """Nothing is shown."""


class Told(Pace):
    """Notes at each step how long the stage ran, what was done, and what the bar then says is left until the next step."""

    def __init__(self, total: int | None) -> None:
        super().__init__(total)
        self.told: list[tuple[float, int, float | None]] = []

    def __call__(self, steps: int) -> None:
        """A step."""
        super().__call__(steps)
        self.told.append((self.elapsed_s, self.done, self.seconds_left))

    def expect(self, left: int) -> None:
        """The last step says something else at once."""
        super().expect(left)
        if self.told:
            self.told[-1] = (*self.told[-1][:2], self.seconds_left)


def eta() -> dict[str, float]:
    """The median over stages of how far off their estimates were, each stage's median over its steps."""
    estimates = Estimates()
    for minimize in ("latency", "bytes"):
        with TemporaryDirectory() as folder:
            quantkit.allocate(
                load_recipe(ROOT / "recipes" / f"{SMALL}.py"), minimize=minimize, max_drop=1.0, run=Path(folder) / "run", progress=estimates
            )
    return {"eta.stages": float(estimates.stages), "eta.median_error_percent": float(np.median(estimates.errors))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "scale.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = known_figures(arguments.output)
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "seconds": seconds, "identical": identical, "kills": kills, "eta": eta,
    }  # fmt: skip
    for part in arguments.only:
        known |= measures[part]()
        known.setdefault("cuda.measured", 0.0)
        write_figures(arguments.output, "scale.json", known, whole=set(arguments.only) == set(PARTS))
    for key, value in known.items():
        print(f"{key:30s} {value:.4g}")


if __name__ == "__main__":
    main()
