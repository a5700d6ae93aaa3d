"""Latencies taken to another device: the arithmetic against planted devices, and the whole way through a kit's own script."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import toys
from onnx import TensorProto, helper
from scipy.stats import spearmanr
from test_pipeline import data
from typer.testing import CliRunner

import quantkit
from quantkit.allocation import Edge, Resource
from quantkit.allocation.costs.measured import random_plans
from quantkit.allocation.costs.transfer import transfer
from quantkit.allocation.prediction.predictor import read_predictor
from quantkit.cli.app import app
from quantkit.core.graph import Group
from quantkit.core.run_files import TABLES
from quantkit.core.spec import parse_scheme
from quantkit.core.table import Table
from quantkit.runs.device_kit import FILES, _inputs, write_kit
from quantkit.runs.device_table import kit_of, latency_of, read_times

SCHEMES = tuple(map(parse_scheme, ("fp32", "w8a8", "w8d8")))
NAMES = tuple(f"g{number}" for number in range(12))
GROUPS = [Group(name, (name,), SCHEMES, "") for name in NAMES]
ALLOWED_PACKAGES = {"__future__", "argparse", "hashlib", "json", "numpy", "onnxruntime", "pathlib", "platform", "statistics", "sys", "time"}


def prior() -> Resource:
    """A table of a machine on which integers take a third to two thirds of float."""
    random = np.random.default_rng(0)
    floats = random.uniform(0.2, 3.0, len(NAMES))
    values = np.stack([floats, floats * random.uniform(0.3, 0.6, len(NAMES)), floats * random.uniform(0.4, 0.7, len(NAMES))], axis=1)
    edges = tuple(Edge(one, other, 0.1) for one, other in pairwise(NAMES))
    return Resource(Table("latency", "ms", NAMES, SCHEMES, values), edges, 0.5)


def device(offset: float, factors: tuple[float, float, float], boundary: float) -> Resource:
    """The machine whose float, integer and in-call arithmetic take so much more."""
    known = prior()
    table = Table("latency", "ms", NAMES, SCHEMES, known.table.values * np.array(factors))
    return Resource(table, tuple(Edge(e.producer, e.consumer, e.cost * boundary) for e in known.edges), known.offset * offset)


def test_inputs_of_a_kit_are_those_of_the_file_tokens_too(tmp_path: Path) -> None:
    """Tokens are no tensors of the graph, which holds activations."""
    types = {"tokens": TensorProto.INT64, "picture": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", 7]) for name, kind in types.items()]
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 7])
    nodes = [helper.make_node("Cast", ["tokens"], ["real"], to=TensorProto.FLOAT), helper.make_node("Add", ["real", "picture"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, [made])), tmp_path / "float.onnx")
    for batch in (None, 4):
        graph = SimpleNamespace(inputs=("picture", "tokens"), batch=batch)
        found = _inputs(SimpleNamespace(float_file=tmp_path / "float.onnx", graph=graph))  # type: ignore[arg-type]
        assert found == [
            {"name": "picture", "type": "float32", "shape": [batch, 7]}, {"name": "tokens", "type": "int64", "shape": [batch, 7]},
        ]  # fmt: skip


def test_a_device_whose_arithmetic_differs_by_kind_is_found_from_ten_files() -> None:
    truth = device(2.0, (4.0, 1.5, 7.0), 3.0)
    found = transfer(prior(), [(plan, truth.total(plan)) for plan in random_plans(GROUPS, 0, 10)])
    unseen = random_plans(GROUPS, 1, 30)
    np.testing.assert_allclose([found.resource.total(plan) for plan in unseen], [truth.total(plan) for plan in unseen], rtol=0.02)
    assert found.median_error_percent < 2
    assert found.factors["float"] == pytest.approx(4.0, rel=0.1) and found.factors["integers"] == pytest.approx(1.5, rel=0.1)


def test_a_device_without_integer_kernels_is_found() -> None:
    """There a layer in integers is the float layer and something more, whatever the table of this machine says."""
    known, random = prior(), np.random.default_rng(1)
    floats = known.table.values[:, :1]
    values = np.concatenate([2 * floats, 2 * floats + 0.4, 2 * floats + 0.9], axis=1)
    truth = Resource(Table("latency", "ms", NAMES, SCHEMES, values), (), 1.0)
    found = transfer(known, [(plan, truth.total(plan) * random.lognormal(0, 0.003)) for plan in random_plans(GROUPS, 0, 10)])
    unseen = [{name: plan[name] if plan[name] != SCHEMES[2] else SCHEMES[1] for name in NAMES} for plan in random_plans(GROUPS, 1, 40)]
    got, wanted = ([resource.total(plan) for plan in unseen] for resource in (found.resource, truth))
    assert spearmanr(got, wanted).statistic > 0.9 > 0 > spearmanr([known.total(plan) for plan in unseen], wanted).statistic


def test_few_times_full_of_noise_keep_the_order_of_the_prior() -> None:
    random, truth = np.random.default_rng(3), device(3.0, (3.0, 3.0, 3.0), 3.0)
    timed = [(plan, truth.total(plan) * random.lognormal(0, 0.03)) for plan in random_plans(GROUPS, 0, 4)]
    unseen = random_plans(GROUPS, 1, 40)
    got = [transfer(prior(), timed).resource.total(plan) for plan in unseen]
    assert spearmanr(got, [truth.total(plan) for plan in unseen]).statistic > 0.95


def test_a_device_with_units_of_less_than_8_bits_is_found() -> None:
    """The prior takes twice as long at 8 bits as at 4; the device 1.25 times."""
    schemes = tuple(map(parse_scheme, ("fp32", "w8a8", "w4a4")))
    floats = np.random.default_rng(0).uniform(0.2, 3.0, (len(NAMES), 1))
    known = Resource(Table("latency", "ms", NAMES, schemes, floats * [1.0, 0.5, 0.25]))
    truth = Resource(Table("latency", "ms", NAMES, schemes, floats * [3.0, 1.0, 0.8]))
    groups = [Group(name, (name,), schemes, "") for name in NAMES]
    found = transfer(known, [(plan, truth.total(plan)) for plan in random_plans(groups, 0, 10)])
    unseen = random_plans(groups, 1, 30)
    np.testing.assert_allclose([found.resource.total(plan) for plan in unseen], [truth.total(plan) for plan in unseen], rtol=0.02)
    assert found.factors["narrow integers"] == pytest.approx(3.2, rel=0.1) and "integers in each call" not in found.factors


def test_what_no_file_uses_takes_the_factor_of_the_rest() -> None:
    truth = device(2.0, (2.0, 2.0, 2.0), 2.0)
    plans = [{name: scheme if scheme != SCHEMES[2] else SCHEMES[1] for name, scheme in plan.items()} for plan in random_plans(GROUPS, 0, 6)]
    found = transfer(prior(), [(plan, truth.total(plan)) for plan in plans])
    everywhere = dict.fromkeys(NAMES, SCHEMES[2])
    assert found.resource.total(everywhere) == pytest.approx(truth.total(everywhere), rel=0.02)


def test_the_script_needs_onnxruntime_and_numpy_alone() -> None:
    tree = ast.parse((Path(quantkit.__file__).parent / "runtimes" / "time_files.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= ALLOWED_PACKAGES


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "run"
    quantkit.allocate(toys.trained(), data=data(), max_drop=10.0, certificate=0, run=folder)
    return folder


@pytest.fixture(scope="module")
def times(run: Path) -> dict[str, Any]:
    """What the script writes of a kit, in a process of its own."""
    folder = run.parent / "kit"
    write_kit(run, folder, lambda _: None)
    command = [sys.executable, "-I", str(folder / "time_files.py"), "--name", "pi", "--rounds", "3", "--threads", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=run.parent)
    assert str(folder / "times.json") in done.stdout
    found: dict[str, Any] = json.loads((folder / "times.json").read_text())
    return found


def test_a_kit_goes_to_a_device_and_comes_back(run: Path, times: dict[str, Any]) -> None:
    assert len(times["plans"]) == FILES and len({json.dumps(row["allocation"]) for row in times["plans"]}) == FILES
    name, found = read_times(run, run.parent / "kit" / "times.json")
    predictor, _ = read_predictor(run)
    assert name == "pi" and latency_of(run, predictor, "pi").to_json() == found.resource.to_json()


def known_latencies(run: Path, copied: Path) -> Path:
    """The run again, with a table of latencies in which float takes 1 ms and all else 0.5 ms, whatever was measured."""
    shutil.copytree(run, copied)
    kept = json.loads((copied / TABLES).read_text())
    own = Resource.from_json(kept["resources"]["latency"])
    values = np.array([1.0 if scheme.reads_float else 0.5 for scheme in own.table.schemes]) + 0 * own.table.values
    kept["resources"]["latency"] = Resource(replace(own.table, values=values), (), 1.0).to_json()
    (copied / TABLES).write_text(json.dumps(kept))
    return copied


def test_pick_counts_the_device_s_latency(run: Path, times: dict[str, Any], tmp_path: Path) -> None:
    """On a device where whatever is float takes 20 ms more, nothing stays float that need not."""
    run = known_latencies(run, tmp_path / "run")
    predictor, _ = read_predictor(run)
    times = {**times, "kit": kit_of(predictor)}
    own = predictor.resources["latency"]
    slow = np.array([20.0 if scheme.reads_float else 0.0 for scheme in own.table.schemes])
    planted = Resource(replace(own.table, values=own.table.values + slow), (), 1.0)
    plans = [{group: parse_scheme(scheme) for group, scheme in row["allocation"].items()} for row in times["plans"]]
    rows = [{**row, "ms": planted.total(plan)} for row, plan in zip(times["plans"], plans, strict=True)]
    (tmp_path / "times.json").write_text(json.dumps({**times, "name": "slow", "plans": rows}))
    runner = CliRunner()
    imported = ["profile", str(run), "--import", str(tmp_path / "times.json")]
    assert "slow: over this machine's time" in runner.invoke(app, imported).stdout
    told = json.loads(runner.invoke(app, [*imported, "--name", "slow", "--json"]).stdout)
    assert told["device"] == "slow" and told["factors"]["float"] > 0 and told["median_error_percent"] >= 0
    asked = ["pick", str(run), "--minimize", "latency", "--json", "--latency-of", "slow"]
    picked = json.loads(runner.invoke(app, asked).stdout)
    chosen = picked["plan"]["allocation"]
    assert all((chosen[group.name] == "fp32") == all(scheme.is_float for scheme in group.schemes) for group in predictor.groups)
    assert picked["uses"]["latency"] < 0.3 * planted.total({group.name: parse_scheme("fp32") for group in predictor.groups})
    assert any("Latency is that of slow" in note for note in picked["notes"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kit": "other"}, "of the kit of another run"),
        ({"plans": []}, "has 0 times"),
        ({"name": "../elsewhere"}, "a device named '../elsewhere'"),
        ({"plans": "text"}, "wanted the times.json"),
    ],
)
def test_times_that_are_of_no_kit_of_this_run_are_refused(
    run: Path, times: dict[str, Any], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    (tmp_path / "times.json").write_text(json.dumps({**times, **changed}))
    result = CliRunner().invoke(app, ["profile", str(run), "--import", str(tmp_path / "times.json")])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
    assert not (run / "devices" / "other.json").exists()


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan")])
def test_a_time_that_is_none_is_refused(run: Path, times: dict[str, Any], tmp_path: Path, ms: float) -> None:
    rows = [{**times["plans"][0], "ms": ms}, *times["plans"][1:]]
    (tmp_path / "times.json").write_text(json.dumps({**times, "plans": rows}))
    result = CliRunner().invoke(app, ["profile", str(run), "--import", str(tmp_path / "times.json")])
    assert result.exit_code == 2 and "above 0 ms" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "neither --export nor --import"),
        (["--export", "kit", "--import", "times.json"], "both --export and --import"),
        (["--import", "absent.json"], "absent.json"),
    ],
)
def test_profile_says_what_it_needs(run: Path, asked: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["profile", str(run), *asked])
    assert result.exit_code == 2 and said in " ".join(result.output.split())


def test_a_folder_that_is_there_and_a_device_that_is_not_are_refused(run: Path, times: dict[str, Any]) -> None:
    runner = CliRunner()
    there = runner.invoke(app, ["profile", str(run), "--export", str(run.parent / "kit")])
    assert there.exit_code == 2 and "exists" in there.output
    unknown = runner.invoke(app, ["pick", str(run), "--minimize", "latency", "--latency-of", "nobody"])
    assert unknown.exit_code == 2 and "no device 'nobody'" in " ".join(unknown.output.split())


def test_a_changed_file_is_not_timed(run: Path, times: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    write_kit(run, folder, lambda _: None, count=3)
    with (folder / "plan-1.onnx").open("ab") as file:
        file.write(b"\x00")
    done = subprocess.run([sys.executable, "-I", str(folder / "time_files.py")], check=False, capture_output=True, text=True)
    assert done.returncode != 0 and "another file than kit.json names" in done.stderr and not (folder / "times.json").exists()
