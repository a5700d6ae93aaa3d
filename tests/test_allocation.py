import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quantkit.allocation import Edge, Plan, cheapest, front, order, pin, predict, solve
from quantkit.core.errors import ContractError, SchemeError
from quantkit.core.graph import Group
from quantkit.core.spec import FLOAT, parse_allocation, parse_schemes
from quantkit.core.table import Interactions, Table
from reference import allocation_cost, allocation_loss, every_allocation

SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))


def make(loss, cost, menus=None, schemes=SCHEMES):
    """Tables and groups g0, g1, … from rows of numbers."""
    names = tuple(f"g{place}" for place in range(len(loss)))
    groups = [Group(name, (name,), parse_schemes(menus[place] if menus else schemes), "") for place, name in enumerate(names)]
    tables = (
        Table("loss", "nats", names, schemes, np.array(loss, dtype=float)),
        Table("latency", "ms", names, schemes, np.array(cost, dtype=float)),
    )
    return *tables, groups


def random_problem(seed, count=6, *, scale=1.0):
    """`count` groups of different menus; some pairs nan."""
    random = np.random.default_rng(seed)
    loss = random.lognormal(0, 1.5, (count, 1)) * [0, 1, 8] * random.uniform(0.7, 1.3, (count, 3)) * scale
    cost = random.lognormal(0, 1, (count, 1)) * [1, 0.6, 0.4] * random.uniform(0.7, 1.3, (count, 3)) / scale
    loss[random.integers(count), 2] = np.nan
    cost[random.integers(count), 1] = np.nan
    menus = [SCHEMES[: random.integers(2, 4)] for _ in range(count)]
    pairs = random.integers(count, size=(count, 2))
    edges = [Edge(f"g{one}", f"g{other}", float(random.uniform(-0.1, 0.8)) / scale) for one, other in pairs]
    return *make(loss, cost, menus), edges, random


def random_interactions(loss, random):
    """A positive semi-definite matrix of strong, mostly positive interactions over the groups and schemes of a table."""
    size = np.sqrt(np.nan_to_num(loss.values)).ravel()[:, None]
    displacement = size * (random.normal(size=(len(size), 12)) + 0.5 * random.normal(size=12))
    return Interactions(loss.groups, loss.schemes, displacement @ displacement.T)


def budgets(options):
    """A quarter, half and three quarters of the way from the least to the greatest cost, and a cost that is met exactly."""
    costs = sorted(cost for _, cost, _ in options)
    return [*(costs[0] + share * (costs[-1] - costs[0]) for share in (0.25, 0.5, 0.75)), costs[len(costs) // 3]]


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e7], ids=["units", "tiny losses", "tiny costs"])
@pytest.mark.parametrize("with_edges", [False, True], ids=["plain", "edges"])
@pytest.mark.parametrize("seed", range(6))
def test_the_exact_solver_equals_brute_force(seed, with_edges, scale):
    loss, cost, groups, edges, _ = random_problem(seed, scale=scale)
    edges = edges if with_edges else []
    options = every_allocation(loss, cost, groups, edges=edges)
    for budget in budgets(options):
        best_loss, best_cost, _ = min(option for option in options if option[1] <= budget * (1 + 1e-12))

        plan = solve(loss, cost, budget, groups=groups, edges=edges)

        assert plan is not None
        assert plan.predicted_loss == pytest.approx(best_loss, rel=1e-12)
        assert plan.predicted_cost == pytest.approx(best_cost, rel=1e-12)
        assert plan.predicted_loss == pytest.approx(allocation_loss(loss, None, plan.allocation), rel=1e-12)
        assert plan.predicted_cost == pytest.approx(allocation_cost(cost, edges, plan.allocation), rel=1e-12)
        assert plan.gap == 0


def test_edges_change_the_plan():
    loss, cost, groups = make([[0, 1, 9], [0, 5, 9], [0, 1, 9]], [[3, 1, 1]] * 3)
    edges = [Edge("g0", "g1", 2.0), Edge("g1", "g2", 2.0)]

    lone_float = solve(loss, cost, 5.0, groups=groups)
    charged = solve(loss, cost, 5.0, groups=groups, edges=edges)

    assert lone_float.allocation == {"g0": "w8a8", "g1": "fp32", "g2": "w8a8"}
    assert charged.allocation == {"g0": "w8a8", "g1": "w8a8", "g2": "w8a8"}


