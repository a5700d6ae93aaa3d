"""Fixtures that several files share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from networks import Bench, bench


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """The networks of NETWORKS on their benches, each made once."""
    made: dict[str, Bench] = {}

    def get(name: str) -> Bench:
        if name not in made:
            made[name] = bench(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get
