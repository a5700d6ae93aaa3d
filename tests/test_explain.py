"""Why a layer has its scheme, and what changed between two plans: against the tables and the journal, read by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import allocated, document, rewrite, run  # noqa: F401 - fixtures

from quantkit.allocation.prediction.predictor import Predictor
from quantkit.cli import main
from quantkit.core.errors import RequestError
from quantkit.core.spec import parse_allocation, parse_schemes
from quantkit.report.comparison import compare
from quantkit.report.explain import PINNED, explain
from quantkit.report.run_data import read_evidence


def predicted(predictor: Predictor, allocation: dict[str, str]) -> dict[str, float]:
    """The loss and the costs of a plan, summed by hand."""
    loss = predictor.loss.total(allocation)
    if predictor.interactions is not None:
        pairs = predictor.interactions
        rows = [pairs.index(group, scheme) for group, scheme in allocation.items()]
        loss = 0.5 * fsum(pairs.matrix[a, b] for a in rows for b in rows)
    found = {"loss": loss}
    for name, resource in predictor.resources.items():
        paid = [edge.cost for edge in resource.edges if allocation[edge.producer].is_float != allocation[edge.consumer].is_float]
        found[name] = resource.offset + fsum(resource.table.at(group, scheme) for group, scheme in allocation.items()) + fsum(paid)
    return found


def test_each_scheme_is_told_with_what_the_whole_plan_would_become(allocated: Path) -> None:  # noqa: F811
    evidence = read_evidence(allocated)
    found = explain(evidence, "down")
    now = predicted(evidence.predictor, dict(evidence.allocation))

    assert [row.scheme for row in found.schemes] == ["fp32", "w8a8", "w4a8"]
    assert [row.scheme for row in found.schemes if row.chosen] == [evidence.allocation["down"]] == [found.scheme]
    for row in found.schemes:
        other = predicted(evidence.predictor, {**evidence.allocation, "down": row.scheme})
        for name, value in row.change.items():
            assert value == pytest.approx(other[name] - now[name], rel=1e-6, abs=1e-9), (row.scheme, name)
        assert row.score == evidence.predictor.loss.at("down", row.scheme)
        assert row.why


def test_the_parts_of_the_loss_of_all_groups_are_the_plans_whole(allocated: Path) -> None:  # noqa: F811
    evidence = read_evidence(allocated)
    found = [explain(evidence, group.name) for group in evidence.groups]

    whole = predicted(evidence.predictor, dict(evidence.allocation))["loss"]
    assert fsum(one.own_loss + one.shared_loss for one in found) == pytest.approx(whole, rel=1e-6)
    assert all(one.plan_loss == pytest.approx(whole) for one in found)
    strongest = max(found, key=lambda one: one.own_loss)
    assert strongest.partners and abs(strongest.partners[0].loss) >= abs(strongest.partners[-1].loss)


def test_what_was_tried_is_what_the_journal_holds(allocated: Path) -> None:  # noqa: F811
    records = [json.loads(line) for line in (allocated / "measured.jsonl").read_text().splitlines()]
    found = explain(read_evidence(allocated), "classifier")

    for row in found.tried:
        looks = [record["look"] for record in records if record["allocation"]["classifier"] == row.scheme]
        assert row.plans == len(looks) > 0
        assert row.best_drop == min(look["drop"] for look in looks)
    assert sum(row.plans for row in found.tried) == len(records)


def test_two_measured_plans_that_differ_in_the_group_alone_are_found(run: Path) -> None:  # noqa: F811
    evidence = read_evidence(run)
    allocation, look = evidence.measured_plans[0]
    other = next(scheme for scheme in parse_schemes(("w8a8", "w4a8")) if scheme != allocation["down"])
    looks = (evidence.measured_plans[0], ({**allocation, "down": other}, {**look, "drop": look["drop"] + 1.5}), evidence.measured_plans[1])

    (row,) = explain(replace(evidence, measured_plans=looks), "down").alone

    assert {row.before, row.after} == {allocation["down"], other} and abs(row.drop) == 1.5


def test_a_bound_that_a_scheme_would_break_is_named(run: Path) -> None:  # noqa: F811
    evidence = read_evidence(run)
    size = evidence.predictor.used(evidence.allocation)["bytes"]
    bounded = rewrite(run, "request.json", lambda found: found["options"]["bounds"].update(bytes={"value": size + 1, "relative": False}))
    group = next(name for name in ("down", "classifier", "point") if not bounded.allocation[name].is_float)

    rows = {row.scheme: row for row in explain(bounded, group).schemes}

    assert rows["fp32"].why.startswith("the bound on bytes forbids it: ")
    assert "bound" not in rows[bounded.allocation[group]].why


def test_a_promise_that_a_scheme_would_break_is_named(run: Path) -> None:  # noqa: F811
    tight = rewrite(run, "result.json", lambda found: found["budget"].update(max_drop=-100.0))
    worse = [row for row in explain(tight, "down").schemes if row.change["loss"] > 0]
    scheme_after = dict(tight.allocation) | {"down": "fp32"}
    rewrite(run, "plan.json", lambda found: found["layers"].update(down="fp32"))
    floats = explain(read_evidence(run), "down")

    forbidden = [row for row in (*worse, *floats.schemes) if row.why.startswith("the promise forbids it, as ")]
    assert forbidden and all("of at most -100.00 points" in row.why for row in forbidden)
    assert floats.scheme == scheme_after["down"]


def test_a_scheme_that_only_costs_more_gains_nothing(allocated: Path) -> None:  # noqa: F811
    evidence = read_evidence(allocated)
    group = next(name for name in ("down", "classifier", "point") if not evidence.allocation[name].is_float)
    rows = {row.scheme: row for row in explain(evidence, group).schemes}

    assert rows["fp32"].change["bytes"] > 0
    assert rows["fp32"].why.startswith("nothing is gained: +")


def test_pins_menus_and_kernels_say_why_a_scheme_is_not_offered(allocated: Path) -> None:  # noqa: F811
    evidence = read_evidence(allocated)
    pinned, free, plain = (explain(evidence, name) for name in ("stem", "down", "add"))

    assert pinned.reason == PINNED and pinned.schemes[0].why == "chosen: pinned (--fix or --exclude)"
    assert set(pinned.not_offered.values()) == {"the group is pinned (--fix or --exclude)"}
    assert "w8a8" not in free.not_offered and free.not_offered["w2a8"].startswith("not allowed")
    assert "no such kernel" in plain.not_offered["w4a8"]


def test_the_error_of_a_layer_is_followed_to_its_readers_and_joins(allocated: Path) -> None:  # noqa: F811
    evidence = read_evidence(allocated)
    stem, last = explain(evidence, "stem"), explain(evidence, "classifier")

    assert {row.name for row in stem.readers} == {"depthwise", "add"} and stem.joins[0] == "add"
    assert all(row.converts == (not evidence.allocation[row.name].is_float) for row in stem.readers)
    assert stem.layers_behind == len(evidence.graph.layers) - 1
    assert last.layers_behind == 0 and [row.kind for row in last.readers] == ["output of the network"]


def test_an_operation_that_stays_float_is_explained_by_its_rule(run: Path) -> None:  # noqa: F811
    def add(graph: Any) -> None:
        graph["unsupported"].append({"node": "erf", "operation": "aten.erf", "inputs": [], "reason": "no integer kernel"})

    found = explain(rewrite(run, "graph.json", add), "erf")

    assert found.group is None and "no integer kernel" in found.reason and not found.schemes


def test_an_unknown_layer_is_one_line_with_the_nearest_names(allocated: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert main(["explain", str(allocated), "depthwize"]) == 2
    err = capsys.readouterr().err

    assert err.count("\n") == 1 and "unknown layer 'depthwize'" in err and "did you mean 'depthwise'" in err
    with pytest.raises(RequestError, match="did you mean 'classifier'"):
        explain(read_evidence(allocated), "CLASSIF")


def test_explain_and_diff_show_in_words_what_their_json_says(allocated: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert main(["explain", str(allocated), "down", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["explain", str(allocated), "down"]) == 0
    out = capsys.readouterr().out

    assert out.startswith(f"down (conv) is {told['scheme']}")
    assert all(row["why"] in out for row in told["schemes"])
    assert main(["diff", str(allocated), str(allocated)]) == 0
    assert "0 groups changed" in capsys.readouterr().out


# Two runs.


@pytest.fixture
def other(run: Path) -> Path:  # noqa: F811
    """The same run, with another plan picked, and other options said to have been asked."""
    found = Path(shutil.copytree(run, run.parent / "other"))
    layers = parse_allocation(document(found, "plan.json")["layers"])
    changed = {
        "down": "fp32" if not layers["down"].is_float else "w8a8",
        "classifier": "fp32" if not layers["classifier"].is_float else "w8a8",
    }
    (found / "picked.json").write_text(json.dumps({**document(found, "plan.json"), "layers": {**layers, **changed}}))
    return found


def test_a_diff_holds_exactly_the_groups_that_changed_and_what_each_does(run: Path, other: Path) -> None:  # noqa: F811
    one, two = read_evidence(run), read_evidence(other)
    found = compare(one, two)
    before = predicted(one.predictor, dict(one.allocation))

    assert [row.group for row in found.groups] == ["down", "classifier"] and found.same == len(one.groups) - 2
    for row in found.groups:
        after = predicted(one.predictor, {**one.allocation, row.group: row.after})
        assert row.effect == pytest.approx({name: after[name] - before[name] for name in before}, rel=1e-6, abs=1e-9)
    whole = predicted(one.predictor, dict(two.allocation))
    assert {row.name: row.change for row in found.predicted} == pytest.approx(
        {name: whole[name] - before[name] for name in before}, rel=1e-6, abs=1e-9
    )
    assert any("picked plan" in caution for caution in found.cautions)
    assert all(row.after is None for row in found.measured) and all(row.before is not None for row in found.measured)


def test_a_diff_of_two_results_has_both_measurements_and_what_was_asked_otherwise(run: Path, tmp_path: Path) -> None:  # noqa: F811
    again = Path(shutil.copytree(run, tmp_path / "again"))

    def ask(request: Any) -> None:
        request["options"]["observer"] = "minmax"
        request["data"]["gate"]["fingerprint"] = "other"

    def drop(result: Any) -> None:
        result["verdict"]["drop"] += 0.25
        result["environment"]["cpu"] = "another"

    rewrite(again, "request.json", ask)
    found = compare(read_evidence(run), rewrite(again, "result.json", drop))

    moved = {row.name: row.change for row in found.measured}
    assert moved["drop"] == pytest.approx(0.25) and moved["bytes"] == 0
    assert {row.name for row in found.asked} == {"options.observer", "data.gate.fingerprint", "environment.cpu"}
    assert len(found.cautions) == 2 and not found.groups


def test_plans_of_different_networks_are_compared_as_far_as_they_can_be(run: Path, tmp_path: Path) -> None:  # noqa: F811
    again = Path(shutil.copytree(run, tmp_path / "again"))
    for file in ("tables.json", "plan.json", "front.json"):
        (again / file).unlink()

    def shrink(result: Any) -> None:
        result["allocation"] = [row for row in result["allocation"] if row["group"] != "down"]

    found = compare(read_evidence(run), rewrite(again, "result.json", shrink))

    assert found.only_one == ("down",) and not found.only_other and not found.predicted
    assert any("Neither run's tables" in caution for caution in found.cautions)
    assert np.isfinite([row.change for row in found.measured if row.change is not None]).all()
