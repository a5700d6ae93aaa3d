"""Files beyond what protobuf takes: the weights lie beside the graph, and everything else is as it was. The limit is lowered for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import toys
from test_pipeline import hurry

import quantkit
from quantkit.data import Batch
from quantkit.export import onnx_file
from quantkit.runs.maintenance import clean
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import export_plan, read_plan

ITEMS = 120


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def allocated(run: Path, **options: Any) -> Result:
    inputs, labels = toys.images(ITEMS, seed=4, noise=1.5)
    arguments: dict[str, Any] = {"max_drop": 10.0, "minimize": "bytes", "certificate": 0, "run": run, **options}
    return quantkit.allocate(toys.trained(), data=[Batch({"x": inputs}, labels)], **arguments)


def answers(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": toys.images(8, seed=5)[0].numpy()})[0]
    return found


def locations(path: Path) -> set[str]:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def test_a_job_whose_files_are_too_large_for_one_gives_what_it_gives_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = allocated(tmp_path / "plain")
    monkeypatch.setattr(onnx_file, "LIMIT_BYTES", 256)
    shipped = tmp_path / "shipped.onnx"
    large = allocated(tmp_path / "large", output=shipped)
    assert [(row.group, row.scheme) for row in large.allocation] == [(row.group, row.scheme) for row in plain.allocation]
    assert large.executed.as_planned and large.simulation == plain.simulation
    assert [(row.name, row.drop) for row in large.baselines] == [(row.name, row.drop) for row in plain.baselines]
    for path in (large.files.onnx, large.files.float_onnx, shipped):
        assert locations(path) == {f"{path.name}.data"}
    for path in (large.files.onnx, shipped):
        assert np.array_equal(answers(path), answers(plain.files.onnx))
    assert large.bytes["ratio"] == onnx_file.size_bytes(large.files.onnx) / onnx_file.size_bytes(large.files.float_onnx)
    again = export_plan(read_plan(large.run), "ort-cpu", tmp_path / "again.onnx").file
    assert np.array_equal(answers(again), answers(plain.files.onnx)) and again.read_bytes() != shipped.read_bytes()
    onnx_file.remove(again)
    assert not [row for row in clean(large.run, dry_run=True) if row.path.endswith(".data")]
    data = {path.name for path in tmp_path.rglob("*.data")}
    assert data == {f"{path.name}.data" for path in (large.files.onnx, large.files.float_onnx, shipped)}


def test_a_smaller_file_in_its_place_leaves_no_weights_of_the_larger_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, path = allocated(tmp_path / "run"), tmp_path / "copy.onnx"
    for limit in (256, onnx_file.LIMIT_BYTES):
        with monkeypatch.context() as patch, onnx_file.opened(result.files.onnx) as model, onnx_file.saved(path) as temporary:
            patch.setattr(onnx_file, "LIMIT_BYTES", limit)
            onnx_file.save(model, temporary)
        assert onnx_file.data_of(path).exists() == (limit == 256)
        assert np.array_equal(answers(path), answers(result.files.onnx))


def test_a_file_of_that_name_which_is_somebody_else_s_is_left_alone(tmp_path: Path) -> None:
    result, path = allocated(tmp_path / "run"), tmp_path / "copy.onnx"
    stranger = onnx_file.data_of(path)
    stranger.write_bytes(b"weights of another network")
    for _ in range(2):  # no file there, then one
        with onnx_file.saved(path) as temporary:
            onnx_file.copy(result.files.onnx, temporary)
        assert stranger.read_bytes() == b"weights of another network"
    assert onnx_file.size_bytes(path) == path.stat().st_size
    assert onnx_file.content_digest(path) == onnx_file.content_digest(result.files.onnx)
    onnx_file.remove(path)
    assert stranger.exists() and not path.exists()


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = allocated(tmp_path / "run")
    monkeypatch.setattr(onnx_file, "LIMIT_BYTES", 256)

    def fail() -> None:
        with onnx_file.opened(result.files.onnx) as model, onnx_file.saved(tmp_path / "copy.onnx") as temporary:
            onnx_file.save(model, temporary)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_the_weights_beside_a_file_are_of_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LIMIT_BYTES", 256)
    file = allocated(tmp_path / "run").files.onnx
    before = onnx_file.content_digest(file)
    data = onnx_file.data_of(file)
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert onnx_file.content_digest(file) != before
    onnx_file.remove(file)
    assert not file.exists() and not data.exists()
