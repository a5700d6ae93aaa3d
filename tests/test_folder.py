"""A folder as transformers saves one: read offline, its texts tokenized, its pictures sized as it says; one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import quantkit
from quantkit.core.errors import DataError, ModelError, QuantkitError
from quantkit.data import Preprocessing
from quantkit.data.text import read_texts
from quantkit.loading import folder as folders
from quantkit.loading import load_model
from quantkit.settings.options import Arguments
from quantkit.settings.request import resolve, resolve_model

transformers = pytest.importorskip("transformers")

WORDS = ("good", "bad", "film", "plot", "a", "the", "was", "is")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, two classes by name, twenty positions, a tokenizer of a dozen words."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    torch.manual_seed(0)
    labels = {"negative": 0, "positive": 1}
    config = transformers.BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=20, label2id=labels,
                                     id2label={number: name for name, number in labels.items()}, **TINY)  # fmt: skip
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **TINY)
    transformers.ViTForImageClassification(config).eval().save_pretrained(folder)
    said = {"do_resize": True, "size": {"height": 16, "width": 16}, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def copied(folder: Path, to: Path, **changes: object) -> Path:
    """The folder with another config.json."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


def sentences(path: Path, count: int = 60) -> Path:
    random = np.random.default_rng(0)
    rows = [f"{' '.join(random.choice(WORDS, 3 + row % 9))} {row % 7}\t{row % 2}" for row in range(count)]
    path.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return path


def test_a_network_of_text_takes_ids_and_mask_and_gives_its_logits(bert: Path) -> None:
    model = load_model(str(bert))
    assert model.name == "tiny-bert" and model.module is not None and not model.module.training
    assert {name: list(value.shape) for name, value in (model.example or {}).items()} == {"input_ids": [2, 20], "attention_mask": [2, 20]}
    theirs = transformers.BertForSequenceClassification.from_pretrained(str(bert), attn_implementation="eager").eval()
    ids, mask = torch.randint(5, 12, (3, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 5 + [0] * 2])
    with torch.no_grad():
        assert torch.equal(model.module(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits)


def test_without_a_head_it_gives_the_mean_of_the_unmasked_tokens(bert: Path, tmp_path: Path) -> None:
    encoder = transformers.BertForSequenceClassification.from_pretrained(str(bert)).bert
    encoder.save_pretrained(tmp_path / "encoder")
    module = load_model(str(tmp_path / "encoder")).module
    ids, mask = torch.randint(5, 12, (1, 6)), torch.tensor([[1, 1, 1, 1, 0, 0]])
    assert module is not None
    with torch.no_grad():
        states = encoder.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(module(ids, mask), states[:, :4].mean(dim=1))


def test_texts_are_tokenized_by_the_folder_and_padding_is_masked(bert: Path, tmp_path: Path) -> None:
    path = sentences(tmp_path / "data.tsv")
    request = resolve(str(bert), Arguments(data=path, max_drop=50.0))
    first = request.splits.search.item(0)
    assert request.example is not None and [*request.example] == ["input_ids", "attention_mask"]
    length = len(first.inputs["input_ids"])
    assert length == 16  # the longest has eleven words and three signs, and lengths are multiples of eight
    kept = int(first.inputs["attention_mask"].sum())
    assert (first.inputs["input_ids"][kept:] == 0).all() and int(first.inputs["input_ids"][0]) == VOCABULARY.index("[CLS]")
    shorter = resolve(str(bert), Arguments(data=path, max_drop=50.0, input_shape="1x6"))
    assert len(shorter.splits.search.item(0).inputs["input_ids"]) == 6


def test_labels_may_be_names(bert: Path) -> None:
    assert folders.label_numbers(bert, ["positive", "negative", "1"]).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="row 2 has the label 'neutral'; wanted a number, or one of negative, positive"):
        folders.label_numbers(bert, ["positive", "neutral"])


