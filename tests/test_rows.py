"""Single items by position: torch's datasets, Hugging Face's and their files, each row as the same item from a file would be."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from quantkit.core.errors import DataError
from quantkit.data import Preprocessing, Rows, is_rows, open_dataset, whole
from quantkit.settings.arguments import Arguments
from quantkit.settings.request import resolve

PLAIN = Preprocessing()
SMALL = Preprocessing(resize=8, crop=6, mean=0.5, std=(0.2, 0.3, 0.4))


class Listed(torch.utils.data.Dataset[Any]):
    """Rows as they are given; a function is called for its row."""

    def __init__(self, *rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        return row() if callable(row) else row


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


def pictures(count: int = 4, side: int = 12) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def test_rows_of_every_form_give_their_inputs_and_label() -> None:
    x, y = torch.arange(3.0), torch.tensor(2)
    for row in ((x, y), (x, 2), [x.numpy(), 2], {"0": x, "label": 2}, ({"0": [0.0, 1.0, 2.0]}, y)):
        item = Rows(Listed(row), PLAIN).item(0)
        assert torch.equal(item.inputs["0"], x) and item.inputs["0"].dtype == torch.float32
        assert item.label is not None and int(item.label) == 2
    several = Rows(Listed((x, x + 1, y)), PLAIN).item(0)
    assert list(several.inputs) == ["0", "1"] and torch.equal(several.inputs["1"], x + 1)
    for row in (x, (x,), {"x": x}):
        assert Rows(Listed(row), PLAIN).item(0).label is None


def test_a_digest_is_of_the_inputs_and_the_labels_are_described() -> None:
    one, other = Rows(Listed((torch.ones(2), 0), (torch.zeros(2), 1)), PLAIN), Rows(Listed((torch.zeros(2), 0), (torch.ones(2), 0)), PLAIN)
    assert one.digest(0) == other.digest(1) != one.digest(1)
    assert one.describe() != Rows(Listed((torch.ones(2), 0), (torch.zeros(2), 0)), PLAIN).describe()
    assert one.describe()["count"] == 2


def test_pictures_are_preprocessed_as_those_of_a_folder(tmp_path: Path) -> None:
    for place, picture in enumerate(pictures()):
        (tmp_path / str(place % 2)).mkdir(exist_ok=True)
        picture.save(tmp_path / str(place % 2) / f"{place}.png")
    files, rows = open_dataset(tmp_path, SMALL), Rows(Listed(*[(picture, place % 2) for place, picture in enumerate(pictures())]), SMALL)
    for place, number in enumerate((0, 2, 1, 3)):  # a folder lists one class after the other
        assert torch.equal(files.item(place).inputs["0"], rows.item(number).inputs["0"])
        assert int(files.item(place).label) == int(rows.item(number).label)  # type: ignore[arg-type]


def test_arrays_are_scaled_as_they_are_asked_to_be() -> None:
    rows = Rows(Listed((torch.full((3, 2, 2), 4.0), 1)), Preprocessing(mean=2.0, std=4.0))
    assert torch.equal(rows.item(0).inputs["0"], torch.full((3, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((), "a Listed without rows"),
        ((lambda: (torch.rand(2), 0),), "another one each time it is read.*random transforms"),
        ((lambda: 1 / 0,), "row 0 of the Listed raises ZeroDivisionError"),
        (({"text": "good", "label": 1},), "has a str as 'text'; wanted numbers, or a picture"),
        (({"label": 1},), "has no input"),
        ((({}, 1),), "has no input"),
    ],
    ids=["none", "random", "raises", "text", "label alone", "empty"],
)
def test_what_is_no_row_is_one_line(rows: tuple[Any, ...], says: str) -> None:
    with pytest.raises(DataError, match=says) as refused:
        Rows(Listed(*rows), PLAIN)
    assert "\n" not in str(refused.value)


def test_a_torch_dataset_is_data_for_an_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = torch.Generator().manual_seed(0)
    dataset = torch.utils.data.TensorDataset(torch.randn(200, 6, generator=random), torch.randint(0, 3, (200,), generator=random))
    request = resolve(nn.Sequential(nn.Linear(6, 3)), Arguments(data=dataset, max_drop=5.0))

    assert len(request.splits.gate) + len(request.splits.search) + len(request.splits.calibration) == 200
    assert sorted(request.splits.gate.labels().tolist())[0] >= 0  # type: ignore[union-attr]
    seen = resolve(nn.Sequential(nn.Linear(6, 3)), Arguments(data=dataset, max_drop=5.0, mean=1.0)).splits.gate.item(0).inputs["0"]
    assert torch.allclose(seen, request.splits.gate.item(0).inputs["0"] - 1.0)
    with pytest.raises(DataError, match="a Endless, which has no length"):
        resolve(nn.Sequential(nn.Linear(6, 3)), Arguments(data=Endless(), max_drop=5.0))


def test_what_datasets_wrote_is_read_row_by_row(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="datasets is not installed: pip install quantkit[datasets]")
    made = library.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
    made.to_parquet(str(tmp_path / "rows.parquet"))
    made.save_to_disk(str(tmp_path / "folder"))
    (arrow,) = (tmp_path / "folder").glob("*.arrow")
    found = [open_dataset(path, PLAIN) for path in (tmp_path / "rows.parquet", tmp_path / "folder", arrow)] + [Rows(made, PLAIN)]

    assert is_rows(made) and len({whole(dataset).fingerprint() for dataset in found}) == 1
    assert torch.equal(found[0].item(1).inputs["x"], torch.tensor([3.0, 4.0])) and int(found[0].item(1).label) == 1  # type: ignore[arg-type]


def test_pictures_that_datasets_keeps_are_pictures(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="datasets is not installed: pip install quantkit[datasets]")
    features = library.Features({"image": library.Image(), "label": library.Value("int64")})
    made = library.Dataset.from_dict({"image": pictures(), "label": [0, 1, 0, 1]}, features=features)
    made.to_parquet(str(tmp_path / "rows.parquet"))
    rows = open_dataset(tmp_path / "rows.parquet", SMALL)

    assert torch.equal(rows.item(2).inputs["image"], Rows(Listed((pictures()[2], 0)), SMALL).item(0).inputs["0"])


def test_files_that_need_what_is_not_here_or_are_cut_short_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    if importlib.util.find_spec("datasets"):
        with pytest.raises(DataError, match=r"cannot read .*torn\.parquet"):
            open_dataset(tmp_path / "torn.parquet", PLAIN)

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DataError, match=r"`datasets` is not installed.*pip install datasets"):
        open_dataset(tmp_path / "torn.parquet", PLAIN)
