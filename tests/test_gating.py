"""The gate: the answer of the allocation on the same items, conditions that bind, and reports that services can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import onnx
import pytest
import toys
from test_pipeline import allocate, data, hurry, remember, share_of_first

import quantkit
from quantkit.cli import main
from quantkit.core.errors import ConfigError, DataError, MetricError, ModelError, RequestError
from quantkit.core.metric import Budget
from quantkit.data import Batch
from quantkit.gating import LOCK, Conditions, Gated, check, lock, parse_conditions, read_lock, to_junit, to_markdown, to_sarif
from quantkit.loading.from_onnx.opening import file_bytes
from quantkit.runs.result import Result
from quantkit.runtimes.evaluation import open_session
from quantkit.settings.bounds import Bound

OUTPUT = "toy.int8.onnx"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)
    monkeypatch.chdir(tmp_path)  # away from the repository's own configuration


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """A run, its file beside it under another name, and the items in a shard."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        remember(patch)
        folder = tmp_path_factory.mktemp("gated")
        write_shard(folder / "val.npz")
        yield allocate(folder / "run", output=folder / OUTPUT, max_bytes="0.9x")


@pytest.fixture
def home(made: Result, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(made.run.parent, tmp_path / "home"))


def write_shard(path: Path, keep: slice = slice(None), labels: Any = None) -> Path:
    batch = data()[0]
    wanted = batch.labels if labels is None else labels
    np.savez(path, x=batch.inputs["x"][keep].numpy(), labels=np.asarray(wanted)[keep])
    return path


def found(gated: Gated, condition: str = "max-drop") -> Any:
    return next(row for row in gated.findings if row.condition == condition)


# The same answer.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_drop": 1.0},
        {"keep": "97%", "max_drop": None},
        {"metric": "mse", "max_drop": 0.5},
        {"metric": "agreement", "undecided": "fail"},
    ],
    ids=["loose", "tight", "relative", "mse", "agreement"],
)
def test_the_gate_gives_the_allocation_s_own_answer_on_the_run_and_its_split(tmp_path: Path, options: dict[str, Any]) -> None:
    result = allocate(tmp_path / "run", seed=3, **options)
    (batch,) = data()
    order = np.random.default_rng(0).permutation(len(batch.labels))  # the items are known by their content, wherever they stand
    shuffled = [Batch({"x": batch.inputs["x"][order]}, batch.labels[order])]

    gated = quantkit.gate(result.run, data=shuffled)

    row, verdict = found(gated), result.verdict
    assert (row.decision, row.measured, row.low, row.high, row.n) == (verdict.decision, verdict.drop, verdict.low, verdict.high, verdict.n)
    assert (row.limit, row.to_decide) == (result.max_drop, verdict.items_to_decide)
    assert gated.kept is result.kept
    assert gated.changes == () and gated.notes == ()


def test_a_bound_of_the_allocation_is_a_condition_of_its_lock(made: Result) -> None:
    gated = quantkit.gate(made.run, data=data())

    assert {row.condition for row in gated.findings} == {"max-drop", "max-bytes", "require-int8"}
    row = found(gated, "max-bytes")
    assert (row.measured, row.limit) == (made.files.onnx.stat().st_size, 0.9 * made.files.float_onnx.stat().st_size)
    assert found(gated, "require-int8").measured == pytest.approx(100 * made.executed.int8_macs)


