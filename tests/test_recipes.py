"""The recipes are the networks they say they are: float accuracy on real data, and one clear line where there is none."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from quantkit.core.errors import DataError, ModelError
from quantkit.data import Concatenated, Dataset, Subset
from quantkit.settings.recipe import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
DATA = Path(os.environ.get("QUANTKIT_DATA", RECIPES.parent.parent / "shared" / "data"))


def accuracy(model: torch.nn.Module, dataset: Dataset, count: int) -> float:
    """Top-1 in percent over `count` items spread evenly."""
    subset = Subset(dataset, tuple(range(0, len(dataset), len(dataset) // count)))
    with torch.inference_mode():
        right = [(model(batch.inputs["0"]).argmax(1) == batch.labels).float() for batch in subset.batches(50)]
    return 100 * float(torch.cat(right).mean())


@pytest.mark.parametrize(
    "name, parameters, count, least, most",
    [
        # Float top-1 over all items is 81.1, 83.1, 60.5 and 87.1; the bounds leave three standard errors of a sample.
        ("resnet20", 0.27, 500, 75, 87),
        ("resnet44", 0.66, 250, 76, 91),
        ("squeezenet1_1", 1.24, 60, 42, 79),
        ("mobilenet_v2", 3.49, 30, 70, 100),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_recipe_gives_the_network_with_its_accuracy(name: str, parameters: float, count: int, least: float, most: float) -> None:
    if not DATA.is_dir():
        pytest.skip("no data folder: set QUANTKIT_DATA")
    recipe = load_recipe(RECIPES / f"{name}.py")
    model, data = recipe.model, recipe.data if isinstance(recipe.data, Concatenated) else recipe.data["data"]

    assert recipe.name == name and not model.training
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == pytest.approx(parameters, abs=0.011)
    assert least <= accuracy(model, data, count) <= most


@pytest.mark.parametrize("name", ["resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2"])
def test_a_recipe_without_its_data_says_what_to_set(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QUANTKIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="next: set QUANTKIT_DATA"):
        load_recipe(RECIPES / f"{name}.py")


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch) -> Path:
    for number, name in enumerate(["n01440764", "n01443537"]):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((256, 300, 3), number, dtype=np.uint8)).save(tmp_path / name / "1.png")
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    return tmp_path


def test_the_torchvision_recipe_says_what_folder_to_name(monkeypatch) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    with pytest.raises(DataError, match="IMAGENET_DIR is not set"):
        load_recipe(RECIPES / "torchvision_resnet18.py")


def test_the_torchvision_recipe_says_what_file_to_put_where_when_offline(imagenet: Path, monkeypatch) -> None:
    api = pytest.importorskip("torchvision.models._api", reason="torchvision is not installed: pip install quantkit[vision]")

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(api, "load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match=r"copy resnet18-f37072fd\.pth to .*checkpoints"):
        load_recipe(RECIPES / "torchvision_resnet18.py")


def test_the_torchvision_recipe_loads_weights_and_images(imagenet: Path, monkeypatch) -> None:
    api = pytest.importorskip("torchvision.models._api", reason="torchvision is not installed: pip install quantkit[vision]")
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    monkeypatch.setattr(api, "load_state_dict_from_url", lambda *_, **__: state)
    recipe = load_recipe(RECIPES / "torchvision_resnet18.py")

    assert recipe.data.item(1).inputs["0"].shape == (3, 224, 224) and int(recipe.data.item(1).label) == 1
    assert torch.equal(recipe.model.fc.weight, state["fc.weight"])