def test_a_folder_is_allocated_like_any_network(bert: Path, tmp_path: Path) -> None:
    data = sentences(tmp_path / "data.tsv", 240)
    pinned = {"network.bert.encoder.layer.0.intermediate.dense": "w8d8"}  # what is fastest hangs on the clock
    result = quantkit.allocate(str(bert), data=data, max_drop=50.0, run=tmp_path / "run", certificate=0, fix=pinned)
    assert result.executed.as_planned and result.simulation.layers_exact == 1.0
    assert pinned.items() <= {row.group: row.scheme for row in result.allocation}.items()
    assert [base.name.split(" (")[0] for base in result.baselines][-1] == "onnxruntime quantize_dynamic"


def test_pictures_are_read_as_the_folder_says(vit: Path, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}{label}.png")
    assert Preprocessing(**folders.image_settings(vit)) == Preprocessing(resize=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    request = resolve(str(vit), Arguments(data=tmp_path / "images", max_drop=60.0))
    assert request.example is not None and [list(value.shape) for value in request.example.values()] == [[2, 3, 16, 16]]
    mine = resolve(str(vit), Arguments(data=tmp_path / "images", max_drop=60.0, resize="16x16", mean="0"))
    assert not torch.equal(mine.example["0"], request.example["0"]) if mine.example else False


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_it_is_inspected_without_data(name: str, request: pytest.FixtureRequest) -> None:
    model, example, _ = resolve_model(str(request.getfixturevalue(name)), Arguments())
    assert example is not None and model.module is not None


def wrong(text: str, kind: type[QuantkitError] = ModelError) -> pytest.RaisesExc[QuantkitError]:
    return pytest.raises(kind, match=text)


def test_bad_folders_are_one_line(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wrong("runs code of its own .*; next: pass --trust-pickle"):
        load_model(str(copied(bert, tmp_path / "code", auto_map={"AutoModel": "mine.Mine"})))
    with wrong("names the architecture T5EncoderStack"):
        load_model(str(copied(bert, tmp_path / "t5", architectures=["T5EncoderStack"])))
    with wrong("weights of BertForMaskedLM are not in"):
        load_model(str(copied(bert, tmp_path / "head", architectures=["BertForMaskedLM"])))
    cut = copied(bert, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with wrong("transformers cannot load"):
        load_model(str(cut))
    weights.unlink()
    with wrong("no weights in"):
        load_model(str(cut))
    (cut / "config.json").write_text("{")
    with wrong("config.json cannot be read"):
        load_model(str(cut))
    with wrong("--arch"):
        load_model(str(bert), arch="package.module:function")
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None)
    with wrong("transformers is not installed; wanted it; next: pip install"):
        load_model(str(bert))


def test_bad_texts_are_one_line(bert: Path, tmp_path: Path) -> None:
    data = sentences(tmp_path / "data.tsv")
    with wrong("30 tokens for a network of 20 positions", DataError):
        resolve(str(bert), Arguments(data=data, max_drop=50.0, input_shape="1x30"))
    bare = copied(bert, tmp_path / "bare")
    for name in folders.TOKENIZERS:
        (bare / name).unlink(missing_ok=True)
    with wrong("no tokenizer in"):
        resolve(str(bare), Arguments(data=data, max_drop=50.0))
    with wrong("row 2 has no text", DataError):
        folders.tokenize(bert, ["good", "  "], None)
    (tmp_path / "three.tsv").write_text("a\tb\t1\n")
    with wrong("line 1 of .* has 3 columns; wanted two", DataError):
        read_texts(tmp_path / "three.tsv")
    (tmp_path / "empty.csv").write_text("text,label\n")
    with wrong("has no lines", DataError):
        read_texts(tmp_path / "empty.csv")
    (tmp_path / "latin.tsv").write_bytes("sch\xf6n\t1\n".encode("latin-1"))
    with wrong("is not UTF-8", DataError):
        read_texts(tmp_path / "latin.tsv")
    with wrong("holds texts, and the model has no tokenizer", DataError):
        resolve(torch.nn.Linear(2, 2), Arguments(data=data, max_drop=50.0))


def test_quotation_marks_stand_for_themselves_beside_a_tab(tmp_path: Path) -> None:
    (tmp_path / "quotes.tsv").write_text('"good" film\t1\n')
    (tmp_path / "quotes.csv").write_text('"good, bad",0\n')
    assert read_texts(tmp_path / "quotes.tsv") == (['"good" film'], ["1"])
    assert read_texts(tmp_path / "quotes.csv") == (["good, bad"], ["0"])
