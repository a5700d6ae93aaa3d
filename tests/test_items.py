"""What one pass over the items can know is refused before any work: one line, and no stage in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from torch import Tensor, nn

import quantkit
from quantkit.core.errors import DataError, MetricError, RequestError
from quantkit.core.progress import Silent
from quantkit.core.store import Run
from quantkit.data import Batch, Item
from quantkit.loading import LoadedModel, from_module
from quantkit.pipeline import measure
from quantkit.runs.history import read_sessions
from quantkit.settings.arguments import Arguments
from quantkit.settings.request import resolve
from quantkit.stages import capture
from quantkit.stages.items import try_network

ITEMS = 300


class Listed:
    """A dataset of the items that it is given."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        return self.items[index]

    def digest(self, index: int) -> str:
        return f"{index:064x}"

    def describe(self) -> dict[str, Any]:
        return {"kind": "listed", "count": len(self)}


def items() -> list[Item]:
    inputs, labels = toys.images(ITEMS, seed=4)
    return [Item({"x": row}, label) for row, label in zip(inputs, labels, strict=True)]


def changed(place: int, **values: Any) -> Listed:
    """Good items, but for the one at `place`."""
    found = items()
    old = found[place]
    found[place] = Item(values.get("inputs", old.inputs), values.get("label", old.label))
    return Listed(found)


def with_labels(labels: Tensor) -> list[Batch]:
    return [Batch({"x": toys.images(ITEMS, seed=4)[0]}, labels)]


def refuse_work(*_: Any, outputs: Any = ()) -> None:
    raise AssertionError("the network was captured before the items were checked")


def stages_of(run: Path) -> list[str]:
    """What lies in the run folder of a stage's, or stands in its history."""
    files = [path.name for pattern in ("stages/*", "*.onnx", "*.pt2") for path in run.glob(pattern)]
    return files + [stage for session in read_sessions(Run(run)) for stage in session.stages] if run.exists() else []


def images(folder: Path, *, torn: int) -> Path:
    """Images in class folders, of which one begins as it should and ends too early."""
    generator = np.random.default_rng(0)
    for place in range(ITEMS):
        path = folder / str(place % toys.CLASSES) / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        if place == torn:
            path.write_bytes(path.read_bytes()[:-60])
    return folder


IMAGE = torch.zeros(3, 8, 8)
BAD: dict[str, tuple[Any, str]] = {
    "label out of range": (lambda: changed(170, label=torch.tensor(24)), r"has label 24; wanted 0\.\.3, as the model has 4 outputs"),
    "negative label": (lambda: changed(170, label=torch.tensor(-1)), r"has label -1; wanted 0\.\.3"),
    "labels that are no whole numbers": (lambda: with_labels(torch.rand(ITEMS)), r"type float32; wanted whole class numbers 0\.\.3"),
    "an item without a label": (lambda: Listed([*items()[:-1], Item({"x": IMAGE})]), r"items of the \w+ split have a label; wanted"),
    "not a number": (lambda: changed(170, inputs={"x": IMAGE / 0}), r"has NaN or infinity in 'x'; wanted finite numbers"),
    "another shape": (lambda: changed(170, inputs={"x": torch.zeros(3, 8, 9)}), r"shape \[3, 8, 9\].*wanted \[3, 8, 8\] and float32"),
    "another type": (lambda: changed(170, inputs={"x": IMAGE.double()}), r"type float64; wanted \[3, 8, 8\] and float32"),
    "a missing input": (lambda: changed(170, inputs={"y": IMAGE}), r"has no input 'x'; wanted the inputs x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_items_are_refused_before_any_stage(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "capture", refuse_work)
    make, line = BAD[case]
    with pytest.raises(DataError, match=line) as refused:
        quantkit.allocate(toys.trained(), data=make(), max_drop=10.0, run=tmp_path / "run")
    assert "\n" not in str(refused.value) and refused.value.next_step
    assert stages_of(tmp_path / "run") == []


def test_an_image_that_is_cut_short_is_refused_before_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "capture", refuse_work)
    folder = images(tmp_path / "images", torn=170)
    with pytest.raises(DataError, match=r"cannot read image 2/170\.png"):
        quantkit.allocate(toys.trained(), data=folder, max_drop=10.0, run=tmp_path / "run")
    assert stages_of(tmp_path / "run") == []


def test_labels_of_another_shape_than_the_answers_are_refused_before_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "capture", refuse_work)
    with pytest.raises(MetricError, match=r"labels of shape \[2, 2\] for outputs of shape \[2, 4\]"):
        quantkit.allocate(toys.trained(), data=with_labels(torch.zeros(ITEMS, 2, dtype=torch.int64)), max_drop=10.0, run=tmp_path / "run")
    assert stages_of(tmp_path / "run") == []


def test_too_few_search_items_for_the_budget_are_refused_by_the_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"20 items, each worth 5 points, for a budget of 1 points"):
        good = with_labels(toys.images(ITEMS, seed=4)[1])
        resolve(toys.trained(), Arguments(data=good, max_drop=1.0, search_items=20, run=tmp_path / "run"))


def test_answers_that_are_not_finite_are_refused_before_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, toys.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.linear(x[:, 0, 0]).log() / 0
            return found

    monkeypatch.setattr(capture, "capture", refuse_work)
    with pytest.raises(DataError, match="Broken returns NaN or infinite values"):
        quantkit.allocate(Broken(), data=with_labels(toys.images(ITEMS, seed=4)[1]), max_drop=10.0, run=tmp_path / "run")
    assert stages_of(tmp_path / "run") == []


class Refuses(nn.Module):
    """Raises an error of its own making, as users' networks do."""

    class Error(Exception):
        pass

    def forward(self, x: Tensor) -> Tensor:
        raise Refuses.Error("not these items")


def test_the_trial_leaves_the_network_as_it_was_and_takes_programs_of_a_fixed_batch() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.mean(dim=(2, 3)) + 0 * self.calls

    part = resolve(toys.trained(), Arguments(data=with_labels(toys.images(ITEMS, seed=4)[1]), max_drop=10.0)).splits.calibration
    counted = from_module(Counts())
    assert try_network(counted, part)[0].shape == (2, 3)
    assert counted.module is not None and float(counted.module.get_buffer("calls")) == 0
    program = torch.export.export(toys.trained().eval(), (torch.zeros(5, 3, 8, 8),))
    assert try_network(LoadedModel("program", "memory", "0", None, program), part)[0].shape == (5, toys.CLASSES)
    assert try_network(from_module(nn.Linear(7, 2)), part) == ()  # the capture says why
    assert try_network(from_module(Refuses()), part) == ()


def test_good_items_are_read_once_for_a_run_folder(tmp_path: Path) -> None:
    class Watched(Listed):
        reads = 0

        def item(self, index: int) -> Item:
            Watched.reads += 1
            return super().item(index)

    def until_capture() -> int:
        Watched.reads = 0
        with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="captured"):
            patch.setattr(capture, "capture", refuse_work)
            request = resolve(toys.trained(), Arguments(data=Watched(items()), max_drop=10.0, run=tmp_path / "run"))
            Watched.reads = 0
            measure(request, Silent())
        return Watched.reads

    assert until_capture() >= ITEMS
    assert until_capture() == 0