def test_an_edge_inside_a_group_or_between_two_quantized_groups_is_free():
    loss, cost, _ = make([[0, 1, 2]] * 2, [[3, 2, 1]] * 2)
    edges = [Edge("g0", "g0", 100.0), Edge("g0", "g1", 10.0)]

    assert predict(loss, cost, parse_allocation({"g0": "w8a8", "g1": "w4a8"}), edges=edges).predicted_cost == 3
    assert predict(loss, cost, parse_allocation({"g0": "w8a8", "g1": "fp32"}), edges=edges).predicted_cost == 15


def test_of_plans_that_lose_the_same_the_cheapest_is_taken():
    loss, cost, groups = make([[0, 0, 1], [0, 0, 0], [0, 2, 3]], [[5, 3, 1], [4, 2, 1], [6, 2, 1]])

    plan = solve(loss, cost, 100.0, groups=groups)

    assert (plan.predicted_loss, plan.predicted_cost) == (0, 3 + 1 + 6)


def test_pins_hold_and_others_make_up_for_them():
    loss, cost, groups = make([[0, 1, 4], [0, 2, 5]], [[4, 2, 1], [4, 2, 1]])

    free = solve(loss, cost, 6.0, groups=groups)
    pinned = solve(loss, cost, 6.0, groups=groups, fixed={"g0": FLOAT})

    assert free.allocation == {"g0": "w8a8", "g1": "fp32"}
    assert pinned.allocation == {"g0": "fp32", "g1": "w8a8"}


@pytest.mark.parametrize(
    ("fixed", "words"),
    [({"g00": "fp32"}, "unknown group 'g00'; wanted one of g0, g1; next: did you mean 'g0'?"), ({"g0": "w8a9"}, "did you mean 'w8a8'?")],
    ids=["group", "scheme"],
)
def test_a_pin_that_does_not_exist_is_named(fixed, words):
    loss, cost, groups = make([[0, 1, 2]] * 2, [[3, 2, 1]] * 2)

    with pytest.raises(SchemeError, match="unknown") as caught:
        solve(loss, cost, 9.0, groups=groups, fixed=fixed)

    assert words in str(caught.value)


def test_a_group_whose_every_scheme_is_impossible_is_our_fault():
    loss, cost, groups = make([[np.nan, np.inf, 2]], [[1, 1, np.nan]])

    with pytest.raises(ContractError, match="group 'g0' has no scheme"):
        solve(loss, cost, 9.0, groups=groups)


def test_tables_may_list_groups_and_schemes_in_any_order():
    loss, _, groups = make([[0, 1, 4], [0, 2, 5]], [[4, 2, 1], [4, 2, 1]])
    turned = Table("latency", "ms", ("g1", "g0"), ("w4a8", "fp32", "w8a8"), np.array([[1.0, 4, 2], [1, 4, 2]]))

    assert solve(loss, turned, 6.0, groups=groups[::-1]).allocation == {"g0": "w8a8", "g1": "fp32"}


def test_a_budget_below_the_least_cost_has_no_plan_and_the_least_cost_is_named():
    loss, cost, groups, edges, _ = random_problem(3)
    least = min(option[1] for option in every_allocation(loss, cost, groups, edges=edges))

    plan = cheapest(loss, cost, groups=groups, edges=edges)

    assert plan.predicted_cost == pytest.approx(least, rel=1e-12)
    assert solve(loss, cost, least * (1 - 1e-6), groups=groups, edges=edges) is None
    assert solve(loss, cost, plan.predicted_cost, groups=groups, edges=edges) == plan


def test_of_the_cheapest_plans_the_one_that_loses_least_is_taken():
    loss, cost, groups = make([[0, 1, 4], [0, 2, 5]], [[4, 1, 1], [1, 1, 1]])

    assert cheapest(loss, cost, groups=groups).allocation == {"g0": "w8a8", "g1": "fp32"}


def test_an_answer_that_the_solver_lets_slip_over_the_budget_is_not_taken():
    # One impossibly dear option coarsens the solver's tolerance on the cost row to 0.1 in these units.
    loss, cost, groups = make([[0, 1], [0, 5], [0, 3]], [[1e9, 1], [1.02, 1], [1.05, 1]], schemes=("fp32", "w8a8"))

    plan = solve(loss, cost, 3.03, groups=groups)

    assert plan.allocation == {"g0": "w8a8", "g1": "fp32", "g2": "w8a8"}


@pytest.mark.parametrize("with_edges", [False, True], ids=["plain", "edges"])
def test_quadratic_plans_reach_the_optimum_of_brute_force(with_edges):
    gaps = []
    for seed in range(14):
        loss, cost, groups, edges, random = random_problem(seed)
        edges = edges if with_edges else []
        interactions = random_interactions(loss, random)
        options = every_allocation(loss, cost, groups, interactions, edges)
        for budget in budgets(options)[:3]:
            best = min(option for option in options if option[1] <= budget)
            plan = solve(loss, cost, budget, groups=groups, edges=edges, interactions=interactions)
            assert plan.predicted_cost <= budget
            assert plan.predicted_loss == pytest.approx(allocation_loss(loss, interactions, plan.allocation), abs=1e-9)
            gaps.append(plan.predicted_loss - best[0])

    assert min(gaps) > -1e-9
    reached = np.mean(np.array(gaps) < 1e-9)
    assert reached >= 0.95, f"{reached:.1%} reached, largest gap {max(gaps):.3g}"


