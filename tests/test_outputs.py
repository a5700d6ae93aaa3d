"""The space of the outputs, against its matrices written out and against automatic differentiation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quantkit.core.errors import DataError
from quantkit.sensitivity.passes import outputs
from quantkit.sensitivity.passes.outputs import Curvature, at_labels, divergence, drawn, pull_back, task_loss, whitened
from reference import UNIT_ROUNDOFF

KINDS: list[Curvature] = ["softmax", "identity"]
ROUNDINGS = 32  # of a term, at most: an exponential, sums over four classes and over fourteen coordinates, a root, products


def two_heads(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores of three positions of four classes, and of two classes; five items."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(5, 3, 4, generator=generator), spread * torch.randn(5, 2, generator=generator)


def moved(plain: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    return tuple(a + b for a, b in zip(plain, two_heads(seed, 0.3), strict=True))


def metric(scores: Tensor, curvature: Curvature) -> Tensor:
    """F of one position."""
    if curvature == "identity":
        return torch.eye(len(scores), dtype=torch.float64)
    p = scores.double().softmax(0)
    return torch.diag(p) - torch.outer(p, p)


@pytest.mark.parametrize("curvature", KINDS)
def test_inner_products_of_whitened_moves_are_those_of_the_metric(curvature: Curvature) -> None:
    plain, one, other = two_heads(0), moved(two_heads(0), 1), moved(two_heads(0), 2)
    coordinates = whitened(curvature, seed=0)(plain)
    found = (coordinates(one) * coordinates(other)).sum(dim=1)
    for item in range(5):
        wanted = terms = 0.0
        for z, a, b in zip(plain, one, other, strict=True):
            rows = [value[item].reshape(-1, z.shape[-1]) for value in (z, a - z, b - z)]
            positions = len(rows[0]) if curvature == "softmax" else 1
            wanted += sum(float(u.double() @ metric(s, curvature) @ v.double()) for s, u, v in zip(*rows, strict=True)) / positions
            terms += sum(4 * float(u.norm() * v.norm()) for _, u, v in zip(*rows, strict=True)) / positions  # no |S| is longer than 2
        assert float(found[item]) == pytest.approx(wanted, abs=ROUNDINGS * UNIT_ROUNDOFF * terms)


def test_wide_outputs_are_sketched_without_bias_and_stay_a_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = (torch.zeros(1, 300),)
    moves = [0.5 + torch.randn(1, 300, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]  # all to one side
    moves = [moves[0], moves[0] + 0.5 * moves[1], *moves[2:]]

    def grams(seeds: int) -> np.ndarray:
        rows = [torch.cat([whitened("identity", seed)(plain)((u,)) for u in moves]) for seed in range(seeds)]
        return np.stack([(row @ row.T).double().numpy() for row in rows])

    exact = grams(1)[0]
    monkeypatch.setattr(outputs, "WIDE", 299)
    monkeypatch.setattr(outputs, "SKETCH", 64)
    sketched = grams(400)
    lengths = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))

    assert whitened("identity", 0)(plain)((moves[0],)).shape == (1, 64)
    assert np.abs(sketched.mean(axis=0) - exact).max() < (4 * np.sqrt(2 / 64 / 400) * lengths).max()
    assert not np.allclose(sketched[0], sketched[1]), "the seed draws the sketch"
    assert np.abs(sketched - exact).std() < 2 * np.sqrt(2 / 64) * lengths.max()
    assert min(np.linalg.eigvalsh(gram).min() for gram in sketched) > -1e-3


@pytest.mark.parametrize("curvature", KINDS)
def test_the_divergence_is_its_formula_item_by_item(curvature: Curvature) -> None:
    plain, other = two_heads(0), moved(two_heads(0), 1)
    found = divergence(curvature)(plain)(other)
    for item in range(5):
        wanted = 0.0
        for a, b in zip(plain, other, strict=True):
            one, two = (value[item].double().reshape(-1, a.shape[-1]) for value in (a, b))
            if curvature == "identity":
                wanted += 0.5 * float(((two - one) ** 2).sum())
            else:
                p, q = one.softmax(1), two.softmax(1)
                wanted += float((p * (p / q).log()).sum()) / len(p)
        assert found.shape == (5, 1)
        assert float(found[item, 0]) == pytest.approx(wanted, rel=1e-9)  # in float64, both


@pytest.mark.parametrize("curvature", KINDS)
def test_its_gradient_is_that_of_automatic_differentiation(curvature: Curvature) -> None:
    plain, other = two_heads(0), tuple(value.requires_grad_() for value in moved(two_heads(0), 1))
    wanted = torch.autograd.grad(divergence(curvature)(plain)(other).sum(), other)

    for found, right in zip(pull_back(curvature, plain, other), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=ROUNDINGS * UNIT_ROUNDOFF * max(1.0, float(right.abs().max())))


@pytest.mark.parametrize("curvature", KINDS)
def test_over_all_signs_the_drawn_gradients_have_the_metric_as_their_second_moment(
    curvature: Curvature, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0]])
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    monkeypatch.setattr(outputs, "_signs", lambda draws, shape, generator: every)
    rows = torch.cat([draw[0] for draw in drawn(curvature, (scores,), 8, torch.Generator())]).double()

    torch.testing.assert_close(rows.T @ rows / 8, metric(scores[0], curvature), rtol=1e-5, atol=1e-6)
    if curvature == "softmax":
        torch.testing.assert_close(rows.sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_what_is_drawn_for_an_item_does_not_depend_on_its_batch() -> None:
    scores = two_heads(0)
    whole = drawn("softmax", scores[1:], 3, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    parts = [drawn("softmax", (scores[1][rows],), 3, generator) for rows in (slice(0, 2), slice(2, 5))]

    for draw in range(3):
        torch.testing.assert_close(torch.cat([part[draw][0] for part in parts]), whole[draw][0])


def test_gradients_at_labels_are_those_of_each_items_own_cross_entropy() -> None:
    scores, labels = two_heads(0)[0].requires_grad_(), torch.arange(15).reshape(5, 3) % 4
    found = at_labels("softmax", (scores,), labels, torch.Generator())[0]
    for item in range(5):
        (wanted,) = torch.autograd.grad(F.cross_entropy(scores[item], labels[item]), scores)
        torch.testing.assert_close(found[item], wanted[item], rtol=0, atol=ROUNDINGS * UNIT_ROUNDOFF)  # of shares, at most 1


@pytest.mark.parametrize("labels", [None, torch.zeros(5, 7), torch.zeros(5, dtype=torch.int64)], ids=["none", "numbers", "wrong shape"])
def test_where_there_are_no_class_labels_answers_are_drawn(labels: Tensor | None) -> None:
    scores = two_heads(0)
    found = at_labels("softmax", scores, labels, torch.Generator().manual_seed(1))
    wanted = drawn("softmax", scores, 1, torch.Generator().manual_seed(1))

    assert all(torch.equal(one, other) for one, other in zip(found, wanted[0], strict=True))


def test_labels_beyond_the_classes_are_refused() -> None:
    scores = two_heads(0)
    with pytest.raises(DataError, match=r"0\.\.3"):
        at_labels("softmax", scores, torch.full((5, 3), 4), torch.Generator())
    with pytest.raises(DataError, match=r"0\.\.3"):
        task_loss("softmax", scores, torch.full((5, 3), 4))


def test_the_loss_is_cross_entropy_and_the_networks_own_answers_stand_in_for_missing_labels() -> None:
    first, second = two_heads(0)
    labels = torch.arange(15).reshape(5, 3) % 4
    own = F.cross_entropy(second, second.argmax(1))
    at_first = F.cross_entropy(first.flatten(0, 1), labels.flatten())

    assert float(task_loss("softmax", (first, second), labels)) == pytest.approx(float(at_first + own))
    assert float(task_loss("softmax", (second,), None)) == pytest.approx(float(own))


def test_the_hessian_of_the_distance_is_one_although_it_is_zero() -> None:
    values = torch.randn(2, 3, requires_grad=True)
    hessian = torch.autograd.functional.hessian(lambda z: task_loss("identity", (z,), None), values).reshape(6, 6)

    assert task_loss("identity", (values,), None).item() == 0
    torch.testing.assert_close(hessian, torch.eye(6) / 2)
