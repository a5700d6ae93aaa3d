"""A text encoder's file at any length: one plan, lengths that the data did not have, and what `--shape` measures of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformer_zoo as zoo
from torch import nn

import quantkit
from quantkit.cli.tables import _variant
from quantkit.core.errors import RequestError
from quantkit.loading import load_model
from quantkit.loading.any_length import length_variant
from quantkit.loading.model import Variant
from quantkit.runs.result import LengthRow, Result, VariantRow
from quantkit.runtimes.evaluation import open_session
from quantkit.settings.options import lengths
from quantkit.settings.request import resolve
from quantkit.verification.verify import Latency

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(zoo.source("BERT", tmp_path_factory.mktemp("zoo")))


@pytest.fixture(scope="module")
def result(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    run = tmp_path_factory.mktemp("runs") / "run"
    return quantkit.allocate(
        folder, data=[quantkit.Batch(zoo.inputs("BERT"))], metric="agreement", max_drop=60.0, certificate=0,
        shape="sequence=8:3,40", schemes="w8d8,fp32", run=run,
    )  # fmt: skip


def test_its_file_runs_as_planned_at_every_length(result: Result) -> None:
    (row,) = result.variants
    assert row.name == "any_length" and row.onnx == result.run / "any_length.onnx"
    assert row.as_planned and row.layers_exact == 1.0
    own, floats = (path.stat().st_size for path in (row.onnx, row.float_onnx))
    assert row.bytes_ratio == pytest.approx(own / floats)  # a plan of few layers takes more than the float file of so small a network
    assert [(one.length, one.weight, one.layers_exact) for one in row.lengths] == [(8, 3.0, 1.0), (40, 1.0, 1.0)]
    assert all(one.latency is not None and one.latency.ratio > 0 for one in row.lengths)


def test_it_answers_as_the_network_does_at_lengths_that_no_item_had(result: Result, folder: str) -> None:
    """The float file against torch, and the plan's file against its float file where the widths are the same as the network's."""
    (row,) = result.variants
    network = load_model(folder).module
    float_file, whole = open_session(row.float_onnx, threads=1), open_session(result.files.onnx, threads=1)
    mine = open_session(row.onnx, threads=1)
    for length in (3, 24, 40):
        ids = torch.randint(3, zoo.VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        assert network is not None
        with torch.no_grad():
            wanted = network(**given).numpy()
        arrays = {name: value.numpy() for name, value in given.items()}
        np.testing.assert_allclose(float_file.run(arrays)[0], wanted, rtol=1e-3, atol=1e-4)
        if length == zoo.TOKENS:  # what the network's own file takes, one item at a time, as ranges are of the call
            for item in range(2):
                one = {name: value[item : item + 1] for name, value in arrays.items()}
                np.testing.assert_allclose(mine.run(one)[0], whole.run(one)[0], rtol=1e-3, atol=1e-4)


def test_the_result_tells_of_lengths_and_comes_back(result: Result) -> None:
    kept = json.loads((result.run / "result.json").read_text())
    assert Result.from_json(kept, None, result.run).variants == result.variants
    assert [row["length"] for row in kept["variants"][0]["lengths"]] == [8, 40]
    assert kept["variants"][0]["mixed_ratio"] == result.variants[0].mixed_ratio


def test_the_mixed_ratio_is_of_all_calls_together() -> None:
    def latency(float_ms: float, quantized_ms: float) -> Latency:
        return Latency(float_ms, quantized_ms, quantized_ms / float_ms, 0.0, 1.0, 1, 1)

    rows = (LengthRow(8, 3.0, latency(1.0, 0.5), 1.0, 1.0), LengthRow(40, 1.0, latency(5.0, 4.0), 1.0, 1.0))
    row = VariantRow("any_length", Path("/a"), Path("/b"), 0.5, None, True, 1.0, 1.0, rows)
    assert row.mixed_ratio == pytest.approx((3 * 0.5 + 4.0) / (3 * 1.0 + 5.0))
    assert "by length 0.50 at 8, 0.80 at 40, together 0.69" in _variant(row.to_json())
    assert VariantRow.from_json(row.to_json()) == row
    assert VariantRow("decoder", Path("/a"), Path("/b"), 0.5, None, True, 1.0, 1.0).mixed_ratio is None


def test_inputs_of_another_length_are_cut_or_repeated() -> None:
    variant = length_variant(nn.Identity(), 50, 4)
    ids = variant.example["input_ids"]
    assert variant.has_one_length and ids.shape == (2, 4)
    assert torch.equal(variant.of_length(3)["input_ids"], ids[:, :3])
    assert torch.equal(variant.of_length(6)["input_ids"], torch.cat([ids, ids[:, :2]], dim=1))
    assert variant.of_length(6)["attention_mask"].shape == (2, 6)
    uneven = Variant(nn.Identity(), {"x": torch.zeros(2, 3), "y": torch.zeros(2, 4)}, {"x": (1,), "y": (1,)})
    assert not uneven.has_one_length


def test_lengths_are_read_once_and_refused_in_one_line() -> None:
    assert lengths("sequence=32,128") == ((32, 1.0), (128, 1.0))
    assert lengths("sequence=32:3, 128:0.5") == ((32, 3.0), (128, 0.5))
    for wrong in ("32,128", "sequence=", "sequence=0", "sequence=8,8", "sequence=8:0", "width=8", "sequence=8;9"):
        with pytest.raises(RequestError, match="--shape"):
            lengths(wrong)


def test_what_cannot_have_other_lengths_is_refused_before_any_work(folder: str) -> None:
    data = [quantkit.Batch(zoo.inputs("BERT"))]
    said = {"data": data, "metric": "agreement", "max_drop": 60.0}
    with pytest.raises(RequestError, match="--shape sequence=600 for a network of 512 positions"):
        resolve(folder, {**said, "shape": "sequence=600"})  # type: ignore[typeddict-item]
    with pytest.raises(RequestError, match="for a network without a form of any length"):
        resolve(nn.Linear(3, 2), {**said, "shape": "sequence=8"})  # type: ignore[typeddict-item]


def test_equalization_leaves_it_out(folder: str) -> None:
    data = [quantkit.Batch(zoo.inputs("BERT"))]
    asked = {"data": data, "metric": "agreement", "max_drop": 60.0, "equalization": "cross_layer"}
    assert not resolve(folder, asked).model.variants  # type: ignore[arg-type]
    assert list(load_model(folder).variants) == ["any_length"]