def test_the_sign_of_one_interaction_changes_the_plan():
    loss, cost, groups = make([[0, 1.0, 9], [0, 1.1, 9], [0, 1.2, 9]], [[3, 1, 1]] * 3)
    plans = []
    for sign in (1, -1):
        matrix = np.diag(2 * loss.values.ravel())
        matrix[1, 4] = matrix[4, 1] = sign * 0.5  # g0 and g1, both w8a8
        interactions = Interactions(loss.groups, loss.schemes, matrix)
        plans.append(solve(loss, cost, 5.0, groups=groups, interactions=interactions))

    assert plans[0].allocation == {"g0": "w8a8", "g1": "fp32", "g2": "w8a8"}
    assert plans[1].allocation == {"g0": "w8a8", "g1": "w8a8", "g2": "fp32"}
    assert plans[1].predicted_loss == pytest.approx(2.1 - 0.5)


def test_interactions_without_pair_terms_are_solved_exactly_and_replace_the_table():
    loss, cost, groups = make([[0, 1, 4], [0, 2, 5]], [[4, 2, 1], [4, 2, 1]])
    matrix = np.diag([0.0, 6, 20, 0, 2, 10])

    plan = solve(loss, cost, 6.0, groups=groups, interactions=Interactions(loss.groups, loss.schemes, matrix))

    assert plan.allocation == {"g0": "fp32", "g1": "w8a8"}
    assert (plan.predicted_loss, plan.gap) == (1, 0)


def test_a_quadratic_plan_knows_its_gap_and_the_same_seed_gives_the_same_plan():
    loss, cost, groups, _, random = random_problem(5, 12)
    interactions = random_interactions(loss, random)
    budget = cheapest(loss, cost, groups=groups).predicted_cost * 1.5

    first, second = (solve(loss, cost, budget, groups=groups, interactions=interactions, seed=7) for _ in range(2))

    assert first.allocation == second.allocation
    assert 0 <= first.gap < 1


def test_an_infeasible_budget_has_no_quadratic_plan():
    loss, cost, groups, _, random = random_problem(5)
    interactions = random_interactions(loss, random)
    least = cheapest(loss, cost, groups=groups, interactions=interactions)

    assert solve(loss, cost, 0.99 * least.predicted_cost, groups=groups, interactions=interactions) is None


@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_at_all_beats_a_plan_of_the_front(seed, quadratic):
    loss, cost, groups, edges, random = random_problem(seed)
    interactions = random_interactions(loss, random) if quadratic else None
    options = every_allocation(loss, cost, groups, interactions, edges)

    plans = front(loss, cost, groups=groups, edges=edges, interactions=interactions)

    assert len(plans) >= 5
    costs, losses = [plan.predicted_cost for plan in plans], [plan.predicted_loss for plan in plans]
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)
    assert costs[0] == pytest.approx(min(option[1] for option in options))
    assert losses[-1] == pytest.approx(min(option[0] for option in options), abs=1e-12)
    for plan in plans:
        room = 1e-9 * (1 + plan.predicted_cost)
        assert not [option for option in options if option[0] < plan.predicted_loss - 1e-9 and option[1] <= plan.predicted_cost - room]


def test_more_points_make_a_finer_front_and_negative_costs_are_allowed():
    loss, cost, groups, *_ = random_problem(1, 8)
    shifted = Table(cost.name, cost.unit, cost.groups, cost.schemes, cost.values - 2)

    coarse, fine = (front(loss, shifted, groups=groups, points=points) for points in (3, 30))

    assert len(coarse) <= 3 < len(fine)
    assert (coarse[0], coarse[-1]) == (fine[0], fine[-1])


def test_where_the_lossless_plan_is_also_the_cheapest_the_front_is_one_plan():
    loss, cost, groups = make([[0, 1, 2]] * 2, [[1, 2, 3]] * 2)

    assert [plan.allocation for plan in front(loss, cost, groups=groups)] == [{"g0": "fp32", "g1": "fp32"}]


