"""Float convolutions against the installed runtime, bit for bit, for every kind of part in which it adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_stored_plan import wide

from quantkit.core.environment import CPUINFO, isa_label
from quantkit.core.numerics import blocked
from quantkit.core.numerics.blocked import convolve, find_block
from quantkit.runtimes.evaluation import convolve_in_runtime

BLOCK = find_block(convolve_in_runtime)
known = pytest.mark.skipif(BLOCK is None, reason="this runtime adds in an order that is not known")


@pytest.mark.skipif(isa_label() != "avx2" or not CPUINFO.exists(), reason="the order was tried on x86-64 without VNNI, on Linux")
def test_the_order_is_known_where_it_was_tried() -> None:
    """Without this, broken sums would be taken for a runtime that adds otherwise, and the tests below skipped."""
    wide = "avx512f" in CPUINFO.read_text().split()
    assert 8 + 8 * wide == BLOCK


@known
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "groups", "padding"),
    [
        (3, 32, 3, 1, 1),
        (16, 24, 3, 1, 1),
        (16, 24, 5, 1, 2),
        (64, 16, 3, 1, 1),
        (12, 20, 3, 1, 0),
        (16, 24, 1, 1, 0),
        (16, 24, 1, 1, 1),
        (200, 24, 1, 1, 0),
        (24, 24, 3, 24, 1),
    ],
)
def test_every_bit_is_the_runtime_s(inputs: int, outputs: int, size: int, groups: int, padding: int) -> None:
    torch.manual_seed(inputs)
    x, bias = torch.randn(2, inputs, 13, 11), torch.randn(outputs)
    weight = 0.3 * torch.randn(outputs, inputs // groups, size, size)
    assert BLOCK is not None
    ours = convolve(x, weight, bias, (1, 1), (padding, padding), (1, 1), groups, BLOCK)
    theirs = convolve_in_runtime(x, weight, bias, padding, groups)
    assert ours is not None and torch.equal(ours, theirs)
    plain = torch.nn.functional.conv2d(x, weight, bias, padding=padding, groups=groups)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tile", [1, 100, 1 << 14])
def test_strides_dilations_and_tiles_change_no_sum(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "TILE", tile)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 11, 14), torch.randn(5, 8, 3, 2)
    ours = convolve(x, weight, None, (2, 3), (1, 2), (2, 1), 1, 8)
    assert ours is not None
    torch.testing.assert_close(ours, torch.nn.functional.conv2d(x, weight, None, (2, 3), (1, 2), (2, 1)), atol=1e-4, rtol=1e-4)


def test_what_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 33, 4, 4)
    assert convolve(x, torch.randn(8, 33, 1, 1), None, (1, 1), (0, 0), (1, 1), 1, 8) is None
    assert convolve(x[:, :32], torch.randn(8, 16, 1, 1), None, (1, 1), (0, 0), (1, 1), 2, 8) is None
    assert convolve(x[:, :32, :, 0], torch.randn(8, 32, 1), None, (1,), (0,), (1,), 1, 8) is None
    monkeypatch.setattr(blocked, "MOST_PRODUCTS", 10)
    assert convolve(x[:, :32], torch.randn(8, 32, 1, 1), None, (1, 1), (0, 0), (1, 1), 1, 8) is None


def test_a_runtime_that_adds_otherwise_has_no_block() -> None:
    def backwards(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, padding: int, groups: int) -> torch.Tensor:
        found = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=padding, groups=groups)
        return found.float()

    assert find_block(backwards) is None


@known
@pytest.mark.parametrize("name", ["stem", "one", "down", "shortcut"])
def test_a_plan_with_a_float_convolution_is_simulated_bit_for_bit(name: str, tmp_path: Path) -> None:
    work = wide(tmp_path)
    placement = work.place({**work.uniform("w8a8"), name: "fp32"})
    path, emitted = work.emit(placement)
    parity = work.parity(path, placement, emitted)
    assert parity.exact == 1.0 and parity.layers_exact == 1.0
