"""The demo: a real network on real digits, the same each time, and a job in which mixing precisions pays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.cli import demo, main
from quantkit.core.errors import ModelError
from quantkit.core.progress import Silent

has_digits = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed: pip install 'quantkit[demo]'")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"quantkit\[demo\]"):
        demo.digits()

    assert main(["demo"]) == 2
    assert "quantkit[demo]" in capfd.readouterr().err


@has_digits
def test_digits_are_images_between_0_and_1_with_their_classes() -> None:
    images, labels = demo.digits()

    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_training_is_the_same_each_time_and_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 2)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(160, 1, 8, 8, generator=generator), torch.randint(0, 10, (160,), generator=generator)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = demo.train(images, labels, Silent())
    torch.manual_seed(99)
    torch.set_num_threads(threads % 2 + 1)
    second = demo.train(images, labels, Silent())
    torch.set_num_threads(threads)
    torch.set_rng_state(state)

    assert torch.equal(weights(first), weights(second))
    assert not first.training


def test_training_tells_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Count(Silent):
        told = 0

        @contextmanager
        def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
            def advance(steps: int) -> None:
                self.told += steps

            yield advance
            assert self.told == total

    monkeypatch.setattr(demo, "EPOCHS", 3)
    counted = Count()
    demo.train(torch.rand(64, 1, 8, 8), torch.arange(64) % 10, counted)

    assert counted.told == 3


def test_images_are_shifted_by_at_most_one_pixel() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1.0
    generator = torch.Generator().manual_seed(0)
    places = {tuple(int(place) for place in demo._shifted(image, generator).nonzero()[0, 2:]) for _ in range(200)}

    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


@has_digits
@pytest.mark.slow
def test_the_network_is_good_on_digits_that_it_never_saw() -> None:
    recipe = demo.build(Silent())
    parts = {name: getattr(recipe.data, name) for name in ("calibration", "search", "gate")}
    right = []
    for part in parts.values():
        batch = next(iter(part.batches(len(part))))
        right += (recipe.model(batch.inputs["x"]).argmax(dim=1) == batch.labels).tolist()

    assert {name: len(part) for name, part in parts.items()} == {"calibration": 100, "search": 400, "gate": 400}
    assert np.mean(right) >= 0.97


@has_digits
@pytest.mark.slow
def test_the_demo_keeps_its_promise_with_two_schemes_in_a_third_of_the_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["demo", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "digits.onnx"), "--json"])
    result = json.loads(capfd.readouterr().out)

    assert code == 0
    assert result["kept"]
    assert len({row["scheme"] for row in result["allocation"]}) >= 2
    assert result["executed"]["int8_macs"] >= 0.8
    assert result["bytes"]["ratio"] <= 1 / 3
    assert (tmp_path / "digits.onnx").stat().st_size == result["bytes"]["quantized"]
