"""Items and batches: what is read, from where, under which preprocessing, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from quantkit.core.errors import DataError
from quantkit.data import Batch, Images, Preprocessing, bind, check_labels, collect, concatenate, open_dataset
from quantkit.data.splits import whole

PLAIN = Preprocessing()


def picture(seed: int, height: int = 12, width: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(seed: int, height: int = 12, width: int = 16) -> bytes:
    content = io.BytesIO()
    picture(seed, height, width).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["dog/b.png", "dog/a.png", "cat/x.PNG", "cat/deeper/y.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


def labels_of(dataset: object) -> dict[str, int | None]:
    assert isinstance(dataset, Images)
    return {name: None if dataset.item(i).label is None else int(dataset.item(i).label) for i, name in enumerate(dataset.names)}


def test_class_folders_are_numbered_in_the_order_of_their_names(folder: Path) -> None:
    assert labels_of(open_dataset(folder, PLAIN)) == {"cat/deeper/y.png": 0, "cat/x.PNG": 0, "dog/a.png": 1, "dog/b.png": 1}


def test_an_archive_reads_as_its_folder_does_and_looks_through_what_holds_all(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ["dog/b.png", "dog/a.png", "cat/x.PNG", "cat/deeper/y.png"]:
            archive.write(folder / name, f"data/test/{name}")
    packed, plain = open_dataset(path, PLAIN), open_dataset(folder, PLAIN)

    assert {name.removeprefix("data/test/"): label for name, label in labels_of(packed).items()} == labels_of(plain)
    assert whole(packed).digests() == whole(plain).digests()
    assert torch.equal(packed.item(2).inputs["0"], plain.item(2).inputs["0"])


@pytest.mark.parametrize(
    "column, values, wanted",
    [("class_index", ["7", "3"], [7, 3]), ("label", ["7", "3"], [7, 3]), ("class", ["zebra", "ant"], [1, 0])],
    ids=["class_index", "label", "class-names"],
)
def test_a_labels_csv_names_files_beside_it_or_in_images(tmp_path: Path, column: str, values: list[str], wanted: list[int]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(png(0))
    (tmp_path / "two.png").write_bytes(png(1))
    (tmp_path / "labels.csv").write_text(f"licence,file,{column}\nx,one.png,{values[0]}\ny,two.png,{values[1]}\n")
    dataset = open_dataset(tmp_path, PLAIN)

    assert list(labels_of(dataset).values()) == wanted
    assert dataset.digest(0) == hashlib.sha256(png(0)).hexdigest()


def test_images_in_no_folder_have_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))

    assert labels_of(open_dataset(tmp_path, PLAIN)) == {"a.png": None}
    assert whole(open_dataset(tmp_path, PLAIN)).labels() is None


def test_preprocessing_resizes_crops_the_centre_and_normalises_by_channel() -> None:
    path_free = Images("here", ("a",), None, lambda _: png(3, 30, 50), Preprocessing(20, (16, 10), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), 0)
    resized = np.asarray(picture(3, 30, 50).resize((33, 20), Image.Resampling.BILINEAR))
    cut = resized[2:18, 12:22]  # round((33 - 10) / 2) is 12: halves go to the even side
    wanted = (cut / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]

    assert torch.allclose(path_free.item(0).inputs["0"], torch.tensor(wanted.transpose(2, 0, 1), dtype=torch.float32), atol=1e-6)


def test_preprocessing_agrees_with_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed: pip install quantkit[vision]")
    theirs = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(15), transforms.ToTensor()])
    for seed, size in enumerate([(30, 50), (50, 31), (21, 20), (64, 64)]):
        mine = Images("here", ("a",), None, lambda _, seed=seed, size=size: png(seed, *size), Preprocessing(20, 15), 0)
        assert torch.allclose(mine.item(0).inputs["0"], theirs(picture(seed, *size)), atol=1e-6)


def test_scale_and_an_exact_size_replace_the_defaults() -> None:
    dataset = Images("here", ("a",), None, lambda _: png(3), Preprocessing(resize=(8, 4), scale=1 / 127.5, mean=1.0), 0)
    values = dataset.item(0).inputs["0"]

    assert values.shape == (3, 8, 4)
    pixels = np.asarray(picture(3).resize((4, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert torch.allclose(values, torch.from_numpy(pixels / 127.5 - 1).float(), atol=1e-6)


def test_preprocessing_survives_json() -> None:
    for preprocessing in (PLAIN, Preprocessing(256, (224, 192), (0.1, 0.2, 0.3), 0.5, 1 / 127.5)):
        assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    with pytest.raises(DataError, match="did you mean 'resize'"):
        Preprocessing.from_json({"resise": 3})


@pytest.mark.parametrize(
    "bad",
    [
        {"resize": 0},
        {"resize": (3,)},
        {"crop": 2.5},
        {"crop": (1, -1)},
        {"std": 0.0},
        {"mean": float("nan")},
        {"scale": float("inf")},
        {"mean": ()},
    ],
    ids=str,
)
def test_preprocessing_that_means_nothing_is_refused(bad: Mapping[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(bad))):
        Preprocessing(**bad)  # type: ignore[arg-type]


def test_decoded_images_are_kept_up_to_the_bound() -> None:
    reads: list[str] = []

    def read(name: str) -> bytes:
        reads.append(name)
        return png(int(name))

    dataset = Images("here", ("0", "1", "2"), None, read, PLAIN, cache_bytes=2 * 12 * 16 * 3)
    first = [dataset.item(i).inputs["0"] for i in range(3)]
    second = [dataset.item(i).inputs["0"] for i in range(3)]

    assert reads == ["0", "1", "2", "2"]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def remove(folder: Path, name: str) -> None:
    for path in (folder / name).rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: (f / "dog/a.png").write_text("not an image"), "dog/a.png.*it is not an image"),
        (lambda f: (f / "dog/a.png").write_bytes(b""), "dog/a.png"),
        (lambda f: (f / "dog/a.png").write_bytes(png(0)[:-40]), "dog/a.png"),
        (lambda f: (f / "dog/a.png").unlink(), "cannot read image dog/a.png"),
    ],
    ids=["text", "empty", "truncated", "vanished"],
)
def test_an_image_that_cannot_be_read_is_named(folder: Path, spoil, says: str) -> None:
    dataset = open_dataset(folder, PLAIN)
    spoil(folder)
    with pytest.raises(DataError, match=says) as caught:
        [dataset.item(i) for i in range(4)]
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_found_before_anything_is_decoded(folder: Path) -> None:
    (folder / "dog/a.png").write_text("not an image")
    with pytest.raises(DataError, match=r"dog/a\.png"):
        whole(open_dataset(folder, PLAIN)).digests()


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: (f / "dog").rename(f / "cat" / "dog"), "of one class, 'cat'"),
        (lambda f: remove(f, "dog"), "class folder .*dog holds no image"),
        (lambda f: (remove(f, "dog"), remove(f, "cat")), "no image in"),
        (lambda f: (f / "loose.png").write_bytes(png(9)), "loose.png lies beside"),
        (lambda f: (f / "labels.csv").write_text("file,class\nabsent.png,1\ndog/a.png,2\n"), "names absent.png"),
        (lambda f: (f / "labels.csv").write_text("file,class\ndog/a.png,1\ncat/x.PNG,1\n"), "of one class, 1"),
        (lambda f: (f / "labels.csv").write_text("file,kind\ndog/a.png,1\n"), "has columns file, kind"),
        (lambda f: (f / "labels.csv").write_text("file,class\n"), "has no rows"),
    ],
    ids=["one-class", "empty-class", "empty", "loose", "csv-missing-file", "csv-one-class", "csv-columns", "csv-empty"],
)
def test_a_folder_that_makes_no_labelled_dataset_is_refused(folder: Path, spoil, says: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=says):
        open_dataset(folder, PLAIN)


def test_a_crop_beyond_the_image_and_items_of_different_shape_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"cat/deeper/y.png is 12x16; wanted at least 14x14"):
        open_dataset(folder, Preprocessing(crop=14)).item(0)
    (folder / "dog/a.png").write_bytes(png(0, 9, 9))
    with pytest.raises(DataError, match="differ in shape"):
        list(whole(open_dataset(folder, PLAIN)).batches(4))


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        save_file({name: torch.from_numpy(values) for name, values in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("label", ["labels", "label"])
def test_arrays_are_inputs_by_name_beside_their_labels(tmp_path: Path, suffix: str, label: str) -> None:
    ids, mask = np.arange(12).reshape(4, 3), np.ones((4, 3), dtype=np.float64)
    dataset = open_dataset(saved(tmp_path / f"data{suffix}", {"ids": ids, "mask": mask, label: np.array([1, 0, 2, 1])}), PLAIN)
    batch = next(whole(dataset).batches(4))

    assert set(batch.inputs) == {"ids", "mask"} and batch.inputs["ids"].dtype == torch.int64
    assert batch.inputs["mask"].dtype == torch.float32
    assert batch.labels is not None and batch.labels.tolist() == [1, 0, 2, 1]


def test_arrays_know_items_by_content_wherever_they_lie(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    one = open_dataset(saved(tmp_path / "a.npz", {"x": values}), PLAIN)
    other = open_dataset(saved(tmp_path / "b.safetensors", {"x": values[::-1].copy(), "labels": np.arange(5)}), PLAIN)

    assert whole(one).digests() == whole(other).digests()[::-1]
    assert len(set(whole(one).digests())) == 5


def test_array_values_are_scaled_only_when_asked(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", {"x": np.full((2, 3, 4, 4), 51, dtype=np.uint8)})

    assert open_dataset(path, PLAIN).item(0).inputs["x"].dtype == torch.uint8
    scaled = open_dataset(path, Preprocessing(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=0.5)).item(0).inputs["x"]
    assert torch.allclose(scaled[:, 0, 0], torch.tensor([0.2, 0.0, -0.2]), atol=1e-6)


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"x": np.array([[1.0], [np.nan], [2.0]])}, "item 1 has NaN or infinity in 'x'"),
        ({"x": np.ones((2, 1)), "labels": np.array([0.0, np.inf])}, "item 1 has NaN or infinity in 'labels'"),
        ({"x": np.ones((3, 1)), "labels": np.arange(2)}, "different length"),
        ({"labels": np.arange(2)}, "no input"),
        ({"x": np.ones((0, 3))}, "without items"),
        ({"x": np.float32(1.0)}, "without items"),
        ({"x": np.array([{}], dtype=object)}, "cannot read"),
        ({"x": np.array(["a"])}, "cannot read"),
    ],
    ids=["nan", "inf-label", "lengths", "no-input", "empty", "scalar", "pickle", "text"],
)
def test_arrays_that_are_no_items_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_dataset(saved(tmp_path / "a.npz", arrays), PLAIN)


@pytest.mark.parametrize(
    "preprocessing, arrays, says",
    [
        (Preprocessing(crop=2), {"x": np.ones((2, 3, 4, 4))}, "resize or crop for arrays"),
        (Preprocessing(scale=2.0), {"x": np.ones((2, 3), dtype=np.int64)}, "scale, mean or std"),
        (Preprocessing(scale=2.0), {"x": np.ones((2, 3)), "y": np.ones((2, 3))}, "scale, mean or std"),
    ],
    ids=["crop", "tokens", "two-inputs"],
)
def test_preprocessing_that_arrays_cannot_take_is_refused(tmp_path: Path, preprocessing: Preprocessing, arrays, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_dataset(saved(tmp_path / "a.npz", arrays), preprocessing)


def test_a_mean_for_other_channels_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", {"x": np.ones((2, 1, 4, 4))})
    with pytest.raises(DataError, match="mean has 3 numbers"):
        open_dataset(path, Preprocessing(mean=(0.1, 0.2, 0.3))).item(0)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".zip"])
def test_a_truncated_or_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/1.png", png(0))
    else:
        saved(path, {"x": np.ones((4, 100))})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="data"):
        open_dataset(path, PLAIN)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        open_dataset(path, PLAIN)


def test_a_path_that_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        open_dataset(tmp_path / "absent", PLAIN)
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"ending in \.npz, \.safetensors, \.zip"):
        open_dataset(tmp_path / "data.csv", PLAIN)


X, Y = torch.arange(24.0).reshape(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(TensorDataset(X, Y), batch_size=4),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        [Batch({"0": X[:4]}, Y[:4]), Batch({"0": X[4:]}, Y[4:])],
        [{"0": X, "labels": Y}],
        [({"0": X.double()}, Y.numpy())],
    ],
    ids=["loader", "tuples", "batches", "mapping", "mapping-and-labels"],
)
def test_whatever_yields_batches_is_collected(source: object) -> None:
    dataset = collect(source)  # type: ignore[arg-type]
    batch = next(whole(dataset).batches(6))

    assert torch.equal(batch.inputs["0"], X) and batch.inputs["0"].dtype == torch.float32
    assert batch.labels is not None and torch.equal(batch.labels, Y)


def test_tensors_tuples_of_one_and_of_more_are_inputs_in_order_and_masks_are_kept() -> None:
    assert collect([X, X]).labels is None and len(collect([(X,), (X,)])) == 12
    three = collect([(X, X + 1, Y)])
    assert list(three.inputs) == ["0", "1"] and three.labels is not None
    masked = collect([Batch({"ids": X}, None, X > 3)])
    assert torch.equal(next(whole(masked).batches(6)).mask, X > 3)


@pytest.mark.parametrize(
    "source, says",
    [
        ([], "yields no batch"),
        (["text"], "yields str"),
        ([{"a": X}, {"b": X}], "different inputs"),
        ([(X, Y), (X,)], "only some batches"),
        ([X, X[:, :2]], "differ in shape"),
        ([X * float("nan")], "NaN"),
    ],
    ids=["nothing", "text", "names", "some-labels", "shapes", "nan"],
)
def test_batches_that_do_not_fit_are_refused(source, says: str) -> None:
    with pytest.raises(DataError, match=says):
        collect(source)


def test_a_later_change_of_the_batch_does_not_reach_what_was_collected() -> None:
    mine = X.clone()
    dataset = collect([mine])
    mine.zero_()
    assert torch.equal(dataset.inputs["0"], X)


def test_inputs_are_bound_by_name_else_by_order() -> None:
    assert list(bind({"b": Y, "a": X}, ["a", "b"])) == ["a", "b"]
    assert torch.equal(bind({"0": X, "1": Y}, ["ids", "mask"])["mask"], Y)
    assert list(bind({"a": X, "extra": Y}, ["a"])) == ["a"]


@pytest.mark.parametrize("names", [["a"], ["ids", "c"], ["a", "b", "c"]], ids=str)
def test_inputs_that_match_neither_by_name_nor_by_count_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match="wanted the model's inputs"):
        bind({"ids": X, "mask": Y}, names)


def test_labels_out_of_range_are_counted_and_the_first_named() -> None:
    check_labels(np.array([0, 9]), 10)
    with pytest.raises(DataError, match=r"item 1 has label 10 \(2 labels are out of range\); wanted 0..9"):
        check_labels(np.array([0, 10, -1]), 10)
    with pytest.raises(DataError, match="labels of type float32"):
        check_labels(np.zeros(3, dtype=np.float32), 10)


def test_a_description_is_json_and_changes_with_labels_and_preprocessing_but_not_with_the_place(folder: Path, tmp_path: Path) -> None:
    described = {json.dumps(open_dataset(folder, p).describe()) for p in (PLAIN, Preprocessing(resize=8))}
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert json.dumps(open_dataset(moved, PLAIN).describe()) in described and len(described) == 2
    assert collect([(X, Y)]).describe() != collect([(X, Y + 1)]).describe()
    assert concatenate([collect([X]), collect([X])]).describe()["count"] == 12
