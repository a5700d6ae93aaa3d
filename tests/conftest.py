"""Fixtures that several files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from networks import Bench, bench
from torch._export import utils
from torch.onnx._internal.exporter import _registration as registration

from quantkit.core.environment import describe
from quantkit.core.workers import ThisMachine


@pytest.fixture(scope="session", autouse=True)
def exporters_read_their_library_once() -> Iterator[None]:
    """torch's exporters parse the source of 500 functions, and list all operators sixty times, in every call: a third of what an export of
    a small network takes. Neither changes while tests run; a torch that has other names for them is left alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(utils, "_materialize_cpp_cia_ops"):
            patch.setattr(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops))
        if hasattr(registration.ONNXRegistry, "from_torchlib"):
            patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(cache(registration.ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session", autouse=True)
def files_are_timed_in_two_sittings() -> Iterator[None]:
    """Each takes a process; no test looks at how long anything took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.verification.sittings.SITTINGS", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def files_are_timed_in_the_process_of_the_test() -> Iterator[None]:
    """One of its own loads torch first; tests/test_own_process.py has some."""

    @contextmanager
    def here(folder: Path) -> Iterator[ThisMachine]:
        yield ThisMachine(describe(), folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.runs.device_worker.own_process", here)
        yield


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """The networks of NETWORKS on their benches, each made once."""
    made: dict[str, Bench] = {}

    def get(name: str) -> Bench:
        if name not in made:
            made[name] = bench(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get
