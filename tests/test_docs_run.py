"""Every snippet of the documentation, really run, page by page, on networks and data under the names that the pages use.

Slow. Fewer plans and rounds than a user gets, and no budget is too small for the few items here; all else is what the page says.
"""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from snippets import PAGES, Block, blocks, lines_of, name
from test_pipeline import hurry

from quantkit.cli import demo, main
from quantkit.settings.options import Options
from quantkit.stages import certify

pytestmark = pytest.mark.slow

ITEMS, SIDE = 60, 224
NETWORK = """
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 16, 3, stride=2)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x):
        return self.classifier(self.pool(self.body(self.stem(x).relu()).relu()).flatten(1))


def build():
    return Small()
"""
READERS = {"export", "verify", "pick", "report", "explain", "diff", "status", "clean"}  # what reads a run directory
ELSEWHERE = {  # what a line needs that is not here
    "recipes/": "the recipes' own data and weights",
    "build_and_check.py": "TensorRT",
    "my-": "a folder of transformers: tests/test_folder.py has it",
    "encoder.onnx": "an encoder: tests/test_bench_command.py has its shapes",
    "my.module:network": "a network with batch norm: tests/test_distilled.py has it",
    "allocate model.pt2 --max-drop 2": "a network with batch norm: tests/test_distilled.py has it",
}


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(certify, "TRAINED", dict.fromkeys(certify.TRAINED, 4))
        patch.setattr(demo, "EPOCHS", 2)
        for room in ("settings.request", "stages.judge"):
            patch.setattr(f"quantkit.{room}.check_budget", lambda *_: None)
        patch.setitem(Options.__init__.__kwdefaults__, "certificate", 3)
        yield


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that pages name, and a run directory `RUN`."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "mynets").mkdir()
    (folder / "mynets" / "resnet.py").write_text(NETWORK)
    with inside(folder):
        model = importlib.import_module("mynets.resnet").build().eval()
        torch.save(model, "model.pt")
        torch.save(model.state_dict(), "weights.pt")
        program = torch.export.export(model, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, "model.pt2")
        for seed, file in enumerate(("val.npz", "train.npz", "test.npz")):
            x = torch.randn(ITEMS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                np.savez(file, x=x.numpy(), labels=model(x).argmax(1).numpy())
        for images in ("images", "val"):
            draw_images(Path(images))
        Path("deploy").mkdir()
        written = ["--run", "RUN", "--output", "deploy/model.int8.onnx"]  # the lock file lies beside it then
        assert main(["allocate", "model.pt2", "--data", "val.npz", "--max-drop", "50", *written]) in (0, 1)
        for label in "ABC":
            shutil.copyfile("RUN/model.onnx", f"{label}.onnx")
        for label in ("other", "model", "deploy/model"):
            shutil.copyfile("RUN/model.onnx", f"{label}.int8.onnx")
            shutil.copyfile(next(Path("RUN").glob("float-*.onnx")), f"{label}.onnx")
        Path("data").mkdir()
        shutil.copyfile("val.npz", "data/gate.npz")
    return folder


def draw_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(ITEMS):
        (folder / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(folder / f"class{number % 3}" / f"{number}.png")


class inside:  # noqa: N801 - reads as the statement that it is
    """The folder as the current one, importable, as it is where a user types."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.before, self.path = Path.cwd(), list(sys.path)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        for module in [loaded for loaded in sys.modules if loaded.split(".")[0] in ("mynets", "metrics")]:
            del sys.modules[module]

    def __exit__(self, *_: object) -> None:
        os.chdir(self.before)
        sys.path[:] = self.path


def needs(words: list[str]) -> str:
    """What a command needs that is not here; empty if nothing."""
    if "openvino" in words and not find_spec("openvino"):
        return "openvino"
    return next((what for part, what in ELSEWHERE.items() if part in " ".join(words)), "")


def typed(words: list[str]) -> int:
    """The exit code of a line, run in this process."""
    expanded = [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else []) or [word]]
    if words[0] == "python":
        return scripted(expanded[1:])
    expanded = ["stem" if word in ("LAYER", "features.0") else word for word in expanded]
    for word in expanded[2:]:
        if words[1] in READERS and (word == "OTHER" or word.startswith("runs/")) and not Path(word).exists():
            shutil.copytree("RUN", word)
    return main(expanded[1:])


def scripted(arguments: list[str]) -> int:
    before = sys.argv
    try:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def executed(block: Block, namespace: dict[str, Any]) -> None:
    exec(compile(block.text, block.title or "<snippet>", "exec"), namespace)


def work_through(page: Path, done: Callable[[str, int], None]) -> None:
    """Every block of the page, in order, in the current folder."""
    model = importlib.import_module("mynets.resnet").build().eval()
    x = torch.randn(ITEMS, 3, SIDE, SIDE)
    namespace: dict[str, Any] = {"__name__": "snippet", "module": model, "loader": [(x, torch.arange(ITEMS) % 10)]}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python" and not any(f"import {other}" in block.text and not find_spec(other) for other in ("openvino",)):
            executed(block, namespace)
        elif block.language in ("", "sh"):
            for words in lines_of(block, "python"):
                if not needs(words) and (words[0] != "python" or Path(words[1]).exists()):
                    done(" ".join(words), typed(words))


PAGES_THAT_RUN = [page for page in PAGES if any(block.language == "python" or list(lines_of(block)) for block in blocks(page))]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=name)
def test_every_snippet_runs(page: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused and nothing crashes. On data without meaning a promise may be broken, save in the tutorial, which has its own."""
    if page.name == "tutorial.md":
        pytest.importorskip("sklearn")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "page"
    shutil.copytree(shelf, folder)
    codes: dict[str, int] = {}
    with inside(folder):
        work_through(page, lambda line, code: codes.update({line: code}))

    allowed = {line: {0} if page.name == "tutorial.md" and "demo" not in line else {0, 1} for line in codes}
    assert {line: code for line, code in codes.items() if code not in allowed[line]} == {}
