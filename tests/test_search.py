import importlib.util
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from quantkit.allocation import Edge, Limit, Plan, Resource, front, predict, shortage
from quantkit.allocation.prediction.predictor import Predictor
from quantkit.allocation.search import MOST_TRIALS, SEARCHES, Measured, SearchResult, Space, Tie, TimeIsUp, Trial
from quantkit.core.graph import Group
from quantkit.core.spec import parse_allocation, parse_schemes
from quantkit.core.table import Interactions, Table
from quantkit.settings.bounds import Bounds

SCHEMES = parse_schemes(("w4a8", "fp32", "w8a8"))  # in no order of precision, as tables may be


EXTRA = pytest.mark.skipif(importlib.util.find_spec("optuna_integration") is None, reason="needs quantkit[refine]")
NAMES = [pytest.param(name, marks=EXTRA) if name == "refine" else name for name in SEARCHES]


@pytest.fixture(autouse=True)
def few_rounds(request, monkeypatch):
    if "slow" not in request.keywords:  # what the model asks for takes it seconds a plan
        monkeypatch.setattr("quantkit.allocation.search.refine.ROUNDS", 5)


def make(loss, cost, *, menus=None, fixed=None, edges=(), interactions=None, points=12):
    names = tuple(f"g{place}" for place in range(len(loss)))
    groups = [Group(name, (name,), parse_schemes(menus[place] if menus else SCHEMES), "") for place, name in enumerate(names)]
    turn = [2, 0, 1]  # rows are given as fp32, w8a8, w4a8
    tables = [Table(kind, "", names, SCHEMES, np.array(rows, dtype=float)[:, turn]) for kind, rows in (("loss", loss), ("cost", cost))]
    plans = front(*tables, groups=groups, fixed=fixed, edges=edges, interactions=interactions, points=points)
    return Space(groups, *tables, plans, interactions, edges, fixed or {})


def random_space(seed, count=8, **options):
    random = np.random.default_rng(seed)
    loss = random.lognormal(0, 1, (count, 1)) * [0, 1, 6] * random.uniform(0.8, 1.2, (count, 3))
    cost = random.lognormal(0, 1, (count, 1)) * [1, 0.6, 0.4] * random.uniform(0.9, 1.1, (count, 3))
    return make(loss, cost, **options)


class Network:
    """Loses what its true table says, plus something for each allocation; remembers what it was asked."""

    def __init__(self, space, promise, surprise=lambda _: 0.0):
        self.space, self.promise, self.surprise, self.asked = space, promise, surprise, []

    def __call__(self, allocation):
        self.asked.append(dict(allocation))
        drop = self.space.loss.total(allocation) + self.surprise(allocation)
        return Measured(drop, drop <= self.promise)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_what_a_search_calls_best_passes_and_nothing_it_measured_is_cheaper_and_passes(name, seed):
    space = random_space(seed)
    network = Network(space, 4.0, lambda allocation: hash_noise(allocation, seed))

    result = SEARCHES[name](network, space, repairs=4)

    assert [trial.plan.allocation for trial in result.measured] == network.asked
    assert len({tuple(sorted(allocation.items())) for allocation in network.asked}) == len(network.asked)
    passing = [trial for trial in result.measured if trial.measured.drop <= 4.0]
    assert result.best in passing
    assert result.best.plan.predicted_cost == min(trial.plan.predicted_cost for trial in passing)
    assert result.nearest == result.best
    for trial in result.measured:
        assert trial.plan.predicted_cost == pytest.approx(space.cost.total(trial.plan.allocation))
        assert trial.plan.predicted_loss == pytest.approx(space.loss.total(trial.plan.allocation))


