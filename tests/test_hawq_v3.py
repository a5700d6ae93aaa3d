"""HAWQ-V3's published bit widths, solved for again from its own traces, errors, sizes and measured T4 latencies.

The figures are those of ILP.ipynb and bit_config.py of Zhen-Dong/HAWQ (MIT licence); see `source` in hawq_v3.json.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.allocation import Limit, Resource, cheapest, solve
from quantkit.core.graph import Group
from quantkit.core.spec import parse_schemes
from quantkit.core.table import Table

FIGURES = json.loads((Path(__file__).parent / "hawq_v3.json").read_text())
SCHEMES = parse_schemes(("w8a8", "w4a8"))
NOT_OPTIMAL = ("resnet50", "modelsize_0.25")
CASES = [(net, name) for net in ("resnet18", "resnet50") for name in FIGURES[net]["solutions"]]


def columns(net):
    """[layers, (8 bits, 4 bits)] of the loss and of each resource, as the notebook counts them."""
    figures = {key: np.array(value) for key, value in FIGURES[net].items() if key not in ("layers", "ties", "solutions")}
    trace, params, macs = figures["trace_per_parameter"], figures["parameters_million"], figures["macs_million"]
    return {
        "loss": np.stack([trace * figures["squared_error_w8"], trace * figures["squared_error_w4"]], axis=1),
        "modelsize": np.stack([params, params / 2], axis=1),  # MB
        "bops": np.stack([macs * 64, macs * 16], axis=1) / 1024,  # the notebook divides so
        "latency": np.stack([figures["t4_latency_ms_int8"], figures["t4_latency_ms_int4"]], axis=1),
    }


def problem(net):
    """Tables over groups, a group being layers whose precision is tied."""
    count = len(FIGURES[net]["layers"])
    owner = list(range(count))
    for one, other in FIGURES[net]["ties"]:
        owner[other] = owner[one]
    names = tuple(f"{place:02}" for place in sorted(set(owner)))
    tables = {}
    for key, values in columns(net).items():
        summed = np.zeros((len(names), 2))
        np.add.at(summed, [names.index(f"{place:02}") for place in owner], values)
        tables[key] = Table(key, "", names, SCHEMES, summed)
    groups = [Group(name, (name,), SCHEMES, "") for name in names]
    return tables, groups, [f"{place:02}" for place in owner]


def bits(plan, owner):
    return [8 if plan.allocation[name] == "w8a8" else 4 for name in owner]


@pytest.mark.parametrize(("net", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_the_published_allocation_is_found_or_beaten(net, name):
    tables, groups, owner = problem(net)
    solution = FIGURES[net]["solutions"][name]
    resource = name.split("_")[0]
    published = np.array([values[0 if b == 8 else 1] for values, b in zip(columns(net)["loss"], solution["published_bits"], strict=True)])
    cost = sum(values[0 if b == 8 else 1] for values, b in zip(columns(net)[resource], solution["published_bits"], strict=True))

    plan = solve(tables["loss"], tables[resource], solution["limit"], groups=groups, solver="milp")

    assert cost == pytest.approx(solution["published_cost"], rel=1e-6)
    assert plan.gap == 0 and plan.predicted_cost <= solution["limit"] * (1 + 1e-12)
    if (net, name) == NOT_OPTIMAL:
        assert plan.predicted_loss < published.sum() * (1 - 1e-3)
    else:
        assert bits(plan, owner) == solution["published_bits"]


def test_any_resource_may_be_the_objective_and_loss_a_bound():
    tables, groups, _ = problem("resnet18")
    half = FIGURES["resnet18"]["solutions"]["latency_0.5"]
    best = solve(tables["loss"], tables["latency"], half["limit"], groups=groups)

    fastest = cheapest(tables["loss"], tables["latency"], groups=groups, limits=[Limit(Resource(tables["loss"]), best.predicted_loss)])

    assert fastest.predicted_cost <= best.predicted_cost * (1 + 1e-9)
    assert fastest.predicted_loss <= best.predicted_loss * (1 + 1e-9)


def test_two_limits_at_once_bind_more_than_either():
    tables, groups, _ = problem("resnet50")
    solutions = FIGURES["resnet50"]["solutions"]
    size, time = (solutions[name]["limit"] for name in ("modelsize_0.5", "latency_0.25"))

    both = solve(tables["loss"], tables["latency"], time, groups=groups, limits=[Limit(Resource(tables["modelsize"]), size)])

    alone = [solve(tables["loss"], tables[key], limit, groups=groups) for key, limit in (("modelsize", size), ("latency", time))]
    assert tables["modelsize"].total(both.allocation) <= size and tables["latency"].total(both.allocation) <= time
    assert both.predicted_loss >= max(plan.predicted_loss for plan in alone) - 1e-12
