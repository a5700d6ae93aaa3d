"""The device that files are timed on, where that is another machine: a worker of Dask that was started for it (`--latency-workers`)."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.environment import VNNI, describe, processor
from quantkit.core.errors import ClusterError
from quantkit.core.workers import Device, Task
from quantkit.loading.from_onnx.opening import data_files
from quantkit.runs.cluster import AGAIN, Cluster, check_alike, connected, declaring, find_dask
from quantkit.runs.own_process import own_process

DEVICE = "quantkit-device"  # the resource of Dask by which a worker declares itself


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """What goes to the device: bytes by the names under which they lie there, which of them are the files, and the task."""

    contents: Mapping[str, bytes]
    files: tuple[str, ...]
    task: Task
    job: Any


class DeviceWorker:
    """As `Device`: one of the workers of a Dask `client` that declare themselves, all of them of one `host`."""

    is_here = False

    def __init__(self, client: Any, host: Mapping[str, Any]) -> None:
        self.host = host
        self._workers = Cluster(client, 1, DEVICE)

    def run(self, task: Task, files: Sequence[Path], job: Any) -> Any:
        """As `Device.run`; a task whose worker is lost is begun again, if the worker comes back.

        Raises ClusterError where the device has no room, or is another than it was.
        """
        ((where, found),) = self._workers.run(unpack, pack(task, files, job), [None])
        if where != processor(self.host):
            raise ClusterError(f"the device is now {where}", f"{processor(self.host)}, as before", f"start that one, and {AGAIN}")
        if isinstance(found, OSError):
            got = f"the device cannot do it: {found}"
            raise ClusterError(got, "room in its folder for temporary files", f"free some, and {AGAIN}")
        return found


@contextmanager
def open_device(asked: str | None, package: str, folder: Path) -> Iterator[Device]:
    """The device behind the scheduler that `--latency-workers` names, whose runtime is of this package; where none is named a process of
    this machine.

    `folder` is for this machine's temporary files. Raises RequestError where Dask is not installed, ClusterError for a scheduler that does
    not answer, without a worker that declares itself, or whose times would be of something else.
    """
    if asked is None:
        with own_process(folder) as process:
            yield process
        return
    with connected(find_dask(f"--latency-workers {asked}"), asked) as client:
        found = declaring(client, DEVICE)
        if not found:
            got, do = f"no worker of {asked} declares itself the device", f'dask worker {asked} --nthreads 1 --resources "{DEVICE}=1"'
            raise ClusterError(got, "one that is started as it", f"there: {do}")
        here = describe()
        try:
            told = client.run(lambda: importlib.import_module("quantkit.core.environment").describe(), workers=found)
        except ModuleNotFoundError as error:
            got = f"the device has no quantkit ({error})"
            raise ClusterError(got, f"quantkit {here['quantkit']}, as here", "install it there, in the worker's environment") from error
        yield DeviceWorker(client, checked(told, here, package))


def checked(devices: Mapping[str, Mapping[str, Any]], here: Mapping[str, Any], package: str) -> Mapping[str, Any]:
    """What the devices are, by address what each says of itself.

    Raises ClusterError where one has another quantkit, onnxruntime or `package` than is `here`, where one of the two alone has VNNI,
    or where they are of several processors.
    """
    check_alike(devices, here, ("quantkit", "onnxruntime", package), "as here: others run a file otherwise", "install it there")
    for address, there in devices.items():
        if (there["isa"] in VNNI) != (here["isa"] in VNNI):
            got = f"the worker {address} has {there['isa']}, this machine has {here['isa']}"
            wanted = "VNNI on both or on neither: files are made and judged in the integer arithmetic of this machine"
            raise ClusterError(got, wanted, "start the command on a machine like the device, or see `quantkit profile --export`")
    first = next(iter(devices.values()))
    check_alike(devices, first, ("cpu", "isa"), "as the first device: times are of one processor", "leave one of them out")
    return first


def pack(task: Task, files: Sequence[Path], job: Any) -> Parcel:
    """The files with all that is part of them, each in a folder of its own: two may have one name."""
    contents, names = dict[str, bytes](), dict[Path, str]()
    for place, path in enumerate(dict.fromkeys(files)):
        names[path] = f"{place}/{path.name}"
        contents[names[path]] = path.read_bytes()
        for beside in [path.with_suffix(".bin")] if path.suffix == ".xml" else data_files(path):
            contents[f"{place}/{beside.relative_to(path.resolve().parent)}"] = beside.read_bytes()
    return Parcel(contents, tuple(names[path] for path in files), task, job)


def unpack(parcel: Parcel, _: None) -> tuple[str, Any]:
    """At the device: its processor, and what the task gives, or the OSError that kept it from that; nothing is left there."""
    try:
        with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
            folder = Path(name)
            for path, content in parcel.contents.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            found = parcel.task([folder / path for path in parcel.files], folder, parcel.job)
    except OSError as error:
        found = error
    return processor(describe()), found
