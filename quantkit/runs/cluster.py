"""Workers of Dask: processes of this machine, or those that a scheduler elsewhere knows (an extra: `pip install quantkit[workers]`)."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from quantkit.core.environment import describe
from quantkit.core.errors import ClusterError, RequestError
from quantkit.core.freed_memory import SETTINGS
from quantkit.core.progress import Progress
from quantkit.core.workers import Workers

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 15
ASK_SECONDS = 0.2  # between questions for a worker that is waited for
# Dask has workers give each freed page back at once, and torch's activations are then paged in anew: 2.6 times as long on ResNet44.
KEPT_MEMORY = {f"distributed.nanny.pre-spawn-environ.{name}": str(value) for name, (_, value) in SETTINGS.items()}
ATTEMPTS = 3  # at a part whose workers are lost together with all copies of what is shared
ALIKE = ("quantkit", "torch", "isa")  # of a worker and this process: another would compute other bits
OTHER_BITS = "as here: others compute other bits"
AGAIN = "run the same command again: what is done is kept in the run directory"


class Cluster:
    """The workers of a Dask `client`, or those that were started with `resource`. What is shared is there once; a part whose worker is
    lost goes to another.
    """

    def __init__(self, client: Any, count: int, resource: str | None = None) -> None:
        self._client, self.count, self._resource = client, count, resource
        dask = importlib.import_module("distributed")
        self._lost = (dask.CancelledError, dask.KilledWorker, dask.comm.CommClosedError)

    def run(self, task: Callable[[Any, Any], Any], shared: Any, parts: Iterable[Any]) -> Iterator[Any]:
        """As `Workers.run`; twice as many parts as there are workers are on their way."""
        source, waiting = iter(parts), deque[Any]()
        asked = {"pure": False, "resources": {self._resource: 1} if self._resource else None}
        futures: deque[Any] = deque()
        held = self._send(shared)
        while True:
            new = list(islice(source, 2 * self.count - len(waiting)))
            waiting += new
            futures += [self._client.submit(task, held, part, **asked) for part in new]
            if not waiting:
                return
            for _ in range(ATTEMPTS):
                try:
                    found = futures[0].result()
                    break
                except self._lost:  # a task's own error is no loss, and goes up as it is
                    held = self._send(shared)
                    futures = deque(self._client.submit(task, held, part, **asked) for part in waiting)
            else:
                raise ClusterError(f"workers were lost {ATTEMPTS} times at one part", "workers that stay", f"see their logs, and {AGAIN}")
            waiting.popleft()
            futures.popleft()
            yield found

    def _send(self, shared: Any) -> Any:
        """`shared` under a name of its own, at one worker; the others fetch it from there, and from each other.

        Raises ClusterError where there is no scheduler, or no worker.
        """
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            # By its hash, one that is just let go would be sent for without end.
            return self._client.scatter(shared, workers=self._declared(), hash=False)
        except (*self._lost, TimeoutError, OSError, KeyError) as error:  # a KeyError is the scheduler's, of a worker that just left
            raise ClusterError(f"the scheduler or its workers are gone ({error})", "a scheduler with workers", AGAIN) from error

    def _declared(self) -> list[str] | None:
        """The workers with the resource, once there is one: what is shared is lost with them, which ends a wait for them. None for all."""
        if self._resource is None:
            return None
        end = time.monotonic() + CONNECT_SECONDS
        while not (found := declaring(self._client, self._resource)):
            if time.monotonic() > end:
                raise TimeoutError(f"no worker declares {self._resource}")
            time.sleep(ASK_SECONDS)
        return found


def declaring(client: Any, resource: str) -> list[str]:
    """The addresses of the workers that were started with this resource."""
    told = client.run(lambda dask_worker: dict(dask_worker.state.total_resources))  # a lambda asks workers without quantkit, too
    return [address for address, found in told.items() if resource in found]


@contextmanager
def open_workers(asked: str | None, progress: Progress) -> Iterator[Workers | None]:
    """The workers that `--workers` names: a count of processes here, or the address of a scheduler; None where none are asked for.

    Processes here listen on the loopback address alone. Raises RequestError where Dask is not installed, ClusterError for a scheduler that
    does not answer, has no workers, or has some that would compute other bits.
    """
    if asked is None:
        yield None
        return
    dask = find_dask(f"--workers {asked}")
    with ExitStack() as stack:
        if asked.isdecimal():
            stack.enter_context(importlib.import_module("dask").config.set(KEPT_MEMORY))
            local = dask.LocalCluster(n_workers=int(asked), threads_per_worker=1, host=LOOPBACK, dashboard_address=f"{LOOPBACK}:0")
            client = stack.enter_context(dask.Client(stack.enter_context(local)))
        else:
            client = stack.enter_context(connected(dask, asked))
        found = client.run(describe)
        if not found:
            raise ClusterError(f"the scheduler at {asked} has no workers", "one at least", f"start some: dask worker {asked} --nthreads 1")
        check_alike(found, describe())
        if client.dashboard_link and importlib.util.find_spec("bokeh"):
            progress.note(f"{len(found)} workers; Dask's dashboard: {client.dashboard_link}")
        yield Cluster(client, len(found))


def check_alike(
    workers: Mapping[str, Mapping[str, Any]], here: Mapping[str, Any], names: Sequence[str] = ALIKE, why: str = OTHER_BITS,
    next_step: str = "start it in the same environment",
) -> None:  # fmt: skip
    """Raises ClusterError where a worker, by address what it says of itself, has another of these versions or instruction sets than `here`.

    `why` it must be as `here`.
    """
    for address, there in workers.items():
        for what in names:
            if there.get(what) != here[what]:
                raise ClusterError(f"the worker {address} has {what} {there.get(what)}", f"{what} {here[what]}, {why}", next_step)


def find_dask(asked: str) -> Any:
    """Dask's package, which an option wants. Raises RequestError where it is not installed."""
    if importlib.util.find_spec("distributed") is None:
        raise RequestError(f"{asked}, and Dask is not installed", "it", "pip install 'quantkit[workers]'")
    return importlib.import_module("distributed")


def connected(dask: Any, address: str) -> Any:
    """A client of the scheduler there. Raises ClusterError where none answers."""
    try:
        return dask.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        got = f"no scheduler answers at {address}"
        raise ClusterError(got, "the address of a running one, such as tcp://host:8786", "start one: dask scheduler") from error
