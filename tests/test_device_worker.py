"""Latency on a declared worker of Dask, a real one on the loopback address: what is timed is timed there, and the result says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import toys
from onnx import helper, numpy_helper
from test_pipeline import allocate, data, hurry, remember
from test_variants import Running, Step, recipe

import quantkit
from quantkit import pipeline
from quantkit.core import environment
from quantkit.core.environment import describe
from quantkit.core.errors import ClusterError, ConfigError, RequestError
from quantkit.core.progress import Silent
from quantkit.core.store import Run
from quantkit.core.workers import Device, ThisMachine
from quantkit.gating import LOCK, read_lock
from quantkit.runs.device_worker import DEVICE, DeviceWorker, checked, open_device
from quantkit.runs.workbench import Workbench
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.timing import Timing
from quantkit.settings.config import load_config
from quantkit.settings.options import Options
from quantkit.settings.request import resolve
from quantkit.settings.streamed import streamed_arguments
from quantkit.stages.request_record import job_fingerprint
from quantkit.verification import verify
from quantkit.verification.sittings import TimedFile

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).resolve().parent.parent
OTHER = "Another processor"
ONE = {"threads": 1, "schemes": "fp32,w8a8", "minimize": "latency", "max_latency": "50x"}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)


@contextmanager
def started(folder: Path, processor: str = OTHER) -> Iterator[SimpleNamespace]:
    """A scheduler and a declared worker, of so named a processor, which keeps temporary files in `folder` and times as hastily."""
    resources = {DEVICE: 1}
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", resources=resources
    ) as local, distributed.Client(local) as client:  # fmt: skip
        found = SimpleNamespace(local=local, client=client, address=local.scheduler_address, folder=folder)
        (found.pid,) = client.run(os.getpid).values()
        client.run(prepare, str(folder), processor)
        yield found


def prepare(folder: str, processor: str) -> None:
    """At the worker."""
    import tempfile

    from quantkit.allocation.costs import measured
    from quantkit.stages import finalists
    from quantkit.verification import sittings

    sittings.SITTINGS = 2
    measured.PROFILE_RUNS = finalists.ROUNDS = 3
    verify.LATENCY_SECONDS = 0.1
    tempfile.tempdir = folder
    environment.cpu_model = lambda: processor  # type: ignore[assignment]


def change(name: str, value: Any) -> Any:
    """At the worker: what `environment` says of `name`, from now on; what said it before."""
    before = getattr(environment, name)
    setattr(environment, name, value if callable(value) else lambda: value)
    return before


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with started(tmp_path_factory.mktemp("there")) as found:
        yield found


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    """The address of a scheduler whose one worker declares nothing."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as local:
        yield local.scheduler_address


def nothing_is_timed_here(patch: pytest.MonkeyPatch) -> None:
    def timed(*_: object, **__: object) -> None:
        raise AssertionError("timed in the process of the command")

    measured = ("allocation.costs.measured.interleave", "runtimes.ort_cpu.layer_ms", "stages.finalists.interleave")
    for place in (*measured, "verification.verify.interleave", "verification.verify.time_in_sittings"):
        patch.setattr(f"quantkit.{place}", timed)