def test_a_bound_on_milliseconds_becomes_a_share_of_the_float_file_s_time(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", max_latency="1000ms")

    kept = read_lock(result.run / LOCK, "model.onnx")
    assert kept is not None and result.latency is not None
    assert kept.conditions.max_latency_ratio == pytest.approx(1000 / result.latency.float_ms)


def test_a_picked_plan_is_gated_by_the_lock_of_its_run(home: Path) -> None:
    assert main(["pick", str(home / "run"), "--max-drop", "20", "--json"]) == 0

    gated = quantkit.gate(home / "run", data=data())
    assert gated.file == home / "run" / "picked.onnx" and found(gated).n == 120


# Conditions.


@pytest.mark.parametrize(
    ("said", "conditions"),
    [
        ({"max_drop": "0.5"}, Conditions(max_drop=Budget(0.5, "absolute"))),
        ({"keep": "99%"}, Conditions(max_drop=Budget(1.0, "relative"))),
        ({"max_latency_ratio": "0.6x"}, Conditions(max_latency_ratio=0.6)),
        ({"max_bytes": "2MB"}, Conditions(max_bytes=Bound(2e6))),
        ({"max_bytes": "0.25x"}, Conditions(max_bytes=Bound(0.25, relative=True))),
        ({"require_int8": "95%"}, Conditions(int8_share=0.95)),
        ({"require_int8": 95}, Conditions(int8_share=0.95)),
    ],
    ids=str,
)
def test_conditions_are_read_from_text_and_come_back_from_a_lock(said: dict[str, Any], conditions: Conditions) -> None:
    assert parse_conditions(said) == conditions and conditions.given()
    assert parse_conditions(conditions.to_json()) == conditions
    assert not parse_conditions({}).given()


@pytest.mark.parametrize(
    "said",
    [{"max_latency_ratio": "5ms"}, {"max_latency_ratio": "0"}, {"require_int8": "120%"}, {"require_int8": "x"}, {"max_bytes": "-1"}],
    ids=str,
)
def test_conditions_that_mean_nothing_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        parse_conditions(said)


def test_each_condition_binds_where_it_is_tight_and_not_where_it_is_loose(made: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting = np.array([[2.0, 2.1, 2.0, 2.2], [1.0, 1.05, 1.0, 1.1]])
    monkeypatch.setattr(check, "time_in_sittings", lambda *_, **__: [sitting, 1.01 * sitting])
    file, float_file = made.files.onnx, made.files.float_onnx
    size, share = file.stat().st_size, 100 * made.executed.int8_macs
    pairs: list[tuple[str, Any, Any]] = [
        ("max_bytes", size, size - 1),
        ("max_bytes", "0.99x", f"{0.9 * size / float_file.stat().st_size}x"),
        ("require_int8", share, min(share + 0.5, 100) if share < 100 else None),
        ("max_latency_ratio", 0.6, 0.4),
    ]
    for name, loose, tight in pairs:
        assert quantkit.gate(file, float_file=float_file, **{name: loose}).kept, (name, loose)
        if tight is not None:
            assert not quantkit.gate(file, float_file=float_file, **{name: tight}).kept, (name, tight)


def test_anyones_file_is_judged_on_all_of_the_data_without_a_lock(made: Result, tmp_path: Path) -> None:
    file = Path(shutil.copy(made.files.onnx, tmp_path / "q.onnx"))
    float_file = Path(shutil.copy(made.files.float_onnx, tmp_path / "f.onnx"))
    gated = quantkit.gate(file, float_file=float_file, data=data(), max_drop=9.0)
    inputs, labels = data()[0].inputs["x"].numpy(), data()[0].labels.numpy()
    right = [100 * float((open_session(path, threads=1).run({"x": inputs})[0].argmax(1) == labels).mean()) for path in (float_file, file)]

    row = found(gated)
    assert (row.n, gated.lock, [row.condition for row in gated.findings]) == (300, None, ["max-drop"])
    assert row.low <= row.measured <= row.high and f"{right[0] - right[1]:.2f} by counting" in row.text


@pytest.mark.parametrize(("undecided", "kept"), [("point", True), ("fail", False), ("pass", True)])
def test_what_an_undecided_condition_comes_to_is_said_by_whoever_asks(made: Result, undecided: str, kept: bool) -> None:
    """A file against itself loses nothing, and 120 items cannot prove half a point."""
    gated = quantkit.gate(made.run, against=made.files.onnx, data=data(), max_drop=0.5, undecided=undecided)

    row = found(gated)
    assert (row.decision, row.measured, gated.kept, gated.undecided) == ("undecided", 0.0, kept, undecided)
    assert row.to_decide is not None and row.to_decide > 120
    assert row.verdict().startswith(f"undecided with 120 items, about {row.to_decide:,} would decide")


def test_against_takes_the_place_of_the_float_file(made: Result, tmp_path: Path) -> None:
    wrecked = wreck(made.files.onnx, tmp_path / "old.onnx")
    better = quantkit.gate(made.files.onnx, against=wrecked, data=data(), max_drop=0.5, max_bytes="1.5x")
    worse = quantkit.gate(wrecked, against=made.files.onnx, data=data(), max_drop=0.5)

    assert better.kept and found(better).decision == "kept" and found(better).measured < -10
    assert not worse.kept and found(worse).decision == "broken"
    assert better.reference == wrecked


def wreck(source: Path, path: Path) -> Path:
    """The same file with the codes of one weight gone."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("down.weight") and len(tensor.dims) == 1 and tensor.data_type != onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(onnx.numpy_helper.to_array(tensor)), tensor.name))
    for tensor in model.graph.initializer:
        if "down.weight" in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(onnx.numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, path)
    return path


def test_what_it_takes_to_judge_is_asked_for_in_one_line(made: Result, tmp_path: Path) -> None:
    lone = Path(shutil.copy(made.files.onnx, tmp_path / "lone.onnx"))
    other = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["z"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
    ), opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), other)  # fmt: skip
    wrong: list[tuple[type[RequestError], str, dict[str, Any]]] = [
        (ConfigError, "no condition for ", {}),
        (ModelError, "no reference file for ", {"max_drop": 1.0, "data": data()}),
        (DataError, "an accuracy condition without data", {"max_drop": 1.0, "float_file": made.files.float_onnx}),
        (MetricError, "no labels", {"max_drop": 1.0, "float_file": made.files.float_onnx, "data": data(labelled=False)}),
        (ConfigError, "--against without a condition", {"against": made.files.onnx}),
        (ModelError, "two files of the same inputs|takes", {"against": other, "max_latency_ratio": 1.0}),
        (RequestError, "unknown undecided", {"undecided": "maybe", "max_bytes": 1}),
        (RequestError, "does not run here", {"target": "tensorrt", "float_file": made.files.float_onnx, "max_latency_ratio": 1.0}),
        (ModelError, "cannot read", {"float_file": tmp_path / "absent.onnx", "max_bytes": "0.5x"}),
    ]
    for kind, words, options in wrong:
        with pytest.raises(kind, match=words):
            quantkit.gate(lone, **options)


def test_latency_is_timed_in_turn_on_the_threads_that_are_asked_for(made: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def timed(runtime: Any, files: Any, example: Any, *, threads: int, seconds: float) -> list[np.ndarray]:
        seen.update(files=[file.path.name for file in files], threads=threads)
        return [np.ones((2, 20))] * 3

    monkeypatch.setattr(check, "time_in_sittings", timed)
    gated = quantkit.gate(made.files.onnx, float_file=made.files.float_onnx, max_latency_ratio=1.1, threads=2)

    assert seen == {"files": [made.files.float_onnx.name, "model.onnx"], "threads": 2}
    assert found(gated, "max-latency-ratio").decision == "kept"


def test_external_data_counts_as_bytes_of_the_file(made: Result, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    model = onnx.load(made.files.float_onnx)
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=0)

    assert file_bytes(outside) == outside.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert file_bytes(made.files.onnx) == made.files.onnx.stat().st_size


# The lock.


def test_the_lock_lies_in_the_run_and_beside_the_output_and_names_no_place(made: Result) -> None:
    mine, beside = (json.loads((folder / LOCK).read_text())["files"] for folder in (made.run, made.run.parent))
    entry = mine["model.onnx"]

    assert list(beside) == [OUTPUT] and beside[OUTPUT]["file"] == {**entry["file"], "name": OUTPUT}
    assert str(made.run.parent) not in json.dumps([mine, beside])
    assert entry["file"]["sha256"] == lock.sha256(made.files.onnx) and entry["float"]["sha256"] == lock.sha256(made.files.float_onnx)
    assert entry["plan"] == {layer: row.scheme for row in made.allocation for layer in row.layers}
    assert len(entry["data"]["gate"]["digests"]) == made.verdict.n
    assert entry["verdicts"]["drop"]["low"] == made.verdict.low and entry["host"]["isa"] == made.environment["isa"]
    assert entry["runtime"]["range"].startswith(">=") and entry["conditions"]["max_bytes"] == "0.9x"


def test_a_folder_has_one_lock_for_all_its_files(home: Path) -> None:
    allocate(home / "run2", output=home / "other.onnx", max_drop=20.0)

    assert sorted(json.loads((home / LOCK).read_text())["files"]) == ["other.onnx", OUTPUT]
    assert read_lock(home / LOCK, "third.onnx") is None


def test_asked_again_the_lock_is_as_it_was(home: Path) -> None:
    before = (home / "run" / LOCK).read_bytes()
    allocate(home / "run", output=home / OUTPUT, max_bytes="0.9x")

    assert (home / "run" / LOCK).read_bytes() == before


def test_a_file_beside_its_lock_is_judged_on_the_items_that_the_lock_knows(home: Path) -> None:
    gated = quantkit.gate(home / OUTPUT, float_file=next((home / "run").glob("float-*.onnx")), data=str(home / "val.npz"))

    assert found(gated).n == 120 and gated.lock == home / LOCK and gated.changes == ()


def test_other_items_are_said_to_be_others_and_some_of_them_are_refused(home: Path) -> None:
    inputs, labels = toys.images(50, seed=77, noise=1.5)
    others = quantkit.gate(home / "run", data=[Batch({"x": inputs}, labels)])

    assert found(others).n == 50 and "None of the 120 items" in others.notes[0]
    with pytest.raises(ConfigError, match="of the 120 items that the lock was judged on"):
        quantkit.gate(home / "run", data=str(write_shard(home / "part.npz", slice(0, 150))))


def test_what_changed_since_the_lock_is_said(home: Path) -> None:
    wreck(home / "run" / "model.onnx", home / "run" / "model.onnx")
    labels = (data()[0].labels + 1) % 4
    kept = json.loads((home / "run" / LOCK).read_text())
    kept["files"]["model.onnx"]["host"].update(isa="another", onnxruntime="1.22.0")
    (home / "run" / LOCK).write_text(json.dumps(kept))
    gated = quantkit.gate(home / "run", data=str(write_shard(home / "val.npz", labels=labels)))

    told = " ".join(gated.changes)
    assert "file model.onnx is not the one" in told and "integer instructions: another" in told and "labels are not those" in told
    assert "onnxruntime: 1.22.0 when it was locked" in told


def test_a_lock_s_preprocessing_metric_and_undecided_are_taken_unless_others_are_said(home: Path) -> None:
    path = home / "run" / LOCK
    kept = json.loads(path.read_text())
    entry = kept["files"]["model.onnx"]
    entry.update(undecided="fail", metric={"name": "agreement"})
    entry["data"]["preprocessing"] = {"scale": 50.0}  # far outside the calibrated ranges: no plan agrees there
    path.write_text(json.dumps(kept))
    locked = quantkit.gate(home / "run", data=str(home / "val.npz"))
    said = quantkit.gate(home / "run", data=str(home / "val.npz"), undecided="pass", metric="top1", scale=1.0)

    assert (locked.undecided, said.undecided) == ("fail", "pass")
    assert "of agreement lost" in found(locked).text and "of top1 lost" in found(said).text
    assert found(locked).measured != found(said).measured and any("metric is top1" in change for change in said.changes)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda entry: entry.pop("data"), "cannot be read"),
        (lambda entry: entry.update(target="tensorflow"), "cannot be read"),
        (lambda entry: entry.update(undecided="maybe"), "cannot be read"),
        (lambda entry: entry["runtime"].update(range=">=99.0"), "99.0"),
        (lambda entry: entry["metric"].update(name="os:system"), "is code"),
    ],
    ids=["no data", "target", "undecided", "runtime", "metric"],
)
def test_a_lock_is_not_trusted(home: Path, spoil: Any, words: str) -> None:
    path = home / "run" / LOCK
    kept = json.loads(path.read_text())
    spoil(kept["files"]["model.onnx"])
    path.write_text(json.dumps(kept))

    with pytest.raises(ConfigError, match=words):
        quantkit.gate(home / "run", data=data())


def test_a_lock_that_is_no_lock_file_is_refused_wherever_it_is_said(home: Path) -> None:
    (home / "some.json").write_text("[1")
    with pytest.raises(ConfigError, match="cannot be read"):
        quantkit.gate(home / OUTPUT, lock=home / "some.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        quantkit.gate(home / OUTPUT, lock=home / "absent.json")
    renamed = Path(shutil.move(home / OUTPUT, home / "renamed.onnx"))
    gated = quantkit.gate(renamed, lock=home / LOCK, float_file=next((home / "run").glob("float-*.onnx")), data=data())
    assert gated.lock == home / LOCK and found(gated).n == 120


def test_a_metric_of_the_user_s_own_must_be_named_again(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", metric=share_of_first, max_drop=0.05)

    with pytest.raises(MetricError):
        read = read_lock(result.run / LOCK, "model.onnx")
        assert read is not None and read.metric == "share_of_first"
        quantkit.gate(result.run, data=data(), metric="share_of_first")
    gated = quantkit.gate(result.run, data=data(), metric=share_of_first)
    assert found(gated).measured == pytest.approx(result.verdict.drop) and gated.changes == ()


# Where data, metric and preprocessing come from.


def test_data_may_be_a_recipe_or_the_configuration_s(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "recipe.py").write_text(
        "import quantkit as qk\n\ndef recipe():\n"
        "    return qk.Recipe(model='unused.pt2', data=__file__.replace('recipe.py', 'val.npz'), metric='top5')\n"
    )
    float_file = next((home / "run").glob("float-*.onnx"))
    file = Path(shutil.copy(home / OUTPUT, tmp_path / "q.onnx"))
    by_recipe = quantkit.gate(file, float_file=float_file, data=str(home / "recipe.py"), max_drop=5.0)
    (tmp_path / "quantkit.toml").write_text(f'data = "{home / "val.npz"}"\nmetric = "agreement"\n')
    by_configuration = quantkit.gate(file, float_file=float_file, max_drop=5.0)

    assert "of top5 lost" in found(by_recipe).text and found(by_recipe).n == 300
    assert "of agreement lost" in found(by_configuration).text and found(by_configuration).n == 300


def test_of_data_in_splits_the_gate_split_is_taken(made: Result) -> None:
    inputs, labels = toys.images(60, seed=5)
    parts = {name: [Batch({"x": inputs[place::3]}, labels[place::3])] for place, name in enumerate(("calibration", "search", "gate"))}

    assert found(quantkit.gate(made.files.onnx, float_file=made.files.float_onnx, data=parts, max_drop=50.0)).n == 20


# The command and its reports.


def command(home: Path, *more: str) -> list[str]:
    float_file = next((home / "run").glob("float-*.onnx"))
    return ["gate", str(home / OUTPUT), "--float", str(float_file), "--data", str(home / "val.npz"), *more]


def test_the_exit_code_is_the_answer(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(home)) == 0
    assert capfd.readouterr().out.startswith(f"Kept: home/{OUTPUT} against home/run/float-")
    assert main(command(home, "--max-bytes", "10")) == 1
    assert capfd.readouterr().out.startswith("Not kept")
    assert main(["gate", str(home / "val.npz"), "--max-bytes", "10"]) == 2
    assert main(command(home, "--max-latency-ratio", "5ms")) == 2
    assert "above 0" in capfd.readouterr().err


def test_our_own_fault_never_reads_as_a_regression(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(check, "file_bytes", broken)

    assert main(command(home, "--max-bytes", "10")) == 3


def test_the_reports_say_what_the_command_says(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = {kind: tmp_path / f"gate.{kind}" for kind in ("junit", "sarif", "markdown")}
    asked = [text for kind, path in paths.items() for text in (f"--{kind}", str(path))]
    code = main(command(home, "--max-bytes", "10", "--max-drop", "50", "--json", *asked))
    told = json.loads(capfd.readouterr().out)

    assert code == 1 and not told["kept"] and [row["condition"] for row in told["findings"]] == ["max-bytes", "max-drop"]
    check_junit(paths["junit"].read_text(), tests=2, failures=["max-bytes"])
    check_sarif(json.loads(paths["sarif"].read_text()), {"max-bytes": "error"})
    assert paths["markdown"].read_text().startswith(f"### ❌ Not kept: `home/{OUTPUT}`\n")


def gated_json(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What reports are written from."""
    plain = {"told": "told", "verdict": "kept", "line": "line", "seconds": 0.5, "stands": True}
    return {
        "file": "q.onnx", "reference": "f.onnx", "kept": True, "changes": [], "notes": [], "seconds": 1.0,
        "findings": [{**plain, **row} for row in rows], **more,
    }  # fmt: skip


ROWS = (
    {"condition": "max-drop", "decision": "undecided", "verdict": "undecided with 400 items", "line": 'a <b> & "c"'},
    {"condition": "max-bytes", "decision": "broken", "stands": False, "line": "too large"},
    {"condition": "require-int8", "decision": "kept"},
)


def check_junit(text: str, tests: int, failures: list[str]) -> None:
    """The structure that the readers of JUnit XML share: testsuites / testsuite / testcase with failure and system-out."""
    root = Xml.fromstring(text)
    (suite,) = root
    cases = suite.findall("testcase")

    assert (root.tag, suite.tag, len(cases)) == ("testsuites", "testsuite", tests)
    for element in (root, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors")) == (str(tests), str(len(failures)), "0")
        assert float(element.get("time", "nan")) >= 0
    assert [child.tag for child in suite] == ["testcase"] * tests + ["system-out"]
    for case in cases:
        assert set(case.attrib) == {"classname", "name", "time"} and float(case.get("time", "nan")) >= 0
        assert {child.tag for child in case} <= {"failure", "system-out"}
    assert [case.get("name") for case in cases if case.find("failure") is not None] == failures


def check_sarif(sarif: dict[str, Any], levels: dict[str, str]) -> None:
    """What SARIF 2.1.0 requires of a log, a run, a tool, a rule and a result, and code scanning of locations."""
    (run,) = sarif["runs"]
    driver = run["tool"]["driver"]

    assert sarif["version"] == "2.1.0" and sarif["$schema"].endswith("sarif-2.1.0.json")
    assert driver["name"] and driver["version"] and len({rule["id"] for rule in driver["rules"]}) == len(driver["rules"])
    for result in run["results"]:
        assert result["level"] in {"none", "note", "warning", "error"} and result["message"]["text"]
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert uri and "\\" not in uri and location["physicalLocation"]["region"]["startLine"] == 1
    assert {result["ruleId"]: result["level"] for result in run["results"]} == levels


def test_a_junit_report_has_a_case_for_each_condition_and_a_failure_for_what_does_not_stand() -> None:
    text = to_junit(gated_json(*ROWS, notes=["a note"], kept=False))

    check_junit(text, tests=3, failures=["max-bytes"])
    root = Xml.fromstring(text)
    assert root.findtext("testsuite/testcase/system-out") == 'a <b> & "c"' and "a note" in (root.findtext("testsuite/system-out") or "")


def test_a_sarif_report_warns_of_what_stands_undecided_and_is_silent_of_what_is_kept() -> None:
    check_sarif(to_sarif(gated_json(*ROWS), "1.0"), {"max-drop": "warning", "max-bytes": "error"})
    check_sarif(to_sarif(gated_json(), "1.0"), {})


def test_a_markdown_report_keeps_its_table_whatever_the_text() -> None:
    text = to_markdown(gated_json({**ROWS[1], "told": "a | b\n<script>"}, kept=False, changes=["one"], notes=["two"]))
    rows = [line for line in text.splitlines() if line.startswith("|")]

    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1 and "<script>" not in text
    assert "0 of 1 conditions stand against `f.onnx`." in text
    assert "**Changed since the lock**" in text and "- two" in text
