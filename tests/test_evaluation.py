"""A file over data: every item once, in order, whatever the batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn

from quantkit.core.errors import DataError
from quantkit.data import Batch, collect
from quantkit.data.splits import whole
from quantkit.export.float_onnx import export_float
from quantkit.network.capture import capture
from quantkit.runtimes.evaluation import evaluate, feeds, open_session


class FixedBatch(nn.Module):
    """A batch of 4 and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).reshape(4, 4, 36).mean(2)


@pytest.fixture(scope="module")
def fixed() -> toys.Toybox:
    torch.manual_seed(0)
    return toys.unpack(torch.export.export(FixedBatch().eval(), (torch.zeros(4, 3, 8, 8),)))


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    return toys.candidates(toys.toybox(), tmp_path).float_file


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_the_answers_are_the_networks_for_every_item_in_order(toy_file: Path, batch_size: int) -> None:
    items = toys.subset(24, seed=3)
    wanted = toys.trained()(next(items.batches(24)).inputs["x"]).detach().numpy()
    (found,) = evaluate(open_session(toy_file, threads=1), items, batch_size)

    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_fixed_batch_is_filled_up_and_cut_again(fixed: toys.Toybox, tmp_path: Path, count: int) -> None:
    session = open_session(toys.candidates(fixed, tmp_path).float_file, threads=1)
    items = toys.subset(10, seed=3)
    inputs = next(items.batches(10)).inputs["x"]
    wanted = torch.cat([fixed.captured.module(part) for part in inputs[[*range(10), 0, 0]].split(4)]).detach().numpy()
    (found,) = evaluate(session, items.first(count), batch_size=32)

    assert session.batch == 4
    np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-5)


def test_more_than_a_fixed_batch_at_once_is_refused(fixed: toys.Toybox, tmp_path: Path) -> None:
    session = open_session(toys.candidates(fixed, tmp_path).float_file, threads=1)

    with pytest.raises(DataError, match=r"batch of 5.*fixed batch 4.*--batch-size"):
        session.run({session.input_names[0]: np.zeros((5, 3, 8, 8), np.float32)})


def overflowing() -> toys.Toy:
    """Finite weights whose scores are not."""
    model = toys.trained()
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    return model


def test_answers_that_are_not_finite_are_told_with_the_file(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates = toys.candidates(box, tmp_path)
    export_float(capture(overflowing(), {"x": toys.images(2, seed=0)[0]}), candidates.float_file, toys.ort_cpu.OPSET)

    with pytest.raises(DataError, match=r"float\.onnx.*NaN or infinite"):
        evaluate(open_session(candidates.float_file, threads=1), box.items, 8)


def test_ranges_of_what_is_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        toys.unpack(overflowing())


def test_inputs_are_bound_to_the_files_names() -> None:
    batch = next(whole(collect([Batch({"0": torch.ones(2, 3)})])).batches(2))

    assert list(feeds(batch, ("pixels",))) == ["pixels"]
    with pytest.raises(DataError, match="inputs"):
        feeds(batch, ("pixels", "mask"))


def test_threads_and_options_reach_the_session(toy_file: Path, tmp_path: Path) -> None:
    key = "session.disable_prepacking"
    session = open_session(toy_file, threads=2, options={key: "1"}, optimized=tmp_path / "optimized.onnx", profile=tmp_path / "profile")
    settings = session.handle.get_session_options()

    assert settings.intra_op_num_threads == 2
    assert settings.get_session_config_entry(key) == "1"
    assert (tmp_path / "optimized.onnx").exists()
    assert Path(session.handle.end_profiling()).parent == tmp_path


def test_items_of_another_shape_are_the_data_s_fault(fixed: toys.Toybox, tmp_path: Path) -> None:
    path = toys.candidates(fixed, tmp_path).float_file
    with pytest.raises(DataError, match="shape or type"):
        open_session(path, threads=1).run({"x": np.zeros((4, 3, 7, 8), np.float32)})