def test_an_allocation_is_timed_on_the_device_and_says_so(
    device: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an ONNX file, so that the one in its place is timed too, and under a bound on latency."""
    float_file, words = toys.candidates(toys.toybox(), tmp_path).float_file, f"{OTHER}, {environment.isa_label()}"
    pinned = {group.name: "w8a8" for group in quantkit.inspect(str(float_file)).groups}  # one plan, so one file, whatever is timed
    asked = {**ONE, "model": str(float_file), "fix": pinned}
    with monkeypatch.context() as patch:
        nothing_is_timed_here(patch)
        result = allocate(tmp_path / "run", **asked, latency_workers=device.address)
        again = allocate(tmp_path / "run", **asked, latency_workers=device.address)
    assert result.latency is not None and result.variants[0].latency is not None
    assert result.environment["timed_on"] == words and result.environment["cpu"] == describe()["cpu"]
    assert [note for note in result.notes if words in note and "--latency-workers" in note]
    assert again.latency == result.latency and list(device.folder.iterdir()) == []
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert profile["plan"] and all(time > 0 for time in profile["plan"].values())

    lock = read_lock(tmp_path / "run" / LOCK, "model.onnx")
    assert lock is not None
    assert lock.changes({}) == [f"latency: {words} when it was locked, {environment.processor(describe())} here."]
    here = allocate(tmp_path / "run", **asked)  # what was timed there is no answer here
    assert "timed_on" not in here.environment and here.latency != result.latency
    made = Counter(path.name.rpartition("-")[0] for path in (tmp_path / "run" / "stages").iterdir())
    assert [made[stage] for stage in ("latency", "finalists", "bounded_latency", "file_latency", "result")] == [2] * 5
    assert made["accuracy"] == made["simulation"] == 1
    lock = read_lock(tmp_path / "run" / LOCK, "model.onnx")
    assert lock is not None and lock.timed_on is None and lock.changes({}) == []


def looked(paths: Sequence[Path], folder: Path, job: Any) -> Any:
    """A task: where it runs, on what."""
    beside = {str(path.relative_to(paths[0].parent)): path.read_bytes() for path in paths[0].parent.rglob("*") if path.is_file()}
    (folder / "left").write_text("by the task")
    return os.getpid(), [(path.name, path.read_bytes()) for path in paths], beside, str(folder), job


@contextmanager
def opened(address: str) -> Iterator[Device]:
    with open_device(address, "onnxruntime", Path()) as found:
        yield found


def test_files_lie_there_with_all_that_is_part_of_them_and_are_gone_afterwards(
    device: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = distributed.Client.submit, list[Any]()

    def submitted(*given: Any, **said: Any) -> Any:
        asked.append(said)
        return real(*given, **said)

    monkeypatch.setattr(distributed.Client, "submit", submitted)
    one, other = tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"
    for path in (one, other):
        path.parent.mkdir()
    weight = numpy_helper.from_array(np.arange(400, dtype=np.float32), "w")
    value = helper.make_tensor_value_info("x", 1, [400])
    model = helper.make_model(helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [value], [weight]))
    (one.parent / "part").mkdir()
    onnx.save(model, other)
    onnx.save(model, one, save_as_external_data=True, location="part/w.bin", size_threshold=0)
    network = tmp_path / "a" / "n.xml"
    network.write_text("<net/>")
    network.with_suffix(".bin").write_bytes(b"weights")
    with opened(device.address) as there:
        pid, files, beside, folder, job = there.run(looked, [one, other, one], {"feeds": np.ones(2), "runtime": ort_cpu})
        _, _, parts, _, _ = there.run(looked, [network], None)
    assert pid == device.pid != os.getpid() and job["runtime"] is ort_cpu and job["feeds"].tolist() == [1, 1]
    assert files == [(path.name, path.read_bytes()) for path in (one, other, one)]
    assert beside == {name: (one.parent / name).read_bytes() for name in ("m.onnx", "part/w.bin")}
    assert parts == {"n.xml": b"<net/>", "n.bin": b"weights"}
    assert asked == [{"pure": False, "resources": {DEVICE: 1}}] * 2  # so that Dask runs one at a time there
    assert Path(folder).parent == device.folder and list(device.folder.iterdir()) == []


def test_this_machine_uses_files_where_they_lie(tmp_path: Path) -> None:
    file, scratch = tmp_path / "m.onnx", tmp_path / "scratch"
    file.write_bytes(b"content")
    scratch.mkdir()
    with open_device(None, "onnxruntime", scratch) as here:
        assert isinstance(here, ThisMachine) and here.is_here and here.host == describe()
        folder, paths = here.run(lambda paths, folder, _: (folder, paths), [file], None)
    assert paths == [file] and folder.parent == scratch and list(scratch.iterdir()) == []


def test_times_of_a_device_elsewhere_are_kept_apart_even_if_it_is_of_the_same_processor(tmp_path: Path) -> None:
    there: Any = SimpleNamespace(host=describe(), is_here=False)
    with Run(tmp_path / "run") as store:
        one, other = Workbench(store, Silent()), Workbench(store, Silent(), device=there)
    assert (one.elsewhere, other.elsewhere) == ({}, {"timed_on": environment.processor(describe())})
    assert one.timed_on == {"processor": describe()["cpu"], "integer instructions": describe()["isa"]}
    assert other.timed_on == {**one.timed_on, **other.elsewhere}


def test_each_file_is_timed_where_it_lies_with_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(verify, "time_files", lambda *given: asked.extend(given) or ())
    files, timing = [TimedFile(Path("a"), {"k": "1"}, ("x",)), TimedFile(Path("b"))], Timing(ort_cpu, {}, 3, {"x": np.ones(1)})
    verify.time_apart([Path("c"), Path("d")], Path(), (timing, files))
    assert asked == [ort_cpu, [TimedFile(Path("c"), {"k": "1"}, ("x",)), TimedFile(Path("d"))], timing.feeds, 3]


def test_no_declared_worker_is_one_line(plain: str) -> None:
    wanted = rf'no worker of {plain} declares itself the device.*dask worker {plain} --nthreads 1 --resources "quantkit-device=1"'
    with pytest.raises(ClusterError, match=wanted), opened(plain):
        pass


SAID = {"quantkit": "1", "onnxruntime": "2", "openvino": "3", "torch": "4", "cpu": "a", "isa": "avx2"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantkit": "0"}, "b has quantkit 0; wanted quantkit 1"),
        ({"onnxruntime": None}, "b has onnxruntime None; wanted onnxruntime 2"),
        ({"openvino": "0"}, "b has openvino 0; wanted openvino 3"),
        ({"isa": "avx512_vnni"}, "b has avx512_vnni, this machine has avx2; wanted VNNI on both or on neither"),
        ({"cpu": "z"}, "b has cpu z; wanted cpu a, as the first device"),
        ({"isa": "dotprod"}, "b has isa dotprod; wanted isa avx2, as the first device"),
    ],
)
def test_a_device_whose_times_would_be_of_something_else_is_refused(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ClusterError, match=f"the worker {words}"):
        checked({"a": SAID, "b": {**SAID, **changes}}, SAID, "openvino")


def test_a_device_of_another_processor_is_taken_as_it_is() -> None:
    there = {**SAID, "cpu": "z", "isa": "dotprod", "torch": "0", "openvino": "0"}
    assert checked({"a": there, "b": there}, SAID, "onnxruntime") is there


def hide(hidden: bool) -> None:
    """At the worker: quantkit, as if it were not installed, or as it was."""
    name, kept = "quantkit.core.environment", sys.__dict__.setdefault("kept", sys.modules["quantkit.core.environment"])
    sys.modules[name] = None if hidden else kept


def test_a_real_worker_without_the_same_arithmetic_versions_or_quantkit_is_one_line(device: SimpleNamespace, tmp_path: Path) -> None:
    other = "avx2" if environment.has_vnni() else "avx512_vnni"
    (before,) = device.client.run(change, "isa_label", other).values()
    with pytest.raises(ClusterError, match=rf"has {other}, this machine has .*VNNI on both"), opened(device.address):
        pass
    device.client.run(change, "isa_label", before)
    (before,) = device.client.run(change, "_version", lambda package: "0" if package == "openvino" else version(package)).values()
    with opened(device.address) as there:
        assert not there.is_here and there.host["cpu"] == OTHER
    with pytest.raises(ClusterError, match="has openvino 0; wanted openvino"):
        allocate(tmp_path / "run", target="openvino", latency_workers=device.address)
    device.client.run(change, "_version", before)
    device.client.run(hide, True)
    with pytest.raises(ClusterError, match=r"the device has no quantkit .*wanted quantkit"), opened(device.address):
        pass
    device.client.run(hide, False)


def test_a_device_that_becomes_another_is_one_line(device: SimpleNamespace, tmp_path: Path) -> None:
    with opened(device.address) as there:
        assert isinstance(there, DeviceWorker)
        device.client.run(change, "cpu_model", "A third")
        with pytest.raises(ClusterError, match=f"the device is now A third, .*wanted {OTHER}, .*as before"):
            there.run(lambda *_: 1, [], None)
        device.client.run(change, "cpu_model", OTHER)
        assert there.run(lambda *_: 1, [], None) == 1


def test_errors_of_a_task_go_up_and_a_full_disk_is_one_line(device: SimpleNamespace) -> None:
    def fails(_: Any, __: Path, job: Exception) -> None:
        raise job

    with opened(device.address) as there:
        with pytest.raises(RequestError, match="a file that is refused"):
            there.run(fails, [], RequestError("a file that is refused", "another", "try that"))
        with pytest.raises(ClusterError, match=r"No space left on device; wanted room"):
            there.run(fails, [], OSError(28, "No space left on device"))


def test_a_device_that_dies_is_replaced_by_another_or_is_one_line(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are started by the command of the page, and nobody starts them again; the worker beside them is no device."""

    def dies(_: Any, __: Path, mark: Path | None) -> int:
        if mark is None or not mark.exists():
            (mark or Path()).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    monkeypatch.setattr("quantkit.runs.cluster.CONNECT_SECONDS", 2)
    words = f"-m distributed.cli.dask_worker {plain} --no-nanny --nthreads 1 --no-dashboard --resources {DEVICE}=1".split()
    workers = [subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        with distributed.Client(plain) as client:
            client.wait_for_workers(3, timeout=60)
        with opened(plain) as there:
            assert there.run(dies, [], tmp_path / "died") in [worker.pid for worker in workers]  # begun again at the other
            with pytest.raises(ClusterError, match=f"no worker declares {DEVICE}.*run the same command again"):
                there.run(dies, [], None)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_a_scheduler_that_is_lost_is_one_line_and_the_same_command_goes_on(
    device: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.runs.cluster.CONNECT_SECONDS", 2)
    real, turns = DeviceWorker.run, list[Any]()
    (tmp_path / "there").mkdir()
    with started(tmp_path / "there") as first:

        def lost(self: DeviceWorker, task: Any, files: Any, job: Any) -> Any:
            turns.append(task)
            if len(turns) == 3:
                first.local.close()
            return real(self, task, files, job)

        with monkeypatch.context() as patch:
            patch.setattr(DeviceWorker, "run", lost)
            with pytest.raises(ClusterError, match="run the same command again"):
                allocate(tmp_path / "run", **ONE, latency_workers=first.address)
    stages = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").iterdir()}
    assert any(name.startswith("scores") for name in stages) and not any(name.startswith("latency") for name in stages)
    assert allocate(tmp_path / "run", **ONE, latency_workers=device.address).latency is not None  # at another address
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").iterdir()}
    assert {name: now[name] for name in stages} == stages


def test_what_is_not_an_address_or_cannot_be_timed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("2", "host:8786", ""):
        with pytest.raises(RequestError, match="--latency-workers"):
            Options(latency_workers=wrong)
    assert Options(latency_workers="tcp://10.0.0.7:8786", device="cuda").latency_workers == "tcp://10.0.0.7:8786"
    said: Any = {"data": data(), "target": "nbit", "latency_workers": "tcp://10.0.0.7:8786"}
    with pytest.raises(RequestError, match="--latency-workers for nbit, whose files are not timed"):
        resolve(toys.trained(), said, promised=False)
    with pytest.raises(RequestError, match="--latency-workers beside --streamed"):
        streamed_arguments({"latency_workers": "tcp://10.0.0.7:8786"})
    (tmp_path / "quantkit.toml").write_text('latency_workers = "tcp://10.0.0.7:8786"\n')
    with pytest.raises(ConfigError, match="latency_workers"):
        load_config(tmp_path)
    monkeypatch.setattr("quantkit.runs.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1"), opened("tcp://127.0.0.1:1"):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="--latency-workers tcp://x:1, and Dask is not installed"), opened("tcp://x:1"):
        pass


def test_variants_are_timed_there_too(device: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_timed_here(monkeypatch)
    network = Running().eval()
    given = recipe(network, Step(network), fix={"up": "w8a8", "down": "w8a8", "head": "w8a8"})
    (row,) = quantkit.allocate(given, run=tmp_path / "run", latency_workers=device.address).variants
    assert row.latency is not None


def test_a_measurement_is_timed_there_too(device: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_timed_here(monkeypatch)
    said: Any = {"data": data(), "run": tmp_path / "run", "schemes": "fp32,w8a8", "certificate": 0, "latency_workers": device.address}
    request = resolve(toys.trained(), said, promised=False)
    elsewhere = replace(request, options=replace(request.options, latency_workers=None))
    assert job_fingerprint(request) == job_fingerprint(elsewhere)  # the job is the same, wherever the scheduler is
    measured = pipeline.measure(request, Silent())
    history = [json.loads(line) for line in (measured.run / "history.jsonl").read_text().splitlines()]
    assert history[0]["inputs"]["timed_on"].startswith(OTHER)
