"""Every solver against all allocations of small problems: 240 each, with ties, infeasible ones and several limits among them."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import milp

from quantkit.allocation import (
    SOLVERS,
    Edge,
    Limit,
    Plan,
    Resource,
    cheapest,
    front,
    highs,
    neighbours,
    predict,
    quadratic,
    relaxation,
    shortage,
    solve,
)
from quantkit.allocation.pareto import whole_front
from quantkit.allocation.program import Program
from quantkit.allocation.relaxation import relax
from quantkit.allocation.translation import build
from quantkit.core.errors import ContractError, RequestError
from quantkit.core.graph import Group
from quantkit.core.spec import parse_allocation, parse_schemes
from quantkit.core.table import Interactions, Table
from reference import allocation_cost, allocation_loss, allocations

SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))
COUNT = 240
ROOM = 1 + 1e-9


class Case:
    """A random small problem: whole numbers in every third, so that losses and costs tie; a budget that may be impossible."""

    def __init__(self, seed, *, with_edges=False, with_pairs=False, with_limits=False):
        random = np.random.default_rng(seed)
        count = int(random.integers(1, 6))
        self.names = tuple(f"g{place}" for place in range(count))
        ties = seed % 3 == 0
        self.loss, self.cost, other = (self.table(kind, random, ties) for kind in ("loss", "bytes", "bops"))
        self.groups = [Group(name, (name,), SCHEMES[: random.integers(1, 4)], "") for name in self.names]
        pairs = random.integers(count, size=(count, 2))
        self.edges = [Edge(self.names[a], self.names[b], float(random.integers(1, 4))) for a, b in pairs] if with_edges else []
        self.interactions = self.gram(random, ties) if with_pairs else None
        self.everything = list(allocations(self.loss, self.cost, self.groups))
        costs = sorted(allocation_cost(self.cost, self.edges, each) for each in self.everything)
        self.budget = float(random.choice([costs[0] - 0.5, costs[0], *costs, random.uniform(costs[0] - 1, costs[-1])]))
        self.limits = []
        if with_limits:
            used = sorted(other.total(each) for each in self.everything)
            self.limits = [Limit(Resource(other, (), 2.0), 2.0 + float(random.choice([used[0] - 0.25, used[0], *used])))]

    def table(self, kind, random, ties):
        drawn = random.integers(0, 4, (len(self.names), 3)).astype(float) if ties else random.lognormal(0, 1, (len(self.names), 3))
        steps = np.array([0.0, 1.0, 3.0]) if kind == "loss" else np.array([4.0, 2.0, 1.0])
        return Table(kind, "", self.names, SCHEMES, drawn * steps)

    def gram(self, random, ties):
        size = 3 * len(self.names)
        factors = random.integers(-1, 2, (size, 4)).astype(float) if ties else random.normal(size=(size, 6))
        factors[::3] = 0
        return Interactions(self.names, SCHEMES, factors @ factors.T)

    def lossof(self, allocation):
        return allocation_loss(self.loss, self.interactions, allocation)

    def costof(self, allocation):
        return allocation_cost(self.cost, self.edges, allocation)

    def within(self, allocation, budget=None):
        held = self.costof(allocation) <= (self.budget if budget is None else budget) + 1e-9
        return held and all(limit.resource.total(allocation) <= limit.at_most + 1e-9 for limit in self.limits)

    def best(self, budget=None):
        """(loss, cost) of the best allocation within the budget; None if there is none."""
        found = [(self.lossof(each), self.costof(each)) for each in self.everything if self.within(each, budget)]
        if not found:
            return None
        least = min(loss for loss, _ in found)
        return least, min(cost for loss, cost in found if loss <= least + 1e-9)

    def given(self, *, limited=True):
        more = {"limits": self.limits} if limited else {}
        return {"groups": self.groups, "interactions": self.interactions, "edges": self.edges, **more}

    def solve(self, budget=None, **options):
        return solve(self.loss, self.cost, self.budget if budget is None else budget, **self.given(), **options)


def exact(case, solver):
    plan, best = case.solve(solver=solver), case.best()
    assert (plan is None) == (best is None)
    if plan is None:
        return 0
    assert case.within(plan.allocation)
    assert (plan.predicted_loss, plan.gap) == (pytest.approx(best[0], abs=1e-9), 0)
    assert plan.predicted_loss == pytest.approx(case.lossof(plan.allocation), abs=1e-9)
    assert plan.predicted_cost == pytest.approx(case.costof(plan.allocation), abs=1e-9)
    return plan.predicted_cost - best[1]


def test_dynamic_programming_equals_brute_force():
    for seed in range(COUNT):
        assert exact(Case(seed), "pareto") == pytest.approx(0, abs=1e-9)


def test_integer_programming_under_edges_and_two_limits_equals_brute_force():
    for seed in range(COUNT):
        assert exact(Case(seed, with_edges=seed % 2 == 0, with_limits=seed % 4 > 1), "milp") == pytest.approx(0, abs=1e-9)


def test_the_greedy_descent_is_feasible_never_better_than_brute_force_and_mostly_near():
    share = []
    for seed in range(COUNT):
        case = Case(seed, with_edges=seed % 2 == 0, with_pairs=seed % 5 == 0)
        plan, best = case.solve(solver="greedy"), case.best()
        if plan is None:
            continue
        assert case.within(plan.allocation) and plan.predicted_loss >= best[0] - 1e-9 and math.isnan(plan.gap)
        share.append(plan.predicted_loss <= best[0] + 1e-9)
        if not case.edges and case.interactions is None:
            assert best is not None
    assert np.mean(share) > 0.6


def test_the_greedy_descent_without_pairs_finds_a_plan_wherever_there_is_one():
    for seed in range(COUNT):
        case = Case(seed)
        assert (case.solve(solver="greedy") is None) == (case.best() is None)


def test_under_interactions_the_answer_lies_between_the_bound_and_the_optimum_of_brute_force():
    reached = []
    for seed in range(COUNT):
        case = Case(seed, with_pairs=True, with_edges=seed % 2 == 0, with_limits=seed % 4 > 1)
        plan, best = case.solve(), case.best()
        assert (plan is None) == (best is None)
        if plan is None:
            continue
        assert case.within(plan.allocation)
        assert plan.predicted_loss == pytest.approx(case.lossof(plan.allocation), abs=1e-9)
        assert plan.predicted_loss >= best[0] - 1e-9
        assert plan.predicted_loss - plan.gap * abs(plan.predicted_loss) <= best[0] + 1e-7  # the bound is one
        reached.append(plan.predicted_loss <= best[0] + 1e-9)
    assert np.mean(reached) >= 0.98


@pytest.mark.parametrize("shift", [0.0, -0.7], ids=["semi-definite", "indefinite"])
def test_the_relaxation_bounds_every_allocation_below(shift):
    gaps = []
    for seed in range(60):
        case = Case(seed, with_pairs=True, with_edges=seed % 2 == 0)
        matrix = case.interactions.matrix + shift * (1 - np.eye(len(case.interactions.matrix)))
        case.interactions = Interactions(case.names, SCHEMES, matrix)
        problem = build(case.loss, case.cost, case.groups, interactions=case.interactions, edges=case.edges)
        found, best = relax(Program(problem, problem.under(case.budget))), case.best()
        if best is None or not problem.loss.has_pairs:
            continue
        assert found.bound <= best[0] + 1e-7
        gaps.append(best[0] - found.bound)
    assert np.median(gaps) < (0.5 if shift == 0 else 3.0)  # and it is worth having


def test_a_large_problem_is_solved_by_other_means_with_a_gap_as_good(monkeypatch):
    """The ways for many options, tried where all allocations can be had."""
    monkeypatch.setattr(quadratic, "MANY", 0)
    monkeypatch.setattr(relaxation, "_SMALL", 0)
    reached = []
    for seed in range(COUNT):
        case = Case(seed, with_pairs=True, with_edges=seed % 2 == 0)
        plan, best = case.solve(), case.best()
        if plan is None:  # a rounded start may end outside where hardly anything is within
            reached += [] if best is None else [False]
            continue
        assert case.within(plan.allocation)
        assert best[0] - 1e-9 <= plan.predicted_loss
        assert plan.predicted_loss - plan.gap * abs(plan.predicted_loss) <= best[0] + 1e-6
        reached.append(plan.predicted_loss <= best[0] + 1e-9)
    assert np.mean(reached) > 0.8


@pytest.mark.parametrize("solver", ["greedy", "pareto", "milp"])
def test_a_larger_budget_never_loses_more(solver):
    for seed in range(60):
        case = Case(seed, with_edges=solver == "milp")
        costs = sorted({case.costof(each) for each in case.everything})
        plans = [case.solve(budget, solver=solver) for budget in costs]
        losses = [plan.predicted_loss for plan in plans if plan is not None]
        assert losses == sorted(losses, reverse=True)


def test_along_a_front_under_interactions_a_larger_budget_never_loses_more():
    for seed in range(20):
        case = Case(seed, with_pairs=True, with_edges=True)
        plans = front(case.loss, case.cost, **case.given(), points=8)
        assert [plan.predicted_loss for plan in plans] == sorted((plan.predicted_loss for plan in plans), reverse=True)


@pytest.mark.parametrize("solver", [*SOLVERS, None])
def test_the_order_of_the_groups_changes_nothing(solver):
    for seed in range(60):
        case = Case(seed, with_edges=solver != "pareto", with_pairs=solver in ("quadratic", "greedy"))
        random = np.random.default_rng(seed)
        plan = case.solve(solver=solver)
        shuffled = [case.groups[place] for place in random.permutation(len(case.groups))]
        turned = random.permutation(3)
        case.loss = Table("loss", "", case.names[::-1], tuple(SCHEMES[place] for place in turned), case.loss.values[::-1][:, turned])
        case.groups, case.edges = shuffled, case.edges[::-1]
        assert case.solve(solver=solver) == plan or (plan is not None and math.isnan(plan.gap))


def test_a_shortage_names_the_limit_that_cannot_be_met_and_the_nearest_plan():
    seen = 0
    for seed in range(COUNT):
        case = Case(seed, with_limits=True, with_edges=True)
        limits = [Limit(Resource(case.cost, tuple(case.edges)), case.budget), *case.limits]
        short = shortage(case.loss, case.cost, groups=case.groups, edges=case.edges, limits=limits)
        assert (short is None) == (case.best() is not None)
        if short is None:
            continue
        seen += 1

        def excess(allocation, limits=limits):
            return sum(limit.excess(limit.resource.total(allocation)) for limit in limits)

        least = min(excess(each) for each in case.everything)
        assert excess(short.nearest.allocation) == pytest.approx(least, abs=1e-6)
        nearest = [case.lossof(each) for each in case.everything if excess(each) <= least + 1e-9]
        assert short.nearest.predicted_loss <= max(nearest) + 1e-9
        for binding in short.binding:
            limit = next(limit for limit in limits if limit.resource.name == binding.name)
            assert binding.needed == pytest.approx(limit.resource.total(short.nearest.allocation)) and binding.needed > limit.at_most
            assert binding.least == pytest.approx(min(limit.resource.total(each) for each in case.everything))
        assert short.binding
    assert seen > 20


def test_the_cheapest_within_limits_equals_brute_force():
    for seed in range(60):
        case = Case(seed, with_limits=True, with_edges=True)
        possible = [case.costof(each) for each in case.everything if case.within(each, math.inf)]
        if possible:
            assert cheapest(case.loss, case.cost, **case.given()).predicted_cost == pytest.approx(min(possible), abs=1e-9)


def test_the_whole_front_is_every_undominated_plan_and_thinned_it_says_so():
    case = next(case for case in map(Case, range(1, 99)) if len(case.everything) > 100)
    problem = build(case.loss, case.cost, case.groups)
    points = sorted({(round(case.costof(each), 12), round(case.lossof(each), 12)) for each in case.everything})
    kept = [(cost, loss) for cost, loss in points if all(other > loss for c, other in points if (c, other) != (cost, loss) and c <= cost)]

    full, thin = whole_front(problem), whole_front(problem, most=5)

    assert full.exact and not thin.exact
    assert np.allclose(np.stack([full.costs, full.losses], axis=1), kept)
    assert len(thin.costs) <= 6 and thin.costs[0] == pytest.approx(full.costs[0])
    for place, chosen in enumerate(full.chosen):
        assert problem.cost.total(chosen) == pytest.approx(full.costs[place])
        assert problem.loss.total(chosen) == pytest.approx(full.losses[place])


def test_a_solver_that_does_not_fit_or_does_not_exist_is_refused():
    case = next(
        case
        for case in (Case(seed, with_edges=True) for seed in range(99))
        if case.best() and build(case.loss, case.cost, case.groups, edges=case.edges).cost.crossings
    )

    with pytest.raises(RequestError, match="pareto"):
        case.solve(solver="pareto")
    with pytest.raises(RequestError, match="did you mean 'milp'"):
        case.solve(solver="mlip")


@pytest.mark.parametrize("with_pairs", [False, True], ids=["plain", "interactions"])
def test_neighbours_are_the_best_of_all_that_differ_in_one_group_or_two(with_pairs):
    for seed in range(40):
        case = Case(seed, with_pairs=with_pairs, with_edges=True, with_limits=True)
        inside = [each for each in case.everything if case.within(each)]
        if not inside:
            continue
        start = predict(case.loss, case.cost, inside[len(inside) // 2], interactions=case.interactions, edges=case.edges)
        wanted = sorted(case.lossof(each) for each in inside if 1 <= sum(each[name] != start.allocation[name] for name in case.names) <= 2)[
            :5
        ]

        found = neighbours(case.loss, case.cost, start, case.budget, count=5, **case.given())

        assert [plan.predicted_loss for plan in found] == pytest.approx(wanted, abs=1e-9)
        assert all(case.within(plan.allocation) for plan in found)
        assert len({tuple(plan.allocation.items()) for plan in found}) == len(found)


def test_a_resource_counts_offset_table_and_the_edges_that_are_paid():
    table = Table("latency", "ms", ("a", "b"), ("fp32", "w8a8"), np.array([[3.0, 1.0], [5.0, 2.0]]))
    resource = Resource(table, (Edge("a", "b", 0.5),), 10.0)

    assert resource.total(parse_allocation({"a": "fp32", "b": "w8a8"})) == 10 + 3 + 2 + 0.5
    assert resource.total(parse_allocation({"a": "w8a8", "b": "w8a8"})) == 10 + 1 + 2
    assert Resource.from_json(resource.to_json()).total(parse_allocation({"a": "fp32", "b": "w8a8"})) == 15.5
    assert Limit(resource, 12.0).excess(15.0) == 0.25 and Limit(resource, 12.0).excess(12.0) == 0


def test_a_plan_keeps_the_order_of_the_groups_that_were_given():
    case = Case(7)
    plan = solve(case.loss, case.cost, math.inf, groups=case.groups[::-1])

    assert list(plan.allocation) == list(case.names[::-1]) and isinstance(plan, Plan)


def test_five_hundred_groups_under_interactions_come_with_a_gap():
    random = np.random.default_rng(0)
    names, schemes = tuple(f"g{place:03}" for place in range(500)), parse_schemes(("fp32", "w8a8", "w6a8", "w4a8", "w2a8"))
    size = random.lognormal(0, 1.2, (500, 1)) * np.array([0, 1 / 16, 1 / 4, 1, 4])
    moved = (size[:, :, None] * (random.normal(size=(500, 5, 300)) + 0.3 * random.normal(size=300))).reshape(2500, 300)
    matrix = moved @ moved.T / 300
    loss = Table("loss", "", names, schemes, 0.5 * np.diag(matrix).reshape(500, 5))
    cost = Table("bytes", "", names, schemes, random.lognormal(0, 1, (500, 1)) * np.array([32, 8, 6, 4, 2.0]))
    groups = [Group(name, (name,), schemes, "") for name in names]
    edges = [Edge(names[place], names[place + 1], 0.5) for place in range(0, 499, 7)]
    budget = float(cost.values[:, 3].sum())

    plan = solve(loss, cost, budget, groups=groups, edges=edges, interactions=Interactions(names, schemes, matrix))

    uniform = allocation_loss(loss, None, dict.fromkeys(names, "w4a8"))
    assert 0 < plan.gap < 0.2 and plan.predicted_cost <= budget and plan.predicted_loss < uniform


@pytest.mark.parametrize("failures", [1, 2])
def test_an_error_of_the_solver_s_own_is_tried_once_more_without_its_presolve(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def solve(objective: np.ndarray, **said: Any) -> Any:
        tried.append(said["options"]["presolve"])
        failed = SimpleNamespace(x=None, status=4, message="(HiGHS Status 4: Solve error)")
        return failed if len(tried) <= failures else milp(objective, **said)

    monkeypatch.setattr(highs, "milp", solve)
    rows = highs.Rows.of([(np.array([0, 1]), np.array([1.0, 1.0]), 1.0, 1.0)], 2)
    if failures == 2:
        with pytest.raises(ContractError, match="stopped without an answer"):
            highs.minimise(np.array([2.0, 1.0]), rows, np.ones(2, bool))
    else:
        found = highs.minimise(np.array([2.0, 1.0]), rows, np.ones(2, bool))
        assert found is not None and found.x.tolist() == [0.0, 1.0]
    assert tried == [True, False]
