"""Padding counts nowhere: not in ranges, moments, losses or metrics, whatever the network makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F

import quantkit
from quantkit.calibration.ranges import calibrate
from quantkit.core.errors import DataError
from quantkit.core.metric import NO_LABEL, divergence, unpadded
from quantkit.core.metrics import METRICS
from quantkit.data import Batch, collect, whole
from quantkit.data.batch import check_labels
from quantkit.network.capture import capture
from quantkit.quantization.moments import second_moments, shrunk
from quantkit.sensitivity import SENSITIVITIES
from quantkit.sensitivity.passes.outputs import at_labels, task_loss

ITEMS, TOKENS, WIDTH = 24, 6, 8
LENGTHS = 2 + torch.arange(ITEMS) % (TOKENS - 1)
MASK = torch.arange(TOKENS) < LENGTHS[:, None]


class Tagger(nn.Module):
    """Scores of each token, which know nothing of the others: so padding changes no token."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 12), nn.Linear(12, toys.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.gelu(self.one(x)))


def tokens(padding: float) -> Tensor:
    """The same tokens, and `padding` behind each item."""
    x = torch.randn(ITEMS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    return torch.where(MASK[..., None], x, padding)


def labels(padding: int) -> Tensor:
    found = torch.randint(0, toys.CLASSES, (ITEMS, TOKENS), generator=torch.Generator().manual_seed(2))
    return torch.where(MASK, found, padding)


@pytest.fixture(scope="module")
def network() -> Tagger:
    torch.manual_seed(0)
    return Tagger().eval()


def box(network: Tagger, padding: float) -> toys.Toybox:
    items = whole(collect([Batch({"x": tokens(padding)}, labels(NO_LABEL), MASK)]))
    return toys.calibrated(capture(network, {"x": tokens(0.0)[:2]}), items)


def test_ranges_are_those_of_the_tokens(network: Tagger) -> None:
    captured = capture(network, {"x": tokens(0.0)[:2]})
    found = calibrate(captured, [Batch({"x": tokens(1000.0)}, mask=MASK)])
    wanted = calibrate(captured, [Batch({"x": tokens(0.0)[MASK][:, None]})])
    assert found.seen.keys() == wanted.seen.keys()
    for name, seen in found.seen.items():
        assert (seen.low, seen.high) == (wanted.seen[name].low, wanted.seen[name].high), name
        assert np.array_equal(seen.counts, wanted.seen[name].counts)
    assert calibrate(captured, [Batch({"x": tokens(1000.0)})]).seen["x"].high == 1000.0


def test_so_are_moments(network: Tagger) -> None:
    captured = capture(network, {"x": tokens(0.0)[:2]})
    found = second_moments(captured, [Batch({"x": tokens(1000.0)}, mask=MASK)], lambda _: None)["one"]
    rows = tokens(0.0)[MASK].double()
    wanted = shrunk((rows.T @ rows / len(rows))[None], len(rows))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SENSITIVITIES) - {"pyhessian"}))
def test_no_score_hangs_on_padding(network: Tagger, name: str) -> None:
    """PyHessian wants a loss of its own (pyhessian.py), which gets the same outputs."""
    one, other = (SENSITIVITIES[name](toys.context(box(network, padding))).table for padding in (0.5, -3.0))
    assert np.array_equal(one.values, other.values, equal_nan=True)
    assert np.nanmax(np.abs(one.values)) > 0


def test_a_position_without_a_label_has_no_loss(network: Tagger) -> None:
    x = tokens(0.5)
    with torch.no_grad():
        scores = network(x)
    losses = F.cross_entropy(scores[MASK], labels(0)[MASK])
    torch.testing.assert_close(task_loss("softmax", (scores,), labels(NO_LABEL)), losses)
    gradient = at_labels("softmax", (scores,), labels(NO_LABEL), torch.Generator().manual_seed(0))[0]
    assert not gradient[~MASK].any() and gradient[MASK].abs().sum(dim=-1).min() > 0


def test_only_labels_of_positions_may_be_missing() -> None:
    check_labels(labels(NO_LABEL).numpy(), toys.CLASSES)
    with pytest.raises(DataError, match="item 1 has label -100"):
        check_labels(np.array([0, NO_LABEL]), toys.CLASSES)


def test_metrics_leave_padding_out() -> None:
    random, mask = np.random.default_rng(0), MASK.numpy()
    scores = random.normal(size=(ITEMS, TOKENS, 4)).astype(np.float32)
    others = np.where(random.random((ITEMS, TOKENS, 1)) < 0.3, -scores, scores)
    garbage = np.where(mask[..., None], others, random.normal(size=scores.shape)).astype(np.float32)
    same = scores.argmax(-1) == others.argmax(-1)
    wanted = np.mean([same[item][mask[item]].mean() for item in range(ITEMS)])
    assert METRICS["agreement"].score((garbage,), unpadded((scores,), mask, np.nan)) == pytest.approx(100 * wanted)
    named = np.where(mask, scores.argmax(-1), NO_LABEL)
    assert METRICS["top1"].score((garbage,), named) == pytest.approx(100 * wanted)
    error = np.square(others - scores, dtype=np.float64)
    wanted = np.mean([error[item][mask[item]].mean() for item in range(ITEMS)])
    assert METRICS["mse"].score((garbage,), unpadded((scores,), mask, np.nan)) == pytest.approx(wanted)
    apart = [divergence(*(unpadded(o, mask) for o in ((scores,), (moved,))), "softmax") for moved in (others, garbage)]
    assert apart[0] == pytest.approx(apart[1]) and apart[0] > 0


def test_an_item_of_padding_alone_is_refused(network: Tagger, tmp_path: Path) -> None:
    mask = MASK.repeat(10, 1)
    mask[5] = False
    x = torch.randn(len(mask), TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    data = [Batch({"x": x}, labels(0).repeat(10, 1), mask)]
    with pytest.raises(DataError, match="is padding throughout; wanted at least one token that its mask counts"):
        quantkit.allocate(network, data=data, max_drop=5.0, run=tmp_path / "run")


def test_a_whole_job_does_not_see_padding(network: Tagger, tmp_path: Path) -> None:
    repeat = 8
    x, y, mask = (torch.cat([rows + (0.01 * n if rows.is_floating_point() else 0) for n in range(repeat)])[:180] for rows in
                  (tokens(0.0), labels(NO_LABEL), MASK.long()))  # fmt: skip
    results = []
    for padding in (0.0, 50.0):
        given = torch.where(mask[..., None] > 0, x, padding)
        parts = zip(*(rows.split(60) for rows in (given, y, mask.bool())), strict=True)  # items are drawn by content: so they are not drawn
        data = dict(zip(("calibration", "search", "gate"), ([Batch({"x": rows}, *more)] for rows, *more in parts), strict=True))
        fixed = {"one": "w8a8", "two": "w8a8"}
        results.append(quantkit.allocate(network, data=data, max_drop=50.0, certificate=0, fix=fixed, run=tmp_path / f"run{padding}"))
    assert results[0].verdict == results[1].verdict
    one, other = ([row.sensitivity for row in result.allocation] for result in results)
    assert one == pytest.approx(other, rel=1e-4)  # items lie in another order, and with them float32 sums