def hash_noise(allocation, seed):
    """A wobble of up to ±1 that is the same for the same allocation."""
    code = sum((place + 1) * SCHEMES.index(scheme) for place, scheme in enumerate(allocation.values()))
    return float(np.random.default_rng([seed, code]).uniform(-1, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("least_drop", [False, True])
def test_no_search_measures_more_than_it_says_and_most_not_far_fewer(name, seed, least_drop):
    space = replace(random_space(seed), least_drop=least_drop)
    most = MOST_TRIALS[name](space, 4)
    measured = len(SEARCHES[name](Network(space, 4.0, lambda allocation: hash_noise(allocation, seed)), space, repairs=4).measured)
    assert most / 3 <= measured <= most


@pytest.mark.parametrize("promise", [0.5, 4.0, 15.0])
def test_pareto_finds_the_cheapest_passing_plan_of_a_monotone_front_in_logarithmically_many_trials(promise):
    space = random_space(1)
    network = Network(space, promise)

    result = SEARCHES["pareto"](network, space, repairs=0)

    right = min((plan for plan in space.front if plan.predicted_loss <= promise), key=lambda plan: plan.predicted_cost)
    assert result.best.plan == right
    assert len(result.measured) <= math.ceil(math.log2(len(space.front) + 1)) + 3


def test_pareto_looks_at_a_few_plans_below_the_cut_since_drops_are_noisy():
    space = random_space(1)
    cut = next(place for place, plan in enumerate(space.front) if plan.predicted_loss <= 4.0)
    lucky = space.front[cut - 3].allocation
    network = Network(space, 4.0, lambda allocation: -100.0 if allocation == lucky else 0.0)

    assert SEARCHES["pareto"](network, space, repairs=0).best.plan.allocation == lucky


@pytest.mark.parametrize("name", NAMES)
def test_where_no_plan_keeps_the_promise_the_nearest_is_the_one_that_lost_least(name):
    space = random_space(2)
    network = Network(space, -1.0)

    result = SEARCHES[name](network, space, repairs=4)

    assert result.best is None
    assert result.nearest.measured.drop == min(trial.measured.drop for trial in result.measured)
    assert set(result.nearest.plan.allocation.values()) == {"fp32"}


@pytest.mark.parametrize("name", NAMES)
def test_float_is_tried_before_the_promise_is_given_up_even_if_quantizing_is_predicted_to_gain(name):
    space = make([[0, -1, -2], [0, -1, 2]], [[4, 2, 1], [4, 2, 1]])

    def measure(allocation):
        harmless = set(allocation.values()) == {"fp32"}
        return Measured(0.0 if harmless else 9.0, harmless)

    assert set(SEARCHES[name](measure, space, repairs=0).best.plan.allocation.values()) == {"fp32"}


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_network_is_never_the_nearest(name):
    space = random_space(2)

    def measure(allocation):
        drop = 3.0 if "w4a8" not in allocation.values() else math.nan
        return Measured(drop, False)

    assert SEARCHES[name](measure, space, repairs=0).nearest.measured.drop == 3.0


@pytest.mark.parametrize("name", NAMES)
def test_pins_hold_in_everything_that_is_measured(name):
    network = Network(random_space(3, fixed=parse_allocation({"g1": "fp32", "g2": "w8a8"})), 6.0)

    SEARCHES[name](network, network.space, repairs=6)

    assert {(allocation["g1"], allocation["g2"]) for allocation in network.asked} == {("fp32", "w8a8")}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_measurement_raises_comes_through(name):
    def measure(allocation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SEARCHES[name](measure, random_space(0), repairs=0)


def test_bisection_goes_down_precision_by_precision_least_sensitive_first():
    losses = [3, 1, 2, 4]
    space = make([[0, loss, 2 * loss] for loss in losses], [[4, 2, 1]] * 4)
    network = Network(space, 6.5)

    result = SEARCHES["bisection"](network, space, repairs=0)

    assert network.asked == [
        {"g0": "fp32", "g1": "w8a8", "g2": "w8a8", "g3": "fp32"},  # two of four: 3 passes
        {"g0": "w8a8", "g1": "w8a8", "g2": "w8a8", "g3": "fp32"},  # three: 6 passes
        {"g0": "w8a8", "g1": "w8a8", "g2": "w8a8", "g3": "w8a8"},  # four: 10 does not
        {"g0": "w8a8", "g1": "w4a8", "g2": "w4a8", "g3": "fp32"},  # of the three at w8a8, two: 9 does not
        {"g0": "w8a8", "g1": "w4a8", "g2": "w8a8", "g3": "fp32"},  # one: 7 does not
    ]
    assert result.best.plan.allocation == network.asked[1]


@pytest.mark.parametrize("count", [1, 5, 31, 100])
def test_bisection_measures_logarithmically_often(count):
    space = random_space(4, count, points=2)

    result = SEARCHES["bisection"](Network(space, space.loss.values.sum() / 8), space, repairs=0)

    assert len(result.measured) <= 2 * math.ceil(math.log2(count + 1)) + 1


def test_bisection_measures_the_start_where_nothing_can_be_lowered():
    space = make([[0, 9, 9]] * 3, [[4, 2, 1]] * 3)

    result = SEARCHES["bisection"](Network(space, 1.0), space, repairs=0)

    assert result.best.plan.allocation == {"g0": "fp32", "g1": "fp32", "g2": "fp32"}
    assert result.best == result.measured[-1]


def test_bisection_starts_from_the_highest_precision_of_each_menu_and_passes_over_what_a_menu_lacks():
    space = make([[0, 1, 2]] * 3, [[4, 2, 1]] * 3, menus=[("fp32", "w4a8"), ("w8a8", "w4a8"), ("fp32", "w8a8")])

    result = SEARCHES["bisection"](Network(space, 100.0), space, repairs=0)

    assert [tuple(trial.plan.allocation.values()) for trial in result.measured] == [
        ("fp32", "w8a8", "w8a8"),
        ("w4a8", "w8a8", "w8a8"),
        ("w4a8", "w4a8", "w8a8"),
    ]


def test_bisection_leaves_a_group_alone_whose_cost_cannot_fall():
    space = make([[0, 1, 2]] * 3, [[4, 4, 4], [4, 2, 2], [4, 5, 5]])

    result = SEARCHES["bisection"](Network(space, 100.0), space, repairs=0)

    assert result.best.plan.allocation == {"g0": "fp32", "g1": "w8a8", "g2": "fp32"}
    assert all(trial.plan.allocation["g0"] == "fp32" for trial in result.measured)


def test_bisection_passes_over_a_precision_that_saves_nothing_and_not_over_one_that_was_refused():
    space = make([[0, 1, 2], [0, 50, 60]], [[4, 4, 2], [4, 3, 2]])

    result = SEARCHES["bisection"](Network(space, 10.0), space, repairs=0)

    assert result.best.plan.allocation == {"g0": "w4a8", "g1": "fp32"}
    assert all(trial.plan.allocation["g1"] != "w4a8" for trial in result.measured)


def test_bisection_lowers_a_group_that_is_slower_itself_where_its_precision_changes_cost_more():
    edges = [Edge("g0", "g1", 1.0), Edge("g1", "g2", 1.0)]
    space = make([[0, 1, 2]] * 3, [[4, 2, 2], [4, 5, 5], [4, 2, 2]], edges=edges)

    assert set(SEARCHES["bisection"](Network(space, 100.0), space, repairs=0).best.plan.allocation.values()) == {"w8a8"}


def test_interactions_steer_the_bisection():
    loss = [[0, 1.0, 9], [0, 1.1, 9], [0, 1.2, 9]]
    asked = []
    for sign in (1, -1):
        matrix = np.diag(np.array(loss)[:, [2, 0, 1]].ravel() * 2)
        matrix[2, 5] = matrix[5, 2] = sign * 0.5  # g0 and g1, both w8a8
        interactions = Interactions(("g0", "g1", "g2"), SCHEMES, matrix)
        network = Network(make(loss, [[4, 2, 1]] * 3, interactions=interactions), 5.0)
        SEARCHES["bisection"](network, network.space, repairs=0)
        asked.append(network.asked[0])

    assert asked == [{"g0": "w8a8", "g1": "fp32", "g2": "w8a8"}, {"g0": "w8a8", "g1": "w8a8", "g2": "fp32"}]


def coarse_space():
    """A front of the two ends only, so that a repair has everything to do. Loss per cost saved: g1 ¼, g2 ⅗, g0 1."""
    return make([[0, 1, 8], [0, 2, 8], [0, 3, 8]], [[10, 9, 8.9], [10, 2, 1.9], [10, 5, 4.9]], points=2)


def repaired(network, repairs):
    """The schemes of all that a repair asked for after the two ends, and what was best."""
    result = SEARCHES["pareto"](network, network.space, repairs=repairs)
    return [tuple(allocation.values()) for allocation in network.asked][2:], tuple(result.best.plan.allocation.values())


def test_repair_lowers_first_what_is_predicted_to_lose_least_for_the_cost_it_saves():
    steps, best = repaired(Network(coarse_space(), 5.5), 3)

    assert steps == [("fp32", "w8a8", "fp32"), ("fp32", "w8a8", "w8a8"), ("w8a8", "w8a8", "w8a8")]
    assert best == ("fp32", "w8a8", "w8a8")


def test_repair_goes_on_past_a_step_that_failed_and_never_returns_to_it():
    network = Network(coarse_space(), 5.5, lambda allocation: 100.0 if allocation["g1"] == "w8a8" else 0.0)

    steps, best = repaired(network, 4)

    assert steps == [("fp32", "w8a8", "fp32"), ("fp32", "fp32", "w8a8"), ("fp32", "w4a8", "w8a8"), ("w8a8", "fp32", "w8a8")]
    assert best == ("w8a8", "fp32", "w8a8")


def test_repair_ends_where_nothing_cheaper_is_left():
    steps, best = repaired(Network(coarse_space(), 15.5), 50)

    assert len(steps) < 20
    assert best == ("w8a8", "w8a8", "w4a8")


@pytest.mark.parametrize("repairs", [0, 1, 2])
def test_repairs_bound_the_extra_measurements(repairs):
    networks = [Network(coarse_space(), 3.5) for _ in range(2)]

    without = SEARCHES["pareto"](networks[0], networks[0].space, repairs=0)
    repaired = SEARCHES["pareto"](networks[1], networks[1].space, repairs=repairs)

    assert len(repaired.measured) == len(without.measured) + repairs


def test_results_survive_json():
    space = random_space(0)
    result = SEARCHES["pareto"](Network(space, 4.0), space, repairs=2)
    broken = Trial(predict(space.loss, space.cost, space.front[0].allocation), Measured(math.nan, False, {"agreement": 0.5}))

    again = SearchResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))

    assert (again.best.measured, again.nearest.plan.allocation) == (result.best.measured, result.nearest.plan.allocation)
    assert [trial.plan.predicted_loss for trial in again.measured] == [trial.plan.predicted_loss for trial in result.measured]
    returned = Trial.from_json(json.loads(json.dumps(broken.to_json(), allow_nan=False)))
    assert math.isnan(returned.measured.drop)
    assert returned.measured.figures == {"agreement": 0.5}
    nothing = SearchResult(None, broken, (broken,))
    assert SearchResult.from_json(nothing.to_json()).best is None
    assert isinstance(returned.plan, Plan)


# Limits beside the promise.


def limited(space, share, name="bops"):
    """The space with a second resource, whatever the cost, limited to a share of the way from least to most."""
    random = np.random.default_rng(7)
    used = random.uniform(1, 3, (len(space.groups), 1)) * np.array([1.0, 4.0, 2.0])  # w4a8, fp32, w8a8
    resource = Resource(Table(name, "", space.loss.groups, SCHEMES, used))
    low, high = used.min(axis=1).sum(), used.max(axis=1).sum()
    limit = Limit(resource, low + share * (high - low))
    plans = front(space.loss, space.cost, groups=space.groups, edges=space.edges, limits=[limit], points=12)
    return replace(space, front=plans, limits=(limit,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_the_best_is_within_the_limits_whatever_was_measured_on_the_way(name, seed):
    space = limited(random_space(seed), 0.4)
    network = Network(space, 9.0, lambda allocation: hash_noise(allocation, seed))

    result = SEARCHES[name](network, space, repairs=4)

    (limit,) = space.limits
    inside = [trial for trial in result.measured if limit.resource.total(trial.plan.allocation) <= limit.at_most * (1 + 1e-9)]
    passing = [trial for trial in inside if trial.measured.passes]
    if passing:
        assert result.best.plan.predicted_cost == min(trial.plan.predicted_cost for trial in passing) and result.best in passing
    else:
        assert result.best is None
    if inside:
        assert result.nearest in inside


def test_a_limited_figure_that_was_measured_counts_and_not_its_prediction():
    space = limited(random_space(1), 0.5, name="bytes")

    def measure(allocation):
        return Measured(0.0, True, {"bytes": 1e9})

    assert SEARCHES["pareto"](measure, space, repairs=0).best is None


def test_under_limits_that_cannot_be_kept_the_nearest_is_the_one_that_exceeds_them_least():
    space = random_space(1)
    space = limited(space, 0.2)
    tight = Limit(space.limits[0].resource, 0.1)
    short = shortage(space.loss, space.cost, groups=space.groups, limits=[tight])
    space = replace(space, front=(short.nearest,), limits=(tight,), shortage=short)

    result = SEARCHES["pareto"](Network(space, -1.0), space, repairs=4)

    assert result.best is None and result.nearest.plan.allocation == short.nearest.allocation
    assert len(result.measured) == 2  # float was tried too, and is further off


# The least drop within limits.


@pytest.mark.parametrize("name", ["pareto", "swaps"])
def test_with_the_least_drop_wanted_the_least_damaged_within_the_limits_is_the_best(name):
    space = replace(limited(random_space(3), 0.4), least_drop=True)
    network = Network(space, 1e9, lambda allocation: hash_noise(allocation, 3))

    result = SEARCHES[name](network, space, repairs=4)

    inside = [trial for trial in result.measured if space.excess(trial.plan) == 0]
    assert result.best.measured.drop == min(trial.measured.drop for trial in inside)
    assert len(result.measured) == (4 if name == "pareto" else len(result.measured))


def test_damage_is_the_divergence_where_there_is_one():
    assert Measured(0.1, True, {"divergence": 0.02}).damage == 0.02
    assert Measured(0.1, True).damage == 0.1
    assert Measured(math.nan, False, {"divergence": 0.02}).damage == math.inf


# Swaps.


def test_swaps_are_ranked_by_what_is_predicted_and_accepted_on_what_is_measured():
    """What is predicted is wrong about g0 alone: only measuring tells."""
    space = make([[0, 1, 9], [0, 3, 9], [0, 2, 9]], [[3, 1, 1]] * 3, points=4)
    space = replace(space, front=tuple(plan for plan in space.front if plan.predicted_cost == 5))
    network = Network(space, 5.5, lambda allocation: 5.0 if allocation["g0"] != "fp32" else 0.0)

    result = SEARCHES["swaps"](network, space, repairs=4)

    assert space.front[0].allocation == {"g0": "w8a8", "g1": "fp32", "g2": "w8a8"}
    assert result.best.plan.allocation == {"g0": "fp32", "g1": "w8a8", "g2": "w8a8"}
    assert SEARCHES["pareto"](network, space, repairs=0).best.plan.predicted_cost > result.best.plan.predicted_cost


@pytest.mark.parametrize("seed", range(5))
def test_swaps_never_end_dearer_than_the_walk_along_the_front_that_they_begin_with(seed):
    space = random_space(seed)
    networks = [Network(space, 4.0, lambda allocation: hash_noise(allocation, seed)) for _ in range(2)]

    plain, swapped = (SEARCHES[name](network, space, repairs=3) for name, network in zip(("pareto", "swaps"), networks, strict=True))
    walked = SEARCHES["pareto"](networks[0], space, repairs=0)

    assert swapped.best.plan.predicted_cost <= walked.best.plan.predicted_cost
    assert len(swapped.measured) <= len(walked.measured) + 3 * 3 + 1 + 3
    assert plain.best is not None


def test_swaps_have_nothing_to_improve_where_the_cheapest_plan_passes():
    network = Network(random_space(0), 1e9)

    result = SEARCHES["swaps"](network, network.space, repairs=2)

    assert result.best.plan == network.space.front[0]


# Time.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_when_the_time_is_up_the_best_so_far_is_the_answer_and_what_came_next_is_told(name, count):
    space = random_space(1)
    network = Network(space, 4.0)

    def measure(allocation):
        if len(network.asked) == count:
            raise TimeIsUp
        return network(allocation)

    result = SEARCHES[name](measure, space, repairs=4)

    assert len(result.measured) == count and result.untried is not None
    assert result.untried.allocation not in network.asked
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))).untried.allocation == result.untried.allocation
    finished = SEARCHES[name](Network(space, 4.0), space, repairs=4)
    assert finished.untried is None and [trial.plan.allocation for trial in finished.measured][:count] == network.asked


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_could_measure_nothing_says_so(name):
    def measure(allocation):
        raise TimeIsUp

    with pytest.raises(TimeIsUp):
        SEARCHES[name](measure, random_space(0), repairs=0)


