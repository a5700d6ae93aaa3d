"""The recipes are the networks they say they are: float accuracy on real data, and one clear line where there is none."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
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


def load_module(name: str) -> ModuleType:
    """The recipe's file, without calling it."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


TORCHVISION = {"torchvision_imagenet": "resnet50-0676ba61", "vit_b_16": "vit_b_16-c867db91"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_torchvision_recipe_says_what_folder_to_name(name: str, monkeypatch) -> None:
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    with pytest.raises(DataError, match="IMAGENET_DIR is not set"):
        load_recipe(RECIPES / f"{name}.py")


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_torchvision_recipe_says_what_file_to_put_where_when_offline(name: str, imagenet: Path, monkeypatch) -> None:
    api = pytest.importorskip("torchvision.models._api", reason="torchvision is not installed: pip install quantkit[vision]")

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(api, "load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match=rf"copy {TORCHVISION[name]}\.pth to .*checkpoints"):
        load_recipe(RECIPES / f"{name}.py")


def test_the_torchvision_recipe_loads_weights_and_images(imagenet: Path, monkeypatch) -> None:
    api = pytest.importorskip("torchvision.models._api", reason="torchvision is not installed: pip install quantkit[vision]")
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    monkeypatch.setattr(api, "load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setenv("NETWORK", "resnet18")
    recipe = load_recipe(RECIPES / "torchvision_imagenet.py")

    assert recipe.data.item(1).inputs["0"].shape == (3, 224, 224) and int(recipe.data.item(1).label) == 1
    assert recipe.name == "resnet18" and torch.equal(recipe.model.fc.weight, state["fc.weight"])


@pytest.mark.parametrize("name", ["resnet", "fasterrcnn_resnet50_fpn"])
def test_the_torchvision_recipe_names_networks_that_it_takes(name: str, imagenet: Path, monkeypatch) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed: pip install quantkit[vision]")
    monkeypatch.setenv("NETWORK", name)
    with pytest.raises(ModelError, match=f"NETWORK is '{name}'; wanted a classifier"):
        load_recipe(RECIPES / "torchvision_imagenet.py")


def test_the_bert_recipe_says_what_to_copy_when_offline(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("BERT", raising=False)
    monkeypatch.delenv("SENTENCES", raising=False)
    with pytest.raises(DataError, match="SENTENCES is not set"):
        load_recipe(RECIPES / "bert_base.py")
    monkeypatch.setenv("SENTENCES", str(tmp_path / "dev.tsv"))

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match="cannot download textattack/bert-base-uncased-SST-2: ConnectionError"):
        load_recipe(RECIPES / "bert_base.py")
    monkeypatch.setenv("BERT", str(tmp_path))
    assert load_recipe(RECIPES / "bert_base.py").model == str(tmp_path)


def test_stories_are_read_as_llama2_c_writes_them(tmp_path: Path) -> None:
    """A file of its version 0, written here; rotation by neighbours, as there, gives the same scores."""
    pytest.importorskip("transformers")
    recipe = load_module("stories260k")
    random, width, hidden, layers, heads, key_heads, vocabulary, length = np.random.default_rng(0), 16, 24, 2, 4, 2, 20, 12
    shapes = {"table": (vocabulary, width), "norm1": (layers, width), "q": (layers, width, width), "k": (layers, width // 2, width),
              "v": (layers, width // 2, width), "o": (layers, width, width), "norm2": (layers, width), "gate": (layers, hidden, width),
              "down": (layers, width, hidden), "up": (layers, hidden, width), "last": (width,)}  # fmt: skip
    weights = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path / "model.bin"
    header = np.array([width, hidden, layers, heads, key_heads, vocabulary, length], np.int32)
    path.write_bytes(header.tobytes() + b"".join(value.tobytes() for value in weights.values()))
    ids = random.integers(0, vocabulary, 7)
    with torch.no_grad():
        found = recipe.read_network(path)(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(found, llama2_c(weights, ids, heads, key_heads), rtol=1e-3, atol=1e-4)


def llama2_c(w: dict, ids: np.ndarray, heads: int, key_heads: int) -> np.ndarray:
    """Its forward pass, token by token, as run.c goes."""
    size = w["table"].shape[1] // heads
    keys, values, scores = [], [], []

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return scale * x / np.sqrt((x * x).mean() + 1e-5)

    def turned(x: np.ndarray, place: int) -> np.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = place / 10000.0 ** ((i % size) / size)
            out[i], out[i + 1] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle), x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return out

    layers = len(w["q"])
    keys, values = [[] for _ in range(layers)], [[] for _ in range(layers)]
    for place, token in enumerate(ids):
        x = w["table"][token].astype(np.float64)
        for n in range(layers):
            y = norm(x, w["norm1"][n])
            q, k = turned(w["q"][n] @ y, place), turned(w["k"][n] @ y, place)
            keys[n].append(k), values[n].append(w["v"][n] @ y)
            mixed = []
            for head in range(heads):
                mine, theirs = slice(head * size, (head + 1) * size), head // (heads // key_heads)
                part = slice(theirs * size, (theirs + 1) * size)
                attention = np.exp(np.array([q[mine] @ past[part] for past in keys[n]]) / np.sqrt(size))
                mixed.append(sum(share * past[part] for share, past in zip(attention / attention.sum(), values[n], strict=True)))
            x = x + w["o"][n] @ np.concatenate(mixed)
            y = norm(x, w["norm2"][n])
            gate = w["gate"][n] @ y
            x = x + w["down"][n] @ (gate / (1 + np.exp(-gate)) * (w["up"][n] @ y))
        scores.append(w["table"] @ norm(x, w["last"]))
    return np.array(scores)


def test_stories_are_tokenized_by_pairs_of_the_highest_score() -> None:
    recipe = load_module("stories260k")
    tokens = {bytes([byte]): 3 + byte for byte in b" abc"} | {b"ab": 300, b"bc": 301, b" a": 302, b"abc": 303}
    scores = [0.0] * 400
    scores[300], scores[301], scores[302], scores[303] = 1.0, 2.0, 0.5, 3.0
    assert recipe.encode("abc", tokens, scores) == [1, 3 + ord(" "), 303]  # bc first, then a with it
    assert recipe.encode("é", tokens, scores) == [1, 3 + ord(" "), 3 + 0xC3, 3 + 0xA9]
