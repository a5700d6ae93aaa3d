"""Bounds beside the promise, and a network measured once and picked from: the commands end to end on the trained toy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import allocate, data, hurry, remember
from toys import trained

import quantkit
from quantkit import pipeline
from quantkit.allocation.prediction.predictor import read_predictor
from quantkit.cli import main
from quantkit.core.metric import Budget
from quantkit.core.progress import Silent
from quantkit.core.spec import parse_allocation
from quantkit.core.store import Run
from quantkit.runs import workbench
from quantkit.runs.pick import pick
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import export_plan, plan_file, read_plan
from quantkit.runtimes.evaluation import open_session
from quantkit.settings.arguments import Arguments
from quantkit.settings.bounds import Bound, Bounds
from quantkit.settings.request import resolve


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Measurement:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        remember(patch)
        folder = tmp_path_factory.mktemp("measured") / "run"
        asked = Arguments(data=data(), minimize="bytes", run=folder, certificate=0, sensitivity="augmented")
        return pipeline.measure(resolve(trained(), asked, promised=False), Silent())


@pytest.fixture
def run(measured: pipeline.Measurement, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured.run, tmp_path / "run"))


def size(result: Result) -> int:
    return result.files.onnx.stat().st_size


# Bounds.


def test_a_bound_on_bytes_holds_for_the_file_itself(tmp_path: Path) -> None:
    free = allocate(tmp_path / "free", minimize="bops", max_drop=50.0, schemes="fp32,w8a8")
    largest = free.files.float_onnx.stat().st_size
    bound = (size(free) + largest) // 2

    result = allocate(tmp_path / "run", minimize="drop", max_drop=None, max_bytes=bound, schemes="fp32,w8a8")

    (row,) = result.bounds
    assert (row.name, row.at_most, row.used, row.kept) == ("bytes", bound, size(result), True)
    assert result.kept and size(result) <= bound < largest


def test_a_bound_that_no_plan_keeps_is_named_the_nearest_plan_written_and_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = allocate(tmp_path / "run", max_bops="0.001x", max_drop=90.0)

    assert not result.kept and [row.kept for row in result.bounds] == [False]
    assert result.notes[0].startswith("No plan is within the bounds. bops binds: at most ")
    assert "no plan takes less than" in result.notes[0]
    assert result.files.onnx.is_file()
    counted = {row.scheme for row in result.allocation if row.group not in ("add", "global_pool")}  # these count no operations
    assert counted <= {"c2a8"}  # the least operations that there are
    monkeypatch.setattr(pipeline, "run", lambda request, progress: result)
    monkeypatch.setattr(pipeline, "resolve", lambda model, arguments: None)
    assert main(["allocate", "net.py", "--max-bops", "0.001x", "--max-drop", "90"]) == 1
    assert capsys.readouterr().out.startswith("Not kept: bops")


@pytest.mark.parametrize(
    ("bounds", "name"), [({"average_bits": 6.5}, "average_bits"), ({"max_bops": "0.05x"}, "bops")], ids=["average bits", "operations"]
)
def test_bounds_that_are_counted_hold(tmp_path: Path, bounds: dict[str, Any], name: str) -> None:
    result = allocate(tmp_path / "run", max_drop=90.0, minimize="drop", **bounds)
    graph, (row,) = read_plan(result.run).graph, result.bounds
    schemes = read_plan(result.run).schemes
    bits = {layer.name: (schemes[layer.name].weights.bits if schemes[layer.name].weights else 32) for layer in graph.layers}
    activations = {layer.name: (schemes[layer.name].activations.bits if schemes[layer.name].activations else 32) for layer in graph.layers}
    counted = {
        "average_bits": sum(bits[e.name] * e.weight_count for e in graph.layers) / sum(e.weight_count for e in graph.layers),
        "bops": sum(e.macs * bits[e.name] * activations[e.name] for e in graph.layers),
    }

    assert row.kept and row.used == pytest.approx(counted[name])
    assert row.at_most == pytest.approx({"average_bits": 6.5, "bops": 0.05 * 1024 * sum(e.macs for e in graph.layers)}[name])


def test_the_measured_latency_decides_whether_its_bound_is_kept(tmp_path: Path) -> None:
    loose = allocate(tmp_path / "loose", max_latency="1000x", max_drop=90.0)
    tight = allocate(tmp_path / "tight", max_latency="0.000001x", max_drop=90.0)

    assert loose.kept and loose.bounds[0].used == pytest.approx(loose.latency.ratio * loose.latency.float_ms)
    assert not tight.kept and "latency binds" in tight.notes[0]


def test_when_the_time_is_up_the_best_so_far_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.Workbench, "is_late", lambda bench: True)

    result = allocate(tmp_path / "run", time_limit="1s")

    looked = (tmp_path / "run" / "measured.jsonl").read_text().splitlines()
    assert result.files.onnx.is_file() and len(looked) <= 2  # one look, and the float network if that did not pass
    (note,) = [note for note in result.notes if note.startswith("The time limit was reached after ")]
    assert "More time would next measure a plan of" in note


def test_without_a_time_limit_nothing_is_ever_late(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as store:
        assert not workbench.Workbench(store, Silent()).is_late()
        assert workbench.Workbench(store, Silent(), -1.0).is_late()


# measure.


def test_measure_leaves_tables_a_front_and_looks_and_no_plan(measured: pipeline.Measurement) -> None:
    names = {path.name for path in measured.run.iterdir()}
    assert {"tables.json", "front.json", "measured.jsonl", "graph.json", "request.json", "stages"} <= names
    assert not {"plan.json", "model.onnx", "result.json", "picked.json"} & names
    front = json.loads((measured.run / "front.json").read_text())
    assert front == json.loads(json.dumps(measured.front))
    assert 0 < front["hypervolume"]["predicted"] < 1 and 0 <= front["hypervolume"]["measured"] <= 1
    assert front["plans"] and front["measured"]
    assert any(row["measured"] is not None and row["distance"] == 0 for row in front["measured"])
    assert all(row["distance"] >= 0 for row in front["measured"])
    assert {"latency", "bytes", "bops", "average_bits"} == set(front["plans"][0]["uses"])


def test_allocate_goes_on_from_what_was_measured(run: Path) -> None:
    stages = {path.name for path in (run / "stages").iterdir()}
    looked = len((run / "measured.jsonl").read_text().splitlines())

    allocate(run)

    made = {path.name.split("-")[0] for path in (run / "stages").iterdir()} - {name.split("-")[0] for name in stages}
    assert made == {"finalists", "accuracy", "file_latency", "simulation", "result"}
    keys = [json.loads(line)["key"] for line in (run / "measured.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) >= looked


def test_another_promise_asks_nothing_of_the_files_that_were_looked_at(run: Path) -> None:
    allocate(run, max_drop=10.0)
    before = (run / "measured.jsonl").read_text().splitlines()
    allocate(run, max_drop=9.0)
    after = (run / "measured.jsonl").read_text().splitlines()

    assert after[: len(before)] == before
    assert len({json.loads(line)["key"] for line in after}) == len(after)


def test_the_table_of_file_bytes_foretells_every_file_to_two_kilobytes(measured: pipeline.Measurement) -> None:
    predictor, _ = read_predictor(measured.run)
    for line in (measured.run / "measured.jsonl").read_text().splitlines():
        record = json.loads(line)
        foretold = predictor.resources["bytes"].total(parse_allocation(record["allocation"]))
        assert foretold == pytest.approx(record["look"]["bytes"], abs=2000)


# pick.


def test_a_picked_plan_is_what_export_and_verify_take(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", str(run), "--max-drop", "30", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] and told["budget"]["max_drop"] == 30.0

    plan = read_plan(run)
    assert plan.picked and {name: scheme.name for name, scheme in plan.schemes.items()} == {
        layer: told["plan"]["allocation"][group.name] for group in read_predictor(run)[0].groups for layer in group.layers
    }
    exported = export_plan(plan, "ort-cpu", tmp_path / "out.onnx")
    assert plan_file(plan).read_bytes() == exported.file.read_bytes()
    assert open_session(exported.file, threads=1) is not None
    assert main(["verify", str(run), "--require-as-planned"]) == 0


def test_a_measured_drop_is_told_as_measured_and_judged_as_the_search_does(run: Path) -> None:
    result = allocate(run, max_drop=10.0)
    picked = pick(run, Budget(10.0, "absolute"), Bounds())
    records = [json.loads(line) for line in (run / "measured.jsonl").read_text().splitlines()]
    looks = {json.dumps(record["allocation"], sort_keys=True): record["look"] for record in records}

    assert picked.kept
    look = looks.get(json.dumps(dict(picked.plan.allocation), sort_keys=True))
    assert picked.measured == (look is not None) and (look is None or picked.drop == look["drop"])
    best = {row.group: row.scheme for row in result.allocation}
    predictor, kept = read_predictor(run)
    space = predictor.space(kept["minimize"], Bounds())
    # Hardly dearer than what the search found: it had fewer plans to learn from how the drop follows the divergence.
    assert picked.plan.predicted_cost <= 1.01 * space.plan(best).predicted_cost


def test_a_smaller_budget_is_never_picked_for_with_a_cheaper_plan(run: Path) -> None:
    costs = [pick(run, Budget(drop, "absolute"), Bounds()).plan.predicted_cost for drop in (30.0, 10.0, 5.0, 1.0, 0.0)]

    assert costs == sorted(costs)


def test_bounds_hold_for_what_is_picked(run: Path) -> None:
    picked = pick(run, Budget(50.0, "absolute"), Bounds(average_bits=Bound(7.0), bytes=Bound(0.9, relative=True)))

    assert picked.kept and picked.uses["average_bits"] <= 7.0


def test_a_pick_that_cannot_be_says_what_binds_and_picks_the_nearest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", str(run), "--max-drop", "30", "--max-bytes", "10B"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("Nothing fits, the nearest: ") and "bytes binds: at most 10 B allowed" in " ".join(told.split())
    assert read_plan(run).picked


def test_the_front_is_shown_and_the_picked_plan_stands_out(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["pick", str(run), "--keep", "60%", "--minimize", "bops"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Picked: ") and "The front" in told and "hypervolume: " in told
    assert len([line for line in told.splitlines() if line.strip().startswith("→")]) == 1


def test_a_promise_needs_a_drop_that_was_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "measured.jsonl").unlink()
    assert main(["pick", str(run), "--max-drop", "1"]) == 2
    assert "no drop that was measured" in capsys.readouterr().err
    assert main(["pick", str(run), "--max-bytes", "0.9x"]) == 0


@pytest.mark.parametrize("spoil", ["absent", "torn", "interactions"])
def test_a_folder_without_whole_tables_is_refused(run: Path, spoil: str, capsys: pytest.CaptureFixture[str]) -> None:
    if spoil == "interactions":
        next((run / "stages").glob("interactions-*")).unlink()
    elif spoil == "torn":
        (run / "tables.json").write_text((run / "tables.json").read_text()[:100])
    else:
        (run / "tables.json").unlink()
    assert main(["pick", str(run), "--max-drop", "1"]) == 2
    assert "holds no tables" in capsys.readouterr().err


def test_allocating_again_forgets_what_was_picked(run: Path) -> None:
    pick(run, Budget(30.0, "absolute"), Bounds())
    plan_file(read_plan(run))
    allocate(run)

    assert not read_plan(run).picked and not (run / "picked.onnx").exists()


def test_picking_loads_no_torch_and_no_runtime(run: Path) -> None:
    call = f"from quantkit.cli import main; code = main(['pick', {str(run)!r}, '--max-drop', '30'])"
    loaded = "sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", f"import sys; {call}; print(code, {loaded})"], capture_output=True, text=True, check=True)

    assert shown.stdout.splitlines()[-1] == "0 []"


def test_measure_is_a_command(monkeypatch: pytest.MonkeyPatch, measured: pipeline.Measurement, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("quantkit.settings.request.resolve", lambda model, arguments, promised: asked.append((model, arguments, promised)))
    monkeypatch.setattr(pipeline, "measure", lambda request, progress: measured)

    assert main(["measure", "net.pt2", "--data", "x", "--minimize", "bytes", "--max-bytes", "1MB"]) == 0
    assert asked == [("net.pt2", Arguments(data="x", minimize="bytes", max_bytes="1MB"), False)]
    assert "run folder" in capsys.readouterr().out
    assert main(["measure", "net.pt2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(measured.run)


def test_the_call_takes_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("quantkit.pipeline.resolve", lambda model, arguments: seen.append(arguments))
    monkeypatch.setattr(pipeline, "run", lambda request, progress: None)
    said = {"max_bytes": "1MB", "max_latency": 5.0, "max_bops": "2G", "average_bits": 4.5, "time_limit": "10m"}

    quantkit.allocate(trained(), **said)

    assert {name: seen[0][name] for name in said} == said
