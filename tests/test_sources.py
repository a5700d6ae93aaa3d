"""The code that a stage's result follows from: what its module imports, and nothing else of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.core import sources
from quantkit.core.sources import code_of, reached


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of four modules, where `a` imports `b` and, for type checkers alone, `c`; `b` imports `deep.d` inside a function."""
    folder = tmp_path / "quantkit"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.py").write_text("from typing import TYPE_CHECKING\nfrom quantkit.b import x\nif TYPE_CHECKING:\n    import quantkit.c\n")
    (folder / "b.py").write_text("import os\nx = 1\ndef f():\n    from quantkit.deep import d\n    return d\n")
    (folder / "c.py").write_text("y = 2\n")
    (folder / "deep" / "__init__.py").write_text("import quantkit.c\n")
    (folder / "deep" / "d.py").write_text("z = 3\n")
    monkeypatch.setattr(sources, "PACKAGE", folder)
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    for cached in (sources.code_of, sources._imports):
        cached.cache_clear()


def test_imports_are_followed_wherever_they_stand_but_for_type_checkers(package: Path) -> None:
    assert reached("quantkit.a") == {"quantkit.a", "quantkit.b", "quantkit.deep.d"}
    assert reached("quantkit.deep") == {"quantkit.deep", "quantkit.c"}
    assert reached("os") == reached("quantkit.absent") == frozenset()


CHANGED = {"a.py": True, "b.py": True, "deep/d.py": True, "c.py": False, "deep/__init__.py": False}


@pytest.mark.parametrize(("changed", "counts"), CHANGED.items())
def test_the_code_of_a_module_changes_with_what_it_reaches_alone(package: Path, changed: str, counts: bool) -> None:
    before = code_of("quantkit.a")
    (package / changed).write_text((package / changed).read_text() + "# another line\n")
    _forget()

    assert (code_of("quantkit.a") != before) is counts


REACHED = {  # a file that a stage's result follows from, and one that it does not
    "capture": ("network/capture.py", "rounding"),
    "ranges": ("calibration/observers.py", "allocation"),
    "weights": ("quantization/rounding/gptq.py", "sensitivity/kl.py"),
    "scores": ("sensitivity/kl.py", "allocation"),
    "costs": ("allocation/costs/measured.py", "sensitivity/kl.py"),
    "finalists": ("allocation/costs/timing.py", "sensitivity/kl.py"),
    "judge": ("runtimes/evaluation.py", "sensitivity/kl.py"),
    "verify": ("verification/parity.py", "sensitivity/kl.py"),
    "items": ("data/images.py", "quantization"),
}


@pytest.mark.parametrize("stage", REACHED)
def test_a_stage_follows_from_what_it_computes_with_and_not_from_the_rest(stage: str) -> None:
    inside, outside = REACHED[stage]
    found = {name.removeprefix("quantkit.").replace(".", "/") for name in reached(f"quantkit.stages.{stage}")}

    assert inside.removesuffix(".py") in found
    assert not [name for name in found if name.startswith(outside.removesuffix(".py"))]
    assert not [name for name in found if name.split("/")[0] in ("cli", "report", "gating", "api")]


def test_the_whole_job_is_every_module_but_what_shows_and_loads_results(tmp_path: Path) -> None:
    found = {name.split(".")[1] for name in reached("quantkit.pipeline") if "." in name}

    assert {"allocation", "calibration", "core", "data", "export", "network", "quantization", "runtimes", "sensitivity", "stages"} <= found
    assert found.isdisjoint({"cli", "report", "api"})