def test_a_result_is_judged_anew_with_trials_that_were_made_besides():
    space = random_space(1)
    network = Network(space, 4.0)
    result = SEARCHES["pareto"](network, space, repairs=0)
    cheap = Trial(replace(space.front[0], predicted_cost=0.0), Measured(1.0, True))

    assert result.extended(space, [cheap]).best == cheap
    assert result.extended(space, []).best == result.best


@EXTRA
@pytest.mark.slow
def test_refinement_asks_for_plans_that_the_front_does_not_hold_and_is_never_worse_than_the_walk():
    space = random_space(3, count=10)
    walked = SEARCHES["pareto"](Network(space, 5.0, lambda allocation: hash_noise(allocation, 3)), space, repairs=0)
    refined = SEARCHES["refine"](Network(space, 5.0, lambda allocation: hash_noise(allocation, 3)), space, repairs=0)
    known = [plan.allocation for plan in space.front]
    assert any(trial.plan.allocation not in known for trial in refined.measured)
    assert refined.best.plan.predicted_cost <= walked.best.plan.predicted_cost


# Smallest first, then fastest.


def test_of_plans_of_nearly_the_same_bytes_the_one_that_is_predicted_fastest_is_the_best():
    space = random_space(2)
    latency = Resource(replace(space.cost, values=10 - space.cost.values))  # what is dearer is faster
    tied = replace(space, tie=Tie(Resource(space.cost), latency, share=0.2))
    network = Network(space, 4.0, lambda allocation: hash_noise(allocation, 2))

    result = SEARCHES["pareto"](network, tied, repairs=4)

    passing = [trial.plan for trial in result.measured if trial.measured.passes]
    near = [plan for plan in passing if plan.predicted_cost <= 1.2 * min(plan.predicted_cost for plan in passing)]
    assert len(near) > 1 and result.best.plan.allocation == min(near, key=lambda plan: latency.total(plan.allocation)).allocation
    assert result.best.plan.predicted_cost > min(plan.predicted_cost for plan in passing)