def test_the_front_obeys_pins():
    loss, cost, groups, *_ = random_problem(2)

    assert {plan.allocation["g0"] for plan in front(loss, cost, groups=groups, fixed={"g0": FLOAT})} == {"fp32"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.floats(0, 10)] * 2, *[st.floats(0.1, 10)] * 2), min_size=1, max_size=5), st.floats(0.1, 40))
def test_any_small_problem_equals_brute_force(rows, budget):
    loss, cost, groups = make([row[:2] for row in rows], [row[2:] for row in rows], schemes=("fp32", "w8a8"))
    options = every_allocation(loss, cost, groups)
    assume(all(abs(option[1] - budget) > 1e-9 for option in options))  # costs that meet the budget exactly are tested above
    within = [option[0] for option in options if option[1] < budget]

    plan = solve(loss, cost, budget, groups=groups)

    assert (plan is None) == (not within)
    assert plan is None or plan.predicted_loss == pytest.approx(min(within), abs=1e-8)


def test_a_plan_survives_json():
    plan = Plan({"g0": "w8a8"}, 1.5, 2.5, 0.0)

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    unproven = Plan.from_json(json.loads(json.dumps(Plan({}, 0.0, 0.0).to_json(), allow_nan=False)))
    assert np.isnan(unproven.gap)


def test_pin_narrows_one_menu_and_leaves_the_others():
    _, _, groups = make([[0, 1, 2]] * 2, [[3, 2, 1]] * 2)

    assert [group.schemes for group in pin(groups, {"g1": "w8a8"})] == [SCHEMES, ("w8a8",)]


def test_order_is_least_sensitive_first_and_leaves_out_who_cannot():
    loss, _, _ = make([[0, 3, 1], [0, np.nan, 2], [0, 1, 3], [0, 1, np.nan]], [[1, 1, 1]] * 4)

    assert order(loss, loss.groups, "w8a8") == ("g2", "g3", "g0")
    assert order(loss, ("g3", "g2", "g0"), "w8a8") == ("g3", "g2", "g0")
    assert order(loss, loss.groups, "w4a8") == ("g0", "g1", "g2")


def test_order_under_interactions_adds_each_time_the_group_that_adds_least():
    loss, _, _, _, random = random_problem(9, 7)
    loss = Table("loss", "", loss.groups, SCHEMES, np.nan_to_num(loss.values, nan=1.0))
    interactions = random_interactions(loss, random)
    start = {name: SCHEMES[place % 2] for place, name in enumerate(loss.groups)}

    ordered = order(loss, loss.groups, "w4a8", interactions=interactions, start=start)

    standing = dict(start)
    for place, name in enumerate(ordered):
        left = {other: allocation_loss(loss, interactions, {**standing, other: "w4a8"}) for other in ordered[place:]}
        assert min(left, key=left.get) == name
        standing[name] = "w4a8"
    assert set(ordered) == set(loss.groups)
    assert ordered != order(loss, loss.groups, "w4a8")


def run_with_stdout_piped(code):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # it unbuffers C's stdout too
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=buffered)


def test_what_c_prints_while_solving_never_reaches_our_stdout():
    done = run_with_stdout_piped("""
        import ctypes, os
        from quantkit.allocation.highs import silent_stdout
        c = ctypes.CDLL(None)
        c.puts(b"before")
        with silent_stdout():
            c.puts(b"held back in C's buffer")
            os.write(1, b"straight to the descriptor")
        c.puts(b"after")
    """)

    assert done.stdout.split() == ["before", "after"]


def test_stdout_comes_back_after_an_error_and_may_be_closed():
    done = run_with_stdout_piped("""
        import os
        from quantkit.allocation.highs import silent_stdout
        try:
            with silent_stdout():
                raise ValueError
        except ValueError:
            print("back", flush=True)
        os.close(1)
        with silent_stdout():
            pass
    """)

    assert done.stdout == "back\n"


def test_a_solve_whose_solver_is_known_to_print_leaves_stdout_clean():
    done = run_with_stdout_piped("""
        import numpy as np
        from quantkit.allocation import front
        from quantkit.core.graph import Group
        from quantkit.core.spec import parse_schemes
        from quantkit.core.table import Table
        for seed in range(1, 3):
            random = np.random.default_rng(seed)
            names, schemes = tuple(str(place) for place in range(60)), parse_schemes(["fp32", "w8a8", "w4a8"])
            loss = random.lognormal(0, 2, (60, 3)) * [0, 1, 20]
            cost = random.lognormal(0, 1, (60, 1)) * [1, .6, .45] * random.uniform(.9, 1.1, (60, 3))
            tables = [Table(name, "", names, schemes, values) for name, values in (("loss", loss), ("cost", cost))]
            front(*tables, groups=[Group(name, (), schemes, "") for name in names])
    """)

    assert done.stdout == ""
