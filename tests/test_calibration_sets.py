"""The builders in calibration/ make shards that read back as their source, and manifests that choose the same items again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration import build_digits, build_images, build_manifest, build_tokens
from quantkit.core.errors import DataError, OutputError
from quantkit.data import Preprocessing, collect, open_dataset, separate, write_shard
from quantkit.data.splits import whole

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--resize", "10x10", "--crop", "8", "--mean", "0.5,0.4,0.3", "--std", "0.2"]
PREPROCESSING = Preprocessing((10, 10), 8, (0.5, 0.4, 0.3), (0.2,))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_shard_of_images_holds_what_the_folder_gives_under_the_same_hashes(photos: Path, tmp_path: Path, suffix: str) -> None:
    shard = tmp_path / f"shard{suffix}"
    assert build_images.main([str(photos), str(shard), *FLAGS]) == 0
    made, source = open_dataset(shard, Preprocessing()), open_dataset(photos, PREPROCESSING)
    items = json.loads(shard.with_suffix(".json").read_text())["items"]
    positions = {digest: index for index, digest in enumerate(whole(source).digests())}

    assert len(made) == len(items) == 12
    for index, item in enumerate(items):
        other = source.item(positions[made.digest(index)])
        assert made.digest(index) == item["sha256"]
        assert torch.equal(made.item(index).inputs["0"], other.inputs["0"])
        assert made.item(index).label == other.label == item["label"]


def test_a_shard_overlaps_with_the_images_it_was_made_from(photos: Path, tmp_path: Path) -> None:
    build_images.main([str(photos), str(tmp_path / "shard.npz"), "--count", "3"])
    shard, other = open_dataset(tmp_path / "shard.npz", Preprocessing()), collect([torch.zeros(1, 1)])

    with pytest.raises(DataError, match="calibration and search splits share 3 items"):
        separate(shard, open_dataset(photos, Preprocessing()), other)


def test_a_shard_with_changed_values_has_another_fingerprint(photos: Path, tmp_path: Path) -> None:
    prints = set()
    for flags in (["--mean", "0.5"], ["--mean", "0.4"]):
        build_images.main([str(photos), str(tmp_path / "shard.npz"), *flags])
        prints.add(whole(open_dataset(tmp_path / "shard.npz", Preprocessing())).fingerprint())
    assert len(prints) == 2


def test_count_and_seed_choose_and_a_manifest_chooses_the_same_again(photos: Path, tmp_path: Path) -> None:
    chosen = {}
    for name, flags in {"one": ["--seed", "1"], "two": ["--seed", "2"]}.items():
        assert build_images.main([str(photos), str(tmp_path / f"{name}.npz"), "--count", "5", *flags]) == 0
        chosen[name] = whole(open_dataset(tmp_path / f"{name}.npz", Preprocessing())).digests()
    assert build_images.main([str(photos), str(tmp_path / "again.npz"), "--manifest", str(tmp_path / "one.json")]) == 0

    assert len(chosen["one"]) == 5 and chosen["one"] != chosen["two"]
    assert whole(open_dataset(tmp_path / "again.npz", Preprocessing())).digests() == chosen["one"]


@pytest.mark.parametrize("spoil, says", [("change", "another content"), ("remove", "is not there")])
def test_a_manifest_whose_files_are_gone_or_changed_is_refused(photos: Path, tmp_path: Path, capsys, spoil: str, says: str) -> None:
    build_images.main([str(photos), str(tmp_path / "one.npz")])
    victim = photos / "a" / "0.png"
    victim.write_bytes((photos / "b" / "1.png").read_bytes()) if spoil == "change" else victim.unlink()

    assert build_images.main([str(photos), str(tmp_path / "two.npz"), "--manifest", str(tmp_path / "one.json")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "two.npz").exists()


def test_an_image_builder_without_images_says_so(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    assert build_images.main([str(tmp_path / "x.npz"), str(tmp_path / "y.npz")]) == 2
    assert "holds no image files" in capsys.readouterr().err


def test_text_becomes_whole_blocks_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Größe zählt, immer wieder.", encoding="utf-8")
    assert build_tokens.main([str(tmp_path / "text.txt"), str(tmp_path / "t.npz"), "--length", "8"]) == 0
    dataset = open_dataset(tmp_path / "t.npz", Preprocessing())
    raw = "Größe zählt, immer wieder.".encode()

    assert len(dataset) == len(raw) // 8
    assert [bytes(dataset.item(i).inputs["input_ids"].tolist()) for i in range(3)] == [raw[:8], raw[8:16], raw[16:24]]


def test_lines_become_items_with_mask_and_label(tmp_path: Path) -> None:
    (tmp_path / "text.tsv").write_text("good\t1\n\nvery bad film\t0\n", encoding="utf-8")
    assert build_tokens.main([str(tmp_path / "text.tsv"), str(tmp_path / "t.safetensors"), "--length", "6", "--lines"]) == 0
    batch = next(whole(open_dataset(tmp_path / "t.safetensors", Preprocessing())).batches(2))

    assert batch.labels is not None and batch.labels.tolist() == [1, 0]
    assert batch.inputs["input_ids"].tolist() == [[*b"good", 0, 0], [*b"very b"]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]


def test_lines_without_labels_keep_their_tabs_and_a_count_takes_the_first(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\tb\nc\nd\n", encoding="utf-8")
    assert build_tokens.main([str(tmp_path / "text.txt"), str(tmp_path / "t.npz"), "--length", "3", "--lines", "--count", "2"]) == 0
    batch = next(whole(open_dataset(tmp_path / "t.npz", Preprocessing())).batches(9))

    assert batch.labels is None and batch.inputs["input_ids"].tolist() == [[*b"a\tb"], [*b"c", 0, 0]]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["absent.txt", "t.npz"], "no file"),
        (["text.txt", "t.npz", "--length", "99"], "without items"),
        (["text.txt", "t.bin"], "ending in .npz"),
    ],
    ids=["missing", "too-short", "ending"],
)
def test_text_that_makes_no_shard_is_refused(tmp_path: Path, monkeypatch, capsys, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("x" * 10 if "--length" in arguments else "x" * 999)

    assert build_tokens.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "text.txt").write_text("x")
    assert build_tokens.main([str(tmp_path / "text.txt"), str(tmp_path / "t.npz"), "--tokenizer", str(tmp_path)]) == 2
    assert "tokenizer" in capsys.readouterr().err


def test_an_unwritable_place_leaves_nothing_behind(tmp_path: Path) -> None:
    dataset = collect([torch.ones(2, 1)])
    with pytest.raises(OutputError, match="cannot write"):
        write_shard(dataset, tmp_path / "absent" / "x.npz")
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_shard(dataset, tmp_path / "x.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_the_committed_digits_are_what_their_script_makes(tmp_path: Path) -> None:
    committed = open_dataset(ROOT / "calibration" / "digits.npz", Preprocessing())
    assert (ROOT / "calibration" / "digits.npz").stat().st_size < 200_000
    assert committed.item(0).inputs["image"].shape == (1, 8, 8) and len(committed) == 1797

    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install quantkit[demo]")
    assert build_digits.main([str(tmp_path / "digits.npz")]) == 0
    assert whole(open_dataset(tmp_path / "digits.npz", Preprocessing())).fingerprint() == whole(committed).fingerprint()


@pytest.mark.parametrize("recipe, manifest", [("squeezenet1_1", "imagenet"), ("resnet44", "cifar10")])
def test_the_committed_manifests_are_what_the_recipes_use(tmp_path: Path, recipe: str, manifest: str) -> None:
    if not Path(os.environ.get("QUANTKIT_DATA", ROOT.parent / "shared" / "data")).is_dir():
        pytest.skip("no data folder: set QUANTKIT_DATA")
    assert build_manifest.main([str(ROOT / "recipes" / f"{recipe}.py"), str(tmp_path / "m.json"), "--split-seeds", "0,4"]) == 0
    made = json.loads((tmp_path / "m.json").read_text())["split_seeds"]
    committed = json.loads((ROOT / "calibration" / "manifests" / f"{manifest}.json").read_text())["split_seeds"]

    assert made == {seed: committed[seed] for seed in ("0", "4")}
    assert set(committed) == set("01234")