@pytest.mark.parametrize("seed", range(5))
def test_the_step_of_the_front_in_which_the_promise_begins_to_be_kept_is_bisected(seed):
    space = random_space(seed, count=12, points=3)
    tied = replace(space, tie=Tie(Resource(space.cost), Resource(space.cost), share=0.0))
    promise = 0.5 * (space.front[0].predicted_loss + space.front[1].predicted_loss)

    coarse = SEARCHES["pareto"](Network(space, promise), space, repairs=0).best.plan
    fine = SEARCHES["pareto"](Network(space, promise), tied, repairs=0).best.plan

    fronts = front(space.loss, space.cost, groups=space.groups, points=400)
    cheapest = next(plan for plan in fronts if plan.predicted_loss <= promise)
    step = (space.front[1].predicted_cost - space.front[0].predicted_cost) / 16
    assert fine.predicted_cost < coarse.predicted_cost
    assert fine.predicted_cost <= cheapest.predicted_cost + 2 * step


def test_the_faster_space_holds_plans_of_no_more_bytes_that_are_faster_than_the_best():
    """w8a8 and w8a32 take equal bytes; w8a32 loses less and is slower."""
    names, schemes = ("a", "b"), parse_schemes(("fp32", "w8a8", "w8a32"))
    groups = tuple(Group(name, (name,), schemes, "") for name in names)

    def table(name, row):
        return Table(name, "", names, schemes, np.array([row, row], dtype=float))

    sizes = table("bytes", [4, 1, 1])
    resources = {"bytes": Resource(sizes), "latency": Resource(table("latency", [2, 1, 3]))}
    predictor = Predictor(groups, table("loss", [0, 0.3, 0.1]), None, resources, {"bytes": 8.0, "latency": 4.0}, sizes, 0)
    space = predictor.space("bytes", Bounds())
    best = space.plan(dict.fromkeys(names, schemes[2]))

    faster = predictor.faster_space(Bounds(), best, space.tie)
    assert faster.front[-1].allocation == best.allocation
    assert [set(plan.allocation.values()) for plan in faster.front[:1]] == [{"w8a8"}]
    assert all(predictor.used(plan.allocation)["bytes"] <= 2.02 for plan in faster.front)
    assert predictor.faster_space(Bounds(), space.plan(dict.fromkeys(names, schemes[1])), space.tie) is None
