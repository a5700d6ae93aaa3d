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
from quantkit.settings.arguments import Arguments
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


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of random weights with the same dozen words."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt"
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def texts(path: Path, count: int = 120) -> Path:
    random = np.random.default_rng(0)
    path.write_text("\n\n".join(" ".join(random.choice(WORDS, 4 + row % 30)) for row in range(count)) + "\n")
    return path


def test_texts_alone_are_labelled_by_their_next_tokens(gpt: Path, tmp_path: Path) -> None:
    request = resolve(str(gpt), Arguments(data=texts(tmp_path / "texts.txt"), metric="perplexity", max_drop="5%"))
    for split in (request.splits.calibration, request.splits.search, request.splits.gate):
        for place in range(len(split)):
            item = split.item(place)
            ids, mask, labels = item.inputs["input_ids"], item.inputs["attention_mask"].bool(), item.label
            assert len(ids) == 16 and labels is not None
            count = int(mask.sum())
            assert count >= 2 and labels[: count - 1].tolist() == ids[1:count].tolist() and (labels[count - 1 :] == -100).all()


def test_long_texts_are_cut_into_windows_and_nothing_is_lost(gpt: Path) -> None:
    text = " ".join(WORDS * 5)  # forty words and two signs
    windows = folders.tokenize_windows(gpt, [text, "good film"], 8)
    assert windows["input_ids"].shape == (7, 8) and windows["attention_mask"].sum(dim=1).tolist() == [8, 8, 8, 8, 8, 2, 4]
    joined = windows["input_ids"][:6][windows["attention_mask"][:6].bool()].tolist()
    assert joined == [VOCABULARY.index(word) for word in ("[CLS]", *WORDS * 5, "[SEP]")]


def test_texts_of_single_tokens_are_refused(gpt: Path) -> None:
    with pytest.raises(DataError, match="no text has two tokens"):
        folders.tokenize_windows(gpt, ["good"], 1)


def test_a_language_model_gets_a_decoder(gpt: Path, tmp_path: Path) -> None:
    result = quantkit.allocate(
        str(gpt), data=texts(tmp_path / "texts.txt"), metric="perplexity", max_drop="50%", certificate=0, minimize="bytes",
        schemes="w8a32,fp32", run=tmp_path / "run",
    )  # fmt: skip
    assert [row.name for row in result.variants] == ["decoder"] and (tmp_path / "run" / "decoder.onnx").is_file()
    assert result.executed.as_planned and result.variants[0].as_planned


def test_texts_for_a_language_model_bring_no_labels(gpt: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"for a network that continues texts; wanted a \.txt with a text in each line"):
        resolve(str(gpt), Arguments(data=sentences(tmp_path / "data.tsv"), metric="perplexity", max_drop="5%"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="has no lines"):
        resolve(str(gpt), Arguments(data=tmp_path / "empty.txt", metric="perplexity", max_drop="5%"))


def test_texts_without_labels_are_for_language_models(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a text and its label"):
        resolve(str(bert), Arguments(data=texts(tmp_path / "texts.txt"), max_drop=5.0))


def test_an_encoder_of_two_is_loaded_alone(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).eval().save_pretrained(tmp_path / "t5")
    module = load_model(str(tmp_path / "t5")).module
    assert module is not None and not any("decoder" in name for name, _ in module.named_parameters())
