"""The augmented score: its two formulas, one entry at a time, and that what lies off the diagonal steers the plan."""

from __future__ import annotations

import numpy as np
import pytest
import toys

from quantkit.allocation import solve
from quantkit.core.graph import Group
from quantkit.core.spec import parse_schemes
from quantkit.core.table import Interactions, Table
from quantkit.sensitivity import SENSITIVITIES, Scores, augmented, gauss_newton
from quantkit.sensitivity.gram import measure

SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))


@pytest.fixture(scope="module")
def scores() -> Scores:
    return augmented.estimate(toys.context(toys.toybox()))


def drawn(seed: int) -> tuple[Table, Interactions, Table, tuple[Group, ...]]:
    """Three groups, the last without 4 bits; a Gram matrix of random displacements; traces of either sign; divergences about the Gram's."""
    generator = np.random.default_rng(seed)
    groups = (Group("a", (), SCHEMES, ""), Group("b", (), SCHEMES, ""), Group("c", (), SCHEMES[:2], ""))
    displaced = generator.normal(size=(9, 20))
    displaced[[0, 3, 6, 8]] = 0  # fp32 moves nothing, and c cannot take w4a8
    traces = generator.normal(size=(3, 3)) * 20
    traces[:, 0], traces[2, 2] = 0, np.nan
    names = tuple(group.name for group in groups)
    gram = displaced @ displaced.T / 10
    isolated = 0.5 * np.diag(gram).reshape(3, 3) * generator.uniform(0.2, 2.0, (3, 3)) + 0 * traces
    tables = (Table(name, "nats", names, SCHEMES, values) for name, values in (("hessian", traces), ("kl", isolated)))
    return next(tables), Interactions(names, SCHEMES, gram), next(tables), groups


@pytest.mark.parametrize("seed", range(5))
def test_both_formulas_entry_by_entry(seed: int) -> None:
    traces, gram, isolated, groups = drawn(seed)
    share = 0.1 + 0.2 * seed
    found = augmented.combine(traces, gram, isolated, toys.context(toys.toybox(), groups=groups), share)
    assert found.interactions is not None

    pairs = [(group, scheme) for group in groups for scheme in SCHEMES]
    for row, (group, scheme) in enumerate(pairs):
        for column, _ in enumerate(pairs):
            g = share * gram.matrix[row, column]
            omega, divergence = traces.at(group.name, scheme), isolated.at(group.name, scheme)
            wanted = g if row != column or np.isnan(omega) else max(g, 2 * omega, 2 * divergence)
            assert found.interactions.matrix[row, column] == pytest.approx(wanted)
        if scheme not in group.schemes:
            assert np.isnan(found.table.at(group.name, scheme))
            continue
        score = 0.5 * found.interactions.matrix[row, row]
        for other in groups:
            if other is not group:
                score += 0.5 * share * max(gram.matrix[row, gram.index(other.name, scheme)], 0)
        assert found.table.at(group.name, scheme) == pytest.approx(score)


@pytest.mark.parametrize("seed", range(5))
def test_no_direction_gains(seed: int) -> None:
    traces, gram, isolated, groups = drawn(seed)
    found = augmented.combine(traces, gram, isolated, toys.context(toys.toybox(), groups=groups)).interactions
    assert found is not None

    assert np.linalg.eigvalsh(found.matrix).min() > -1e-9 * np.abs(found.matrix).max()


def test_on_a_network_it_is_both_methods_together(scores: Scores) -> None:
    context = toys.context(toys.toybox())
    combined = augmented.combine(gauss_newton.estimate(context).table, *measure(context), context)
    assert scores.interactions is not None and combined.interactions is not None

    np.testing.assert_array_equal(scores.table.values, combined.table.values)
    np.testing.assert_array_equal(scores.interactions.matrix, combined.interactions.matrix)
    assert (scores.table.name, scores.table.unit) == ("augmented", "nats")
    for group in context.groups:
        assert scores.table.at(group.name, "fp32") == 0 < scores.table.at(group.name, "w8a8")


def test_the_sign_of_one_pair_off_the_diagonal_changes_the_plan(scores: Scores) -> None:
    """Two groups that hurt each other are quantized apart; with the sign flipped, together."""
    box, matrix = toys.toybox(), scores.interactions
    assert matrix is not None
    names = tuple(group.name for group in box.groups)
    cost = Table("bytes", "bytes", names, SCHEMES, np.tile([4.0, 2.0, 1.0], (len(names), 1)))
    budget = 4.0 * (len(names) - 2) + 1 + 1  # room for two groups in 4 bits, all others in float
    diagonal = np.diag(matrix.matrix)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, np.inf))
    equal = matrix.matrix / np.outer(scale, scale)  # displacements of equal size, so that only their directions count

    def plan(sign: float) -> frozenset[str]:
        """The groups in 4 bits where stem and down displace nearly alike, or nearly to opposite sides."""
        flipped = equal.copy()
        one, other = matrix.index("stem", "w4a8"), matrix.index("down", "w4a8")
        flipped[one, other] = flipped[other, one] = 0.95 * sign
        changed = Interactions(matrix.groups, matrix.schemes, flipped)
        found = solve(scores.table, cost, budget, groups=box.groups, interactions=changed)
        assert found is not None
        return frozenset(name for name, scheme in found.allocation.items() if scheme == "w4a8")

    assert plan(-1.0) >= {"stem", "down"}
    assert not plan(1.0) >= {"stem", "down"}


def test_every_method_is_dispatched_by_name_and_survives_json() -> None:
    context = toys.context(toys.toybox(), items=toys.toybox().items.first(4))
    for name, estimate in SENSITIVITIES.items():
        scores = estimate(context)
        again = Scores.from_json(scores.to_json())
        assert scores.table.name == again.table.name == name
        np.testing.assert_array_equal(scores.table.values, again.table.values)
        if scores.interactions:
            assert again.interactions is not None
            np.testing.assert_array_equal(scores.interactions.matrix, again.interactions.matrix)
        else:
            assert again.interactions is None
