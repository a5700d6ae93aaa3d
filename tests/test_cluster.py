"""Workers of Dask, real ones on the loopback address: the numbers of one process, whatever becomes of a worker on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from quantkit import pipeline
from quantkit.core.environment import describe
from quantkit.core.errors import ClusterError, ConfigError, RequestError
from quantkit.core.progress import Silent
from quantkit.core.store import Run
from quantkit.core.workers import Here
from quantkit.data import Batch
from quantkit.runs.cluster import Cluster, check_alike, open_workers
from quantkit.sensitivity import gram, kl
from quantkit.settings.config import load_config
from quantkit.settings.options import Options
from quantkit.settings.request import resolve
from quantkit.stages import judge

distributed = pytest.importorskip("distributed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_workers("2", Silent()) as workers:
        assert isinstance(workers, Cluster)
        yield workers


def test_scores_have_the_bits_of_one_process(cluster: Cluster) -> None:
    torch.manual_seed(5)
    box = toys.unpack(toys.Toy().eval())
    plain: Any = toys.context(box)
    here, there = (replace(plain, engine=replace(plain.engine, workers=workers)) for workers in (Here(), cluster))
    mine, theirs = kl.estimate(here), kl.estimate(there)
    np.testing.assert_array_equal(theirs.table.values, mine.table.values)
    assert mine.gram is not None and theirs.gram is not None
    np.testing.assert_array_equal(theirs.gram.matrix, mine.gram.matrix)
    np.testing.assert_array_equal(gram.measure(there)[0].matrix, gram.measure(here)[0].matrix)


def test_results_come_in_the_order_of_the_parts_however_long_each_takes(cluster: Cluster) -> None:
    def late(shared: list[float], part: int) -> float:
        time.sleep(shared[part % 3])
        return part * 10.0

    assert list(cluster.run(late, [0.2, 0.0, 0.05], range(7))) == [10.0 * part for part in range(7)]
    assert list(cluster.run(late, [0.0] * 3, [])) == []


def test_parts_are_asked_for_as_there_is_room(cluster: Cluster) -> None:
    asked = []

    def parts() -> Iterator[int]:
        for part in range(20):
            asked.append(part)
            yield part

    found = cluster.run(lambda _, part: part, None, parts())
    assert next(found) == 0 and len(asked) <= 2 * cluster.count
    assert list(found) == list(range(1, 20))


def test_an_error_of_a_part_goes_up_as_it_is(cluster: Cluster) -> None:
    def fails(_: None, part: int) -> int:
        if part == 3:
            raise RequestError("a part that fails", "another", "try that")
        return part

    def no_file(_: None, part: int) -> bytes:
        return Path(f"/nowhere/{part}").read_bytes()

    with pytest.raises(RequestError, match="a part that fails"):
        list(cluster.run(fails, None, range(6)))
    with pytest.raises(FileNotFoundError, match="nowhere/0"):  # an error of the system's is no lost worker
        list(cluster.run(no_file, None, range(2)))


def test_no_file_names_a_scheduler(tmp_path: Path) -> None:
    """What comes from one is unpickled, so only a call or the command line may name it."""
    (tmp_path / "quantkit.toml").write_text('workers = "tcp://10.0.0.1:8786"\n')
    with pytest.raises(ConfigError, match="workers"):
        load_config(tmp_path)


def test_a_part_whose_worker_is_killed_goes_to_another(tmp_path: Path) -> None:
    """Both workers are killed, one after the other, each once; what is shared was theirs."""

    def dies(folder: str, part: int) -> int:
        mark = Path(folder) / f"died-{part}"
        if part in (2, 5) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return part * part

    with open_workers("2", Silent()) as workers:
        assert workers is not None
        assert list(workers.run(dies, str(tmp_path), range(8))) == [part * part for part in range(8)]
    assert {path.name for path in tmp_path.iterdir()} == {"died-2", "died-5"}


def test_a_lost_scheduler_is_one_line() -> None:
    local = distributed.LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    with open_workers(local.scheduler_address, Silent()) as workers:
        assert workers is not None
        found = workers.run(lambda _, part: part, None, range(30))
        assert next(found) == 0
        local.close()
        with pytest.raises(ClusterError, match="run the same command again"):
            list(found)


@pytest.mark.parametrize("what", ["quantkit", "torch", "isa"])
def test_a_worker_that_would_compute_other_bits_is_refused(what: str) -> None:
    here = describe()
    check_alike({"tcp://a:1": here}, here)
    with pytest.raises(ClusterError, match=f"the worker tcp://b:2 has {what} another"):
        check_alike({"tcp://a:1": here, "tcp://b:2": {**here, what: "another"}}, here)


def test_what_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("0", "-1", "some", "host:8786"):
        with pytest.raises(RequestError, match="--workers"):
            Options(workers=wrong)
    with pytest.raises(RequestError, match="leave one of the two out"):
        Options(workers="2", device="cuda")
    monkeypatch.setattr("quantkit.runs.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1"), open_workers("tcp://127.0.0.1:1", Silent()):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="Dask is not installed"), open_workers("2", Silent()):
        pass


def test_a_measurement_has_the_same_tables_and_plans_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, those of each plan in its own network, scores, what candidates lose, and the names under which they are kept; times are
    modelled, so the same.
    """
    images, labels = toys.images(160, seed=1)
    found, looks, sent = [], [], []
    real = judge.Shipped

    def spied(*given: Any) -> Any:
        sent.append(given)
        return real(*given)

    monkeypatch.setattr(judge, "Shipped", spied)
    for name, workers in (("here", None), ("there", 2)):
        said: Any = {
            "data": [Batch({"x": images}, labels)], "run": tmp_path / name, "workers": workers, "certificate": 3,
            "target": "nbit", "schemes": "w8a8,w4a8,fp32",
        }  # fmt: skip
        measured = pipeline.measure(resolve(toys.trained(), said, promised=False), Silent())
        stages = sorted((measured.run / "stages").iterdir())
        found.append([path for path in stages if path.name.startswith(("weights", "scores", "plan"))])
        with Run(measured.run) as store:
            looks.append({record["key"]: record["look"] for record in store.records()})
        assert len(sent) == (0 if workers is None else 2)  # a few of the front and the uniform ones, then those that are fitted to
    assert looks[0] == looks[1] and len(looks[0]) > 20
    here, there = found
    assert [path.name for path in here] == [path.name for path in there] and len(here) > 5
    for one, other in zip(here, there, strict=True):
        if one.suffix == ".json":
            assert json.loads(one.read_text()) == json.loads(other.read_text())
        else:
            mine, theirs = np.load(one), np.load(other)
            assert mine.files == theirs.files and all(np.array_equal(mine[key], theirs[key]) for key in mine.files), one.name
