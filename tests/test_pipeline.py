"""The whole job, in memory and in seconds: what it answers, what it leaves, what it does not do twice."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
import toys
from torch import Tensor, nn

import quantkit
from quantkit.allocation.costs import measured as latency
from quantkit.core.errors import CaptureError, DataError, MetricError, OutputError, SchemeError
from quantkit.core.run_files import PIPELINE
from quantkit.core.sources import code_of
from quantkit.core.store import JOURNAL, Run, fingerprint
from quantkit.core.table import Table
from quantkit.data import Batch, collect, cut
from quantkit.export.float_onnx import export_float
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.runs import workbench
from quantkit.runs.maintenance import STAGES
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import read_plan, simulate
from quantkit.runs.workbench import Workbench
from quantkit.runtimes import evaluation
from quantkit.sensitivity import hessian
from quantkit.stages import capture as captures
from quantkit.stages import costs, finalists, judge, looks, ranges, scores, stored_result, verify
from quantkit.verification.parity import LayerDifference, Parity

ITEMS = 300


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Fewer rounds: no test looks at how long anything took."""
    patch.setattr(latency, "PROFILE_RUNS", 3)
    patch.setattr(latency, "FIT_PLANS", 3)
    patch.setattr(latency, "TEST_PLANS", 3)
    patch.setattr(finalists, "ROUNDS", 3)
    patch.setattr("quantkit.verification.verify.LATENCY_SECONDS", 0.1)
    patch.setattr(hessian, "MOST_PROBES", 3)


def remember(patch: pytest.MonkeyPatch) -> None:
    """torch's exporters take four seconds even for a toy: equal networks are captured and exported once for the whole file."""
    patch.setattr(captures, "capture", remembered_capture)
    patch.setattr(captures, "export_float", remembered_export)


CAPTURED: dict[str, Captured] = {}
EXPORTED: dict[int, bytes] = {}


def remembered_capture(model: Any, example: Any, outputs: Sequence[str] = ()) -> Captured:
    if not isinstance(model, torch.nn.Module) or outputs:
        return capture(model, example, outputs=outputs)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    key = fingerprint(str(type(model)), str(type(model).forward), state, [list(value.shape[1:]) for value in example.values()])
    if key not in CAPTURED:
        CAPTURED[key] = capture(model, example)
    return CAPTURED[key]


def remembered_export(captured: Captured, path: Path, opset: int) -> None:
    if id(captured) not in EXPORTED:
        export_float(captured, path, opset)
        EXPORTED[id(captured)] = path.read_bytes()
    path.write_bytes(EXPORTED[id(captured)])


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporters themselves."""
    monkeypatch.setattr(captures, "capture", capture)
    monkeypatch.setattr(captures, "export_float", export_float)


def data(count: int = ITEMS, labelled: bool = True, noise: float = 1.5) -> list[Batch]:
    inputs, labels = toys.images(count, seed=4, noise=noise)
    return [Batch({"x": inputs}, labels if labelled else None)]


def allocate(run: Path, **options: Any) -> Result:
    """The job on the trained toy, for fewest bytes, which no clock decides; the promise is loose unless said otherwise."""
    arguments: dict[str, Any] = {"data": data(), "max_drop": 10.0, "minimize": "bytes", "run": run, "certificate": 0, **options}
    return quantkit.allocate(arguments.pop("model", None) or toys.trained(), **arguments)


@dataclass
class Spy:
    """What was computed: which stages, which files were run over data, how many threads timed what."""

    stages: list[str] = field(default_factory=list)
    evaluated: list[str] = field(default_factory=list)
    batch_sizes: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        self.stages.append(name)
        yield lambda steps: None

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    evaluate = evaluation.evaluate

    def spied(session: Any, subset: Any, batch_size: int, *early: Any) -> Any:
        found.evaluated.append(re.sub(r"candidate-\w+", "candidate", session.path.name))
        found.batch_sizes.add(batch_size)
        return evaluate(session, subset, batch_size, *early)

    for room in (judge, looks, verify):
        monkeypatch.setattr(room, "evaluate", spied)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        yield allocate(tmp_path_factory.mktemp("done") / "run")


SHAPES: dict[str, Any] = {
    "schema": int, "run": str, "kept": bool, "minimize": str, "distilled": bool,
    "gained": (dict, type(None)), "refused": (list, type(None)),
    "budget": {"max_drop": float, "unit": str, "metric": str},
    "bounds": list,
    "verdict": {"decision": str, "n": int, "float": float, "quantized": float, "drop": float, "low": float, "high": float,
                "counted_drop": (float, type(None))},
    "latency": {"float_ms": float, "quantized_ms": float, "ratio": float, "low": float, "high": float, "threads": int, "batch": int},
    "bytes": {"float": int, "quantized": int, "ratio": float},
    "baselines": [{"name": str, "drop": float, "latency_ratio": float, "bytes_ratio": float}],
    "allocation": [{"group": str, "layers": [str], "scheme": str, "sensitivity": float, "bytes": float, "latency_ms": float}],
    "certificate": (dict, type(None)),
    "executed": {"as_planned": bool, "int8": int, "float": int, "int8_macs": float, "mismatches": list},
    "simulation": {"items": int, "agreement": float, "exact": float, "layers_exact": float},
    "variants": list,
    "files": {"onnx": str, "float_onnx": str, "session": (str, type(None)), "alternative": (str, type(None))},
    "seconds": dict, "environment": dict, "fingerprint": str, "notes": (list, type(None)),
}  # fmt: skip


def check_shape(value: Any, shape: Any, path: str = "result") -> None:
    if isinstance(shape, dict):
        assert list(value) == list(shape), path
        for key, inner in shape.items():
            check_shape(value[key], inner, f"{path}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list) and value, path
        for row in value:
            check_shape(row, shape[0], path)
    else:
        assert isinstance(value, shape) and (shape is bool or not isinstance(value, bool)), f"{path} is {type(value).__name__}"


def test_the_result_has_exactly_the_promised_fields(done: Result) -> None:
    stored = json.loads((done.run / "result.json").read_text())

    check_shape(stored, SHAPES)
    assert stored == json.loads(json.dumps(done.to_json()))
    assert stored["schema"] == 1
    assert {"cpu", "isa", "torch", "onnxruntime", "quantkit"} <= set(stored["environment"])
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in stored["seconds"].values())
    assert stored["verdict"]["decision"] in {"kept", "broken", "undecided"}
    assert [row["name"] for row in stored["baselines"]][:2] == ["float", "uniform w8a8"]
    assert "quantize_static" in stored["baselines"][2]["name"]


def test_what_is_reported_is_what_the_file_does(done: Result) -> None:
    """The gate split again, by hand: the data cut as it was, both files in the runtime, the labels."""
    gate = cut(collect(data()), seed=0).gate
    inputs, labels = next(gate.batches(len(gate))).inputs["x"].numpy(), gate.labels()

    def score(path: Path) -> float:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return 100 * float((session.run(None, {session.get_inputs()[0].name: inputs})[0].argmax(1) == labels).mean())

    float_score, quantized_score = score(done.files.float_onnx), score(done.files.onnx)
    assert done.verdict.n == len(gate)
    assert (done.verdict.float, done.verdict.quantized) == (pytest.approx(float_score), pytest.approx(quantized_score))
    assert done.verdict.counted_drop == pytest.approx(float_score - quantized_score)
    assert done.verdict.low <= done.verdict.drop <= done.verdict.high
    assert done.bytes == {
        "float": done.files.float_onnx.stat().st_size,
        "quantized": done.files.onnx.stat().st_size,
        "ratio": done.files.onnx.stat().st_size / done.files.float_onnx.stat().st_size,
    }


def test_the_loose_promise_is_kept_in_int8_as_planned(done: Result) -> None:
    assert done.kept and done.executed.as_planned and done.executed.mismatches == ()
    assert done.simulation.layers_exact == 1.0 and done.executed.int8_macs > 0.8
    assert {layer for row in done.allocation for layer in row.layers} == {
        "stem", "depthwise", "point", "add", "down", "global_pool", "classifier",
    }  # fmt: skip
    assert done.files.session is None
    assert (done.max_drop, done.unit, done.metric) == (10.0, "points", "top1")


def test_the_run_directory_holds_whole_files_only(done: Result) -> None:
    names = sorted(path.name for path in done.run.iterdir())

    assert {"front.json", "lock", "measured.jsonl", "model.onnx", "result.json", "stages"} <= set(names)
    assert [name for name in names if name.startswith(".")] == []
    assert [path for path in (done.run / "stages").iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("fresh")
def test_the_callers_network_is_left_as_it_was(tmp_path: Path) -> None:
    model = toys.trained().train()
    model.stem.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allocate(tmp_path / "run", model=model)

    assert model.training and not model.stem.weight.requires_grad and model.down.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_asked_again_nothing_is_repeated(tmp_path: Path, spy: Spy) -> None:
    first = allocate(tmp_path / "run")
    spy.evaluated.clear()
    second = allocate(tmp_path / "run", progress=spy)

    assert second.to_json() == first.to_json() and second.notes == first.notes
    assert spy.evaluated == [] and spy.stages == ["capture the graph"]


def test_a_stage_is_computed_again_only_if_what_it_depends_on_changed(tmp_path: Path, spy: Spy) -> None:
    allocate(tmp_path / "run")
    before = stages(tmp_path / "run")
    allocate(tmp_path / "run", max_drop=9.0)
    assert [stage for stage in new(before, tmp_path / "run") if stage != "finalists"] == ["accuracy", "result"]
    before = stages(tmp_path / "run")
    allocate(tmp_path / "run", sensitivity="displacement")
    other = {"accuracy", "file_latency", "finalists", "simulation"}  # of another file, if the plan is another
    scored = {"front", "interactions", "result", "scores"}
    assert scored <= set(new(before, tmp_path / "run")) <= scored | other
    behind = ["accuracy", "file_bytes", "file_latency", "front", "latency", "result", "scores", "simulation", "weights"]
    for changed in ({"observer": "minmax"}, {"rounding": "nearest"}):
        before = stages(tmp_path / "run")
        allocate(tmp_path / "run", **changed)
        assert [stage for stage in new(before, tmp_path / "run") if stage != "finalists"] == behind


@pytest.mark.parametrize(
    ("module", "made"),
    [("scores", {"scores"}), ("ranges", {"ranges"}), ("verify", {"accuracy", "file_latency", "simulation"}), ("cli", set())],
)
def test_code_makes_only_the_stages_again_that_import_it(
    tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch, module: str, made: set[str]
) -> None:
    """And what rests on their results only where these come out otherwise."""
    allocate(tmp_path / "run")
    before = stages(tmp_path / "run")

    def changed(name: str) -> str:
        return code_of(name) + "changed" * (name in (f"quantkit.stages.{module}", PIPELINE))

    for room in (workbench, stored_result):
        monkeypatch.setattr(room, "code_of", changed)
    allocate(tmp_path / "run", progress=spy)

    assert set(new(before, tmp_path / "run")) == made | {"result"}
    assert any("scores made again: code of this stage" in note for note in spy.notes) == (module == "scores")


def test_what_changed_since_the_last_request_is_said_in_one_line_and_why_a_stage_is_made_again(tmp_path: Path, spy: Spy) -> None:
    allocate(tmp_path / "run")
    allocate(tmp_path / "run", observer="minmax", max_drop=9.0, progress=spy)
    allocate(tmp_path / "run", observer="minmax", max_drop=9.0, progress=(again := Spy()))

    assert "changed since the last request of this run: max drop (10 → 9), observer (mse → minmax)" in spy.notes
    assert "weights made again: observer (mse → minmax)" in spy.notes
    assert not [note for note in spy.notes if note.startswith(("ranges made", "float on search made"))]
    assert again.notes == []


@pytest.mark.parametrize("stage", ["weights", "front", "file_latency"])
def test_a_resumed_run_repeats_no_finished_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Cut off as soon as `stage` is on the disk: what was made before it is found, and nothing is made twice."""
    met = Workbench._met
    made: list[str] = []

    def cut(bench: Workbench, name: str, *rest: Any, **told: Any) -> None:
        met(bench, name, *rest, **told)
        made.extend([name] if told["made"] else [])
        if name == stage and told["made"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Workbench, "_met", cut)
    with pytest.raises(KeyboardInterrupt):
        allocate(tmp_path / "run")
    before = list(made)
    allocate(tmp_path / "run")

    assert before[-1] == stage and made[-1] == "result"
    assert len(made) == len(set(made)) and set(made) == set(STAGES)


def stages(run: Path) -> set[str]:
    """Names of the stages' files, those aside that hold the weights of one plan."""
    return {path.name for path in (run / "stages").iterdir() if not path.name.startswith("plan_weights")}


def new(before: set[str], run: Path) -> list[str]:
    return sorted({name.split("-")[0] for name in stages(run) - before})


def test_a_lost_or_changed_file_is_made_again(tmp_path: Path) -> None:
    first = allocate(tmp_path / "run")
    content = first.files.onnx.read_bytes()
    first.files.onnx.write_bytes(b"torn")

    assert allocate(tmp_path / "run").files.onnx.read_bytes() == content


def test_a_moved_run_directory_still_knows_its_result(tmp_path: Path, spy: Spy) -> None:
    allocate(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    spy.evaluated.clear()
    found = allocate(tmp_path / "moved")

    assert spy.evaluated == [] and found.files.onnx == tmp_path / "moved" / "model.onnx"
    assert json.loads((tmp_path / "moved" / "result.json").read_text())["run"] == str(tmp_path / "moved")


def test_the_captured_program_is_kept_once_for_every_job_that_captures_the_same(tmp_path: Path) -> None:
    allocate(tmp_path / "run")
    (program,) = (tmp_path / "run").glob("captured-*.pt2")
    before = program.stat()
    allocate(tmp_path / "run", max_drop=9.0)

    assert list((tmp_path / "run").glob("captured-*")) == [program]
    assert (program.stat().st_ino, program.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["program"] == program.name


def test_a_program_that_torch_cannot_store_is_noted_and_the_job_goes_on(tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no serializer for this\nand more")

    monkeypatch.setattr(torch.export, "save", refuse)
    result = allocate(tmp_path / "run", progress=spy)

    assert any("no serializer for this)" in note for note in spy.notes) and not list(result.run.glob("captured-*"))
    with pytest.raises(OutputError, match="no captured program"):
        simulate(read_plan(result.run), tmp_path / "again.onnx")


def test_where_simulation_and_file_part_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parting = LayerDifference("stem", 0.5, 2.0, True, "unknown")
    monkeypatch.setattr(verify, "compare_simulation", lambda *_: Parity(64, 1.0, 0.5, 0.75, (parting,), parting))
    result = allocate(tmp_path / "run")

    assert result.to_json()["simulation"] == {"items": 64, "agreement": 1.0, "exact": 0.5, "layers_exact": 0.75}
    assert sum(str(parting) in note for note in result.notes) == 2
    assert allocate(tmp_path / "run").notes == result.notes


def test_other_code_with_the_same_weights_is_another_network(tmp_path: Path) -> None:
    class Toy(toys.Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    Toy.__qualname__ = toys.Toy.__qualname__
    other = Toy()
    other.load_state_dict(toys.trained().state_dict())
    first = allocate(tmp_path / "run")
    second = allocate(tmp_path / "run", model=other)

    assert first.files.float_onnx != second.files.float_onnx
    assert second.verdict.float < 20 < 60 < first.verdict.float


def test_an_impossible_promise_writes_the_nearest_plan_and_says_what_binds(tmp_path: Path) -> None:
    pins = dict.fromkeys(("stem", "depthwise", "point", "down", "classifier"), "w2a8")
    output = tmp_path / "out.onnx"
    result = allocate(tmp_path / "run", data=data(noise=3.0), max_drop=1.0, fix=pins, output=output, metric="agreement")

    assert not result.kept and result.verdict.drop > 1.0
    assert result.files.onnx.exists() and output.read_bytes() == result.files.onnx.read_bytes()
    assert {row.group: row.scheme for row in result.allocation}.items() >= pins.items()
    assert any("No plan kept the promise" in note and "--max-drop" in note for note in result.notes)


@pytest.mark.parametrize(("undecided", "kept"), [("point", True), ("fail", False), ("pass", True)])
def test_what_decides_an_undecided_verdict(done: Result, undecided: str, kept: bool, tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", exclude=["*"], max_drop=2.0, data=data(150), metric="agreement", undecided=undecided)

    assert (result.verdict.decision, result.verdict.drop) == ("undecided", 0.0)
    assert result.kept is kept
    assert any("gate items would decide" in note for note in result.notes)


def test_pins_and_exclusions_are_kept_and_cost_nothing_else_its_menu(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", fix=["stem=w4a8"], exclude=["d*"], schemes="w8a8,fp32")
    schemes = {row.group: row.scheme for row in result.allocation}

    assert (schemes["stem"], schemes["depthwise"], schemes["down"]) == ("w4a8", "fp32", "fp32")
    assert "w4a8" not in {scheme for name, scheme in schemes.items() if name != "stem"}
    assert result.executed.as_planned


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"fix": ["stam=w8a8"]}, "did you mean 'stem'"),
        ({"exclude": ["claszifier"]}, "did you mean 'classifier'"),
        ({"fix": ["add=w4a8"]}, "scheme for group add"),
    ],
    ids=["fix", "exclude", "scheme"],
)
def test_pins_that_meet_nothing_are_refused_with_the_nearest_name(tmp_path: Path, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(SchemeError, match=hint):
        allocate(tmp_path / "run", **options)


def test_all_float_is_an_answer_and_is_named(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", exclude=["*"])

    assert {row.scheme for row in result.allocation} == {"fp32"} and result.kept
    assert (result.executed.int8, result.executed.int8_macs) == (0, 0)
    assert any("float" in note for note in result.notes)


@pytest.mark.parametrize(("factors", "scheme"), [((1.0, 2.0, 3.0), "fp32"), ((3.0, 1.0, 2.0), "w8a8")], ids=["float", "w8a8"])
def test_the_fastest_plan_is_found_on_a_machine_of_known_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...], scheme: str
) -> None:
    """A machine on which each scheme takes that many milliseconds a layer."""

    def known(graph: Any, groups: Any, schemes: Any, *_: Any, **__: Any) -> latency.LatencyModel:
        speed = dict(zip(("fp32", "w8a8", "w4a8"), factors, strict=True))
        rows = [[speed[name] if name in group.schemes else math.nan for name in schemes] for group in groups]
        table = Table("latency", "ms", tuple(group.name for group in groups), tuple(schemes), np.array(rows))
        return latency.LatencyModel(table, (), 0.5, 1.0, ((1.0, 1.0),))

    monkeypatch.setattr(costs, "measure_latency", known)
    monkeypatch.setattr(finalists, "interleave", lambda sessions, *_, **__: np.ones((len(sessions), 1)))
    result = allocate(tmp_path / "run", minimize="latency", max_drop=20.0)

    assert {row.scheme for row in result.allocation} == {scheme}
    assert [row.latency_ms for row in result.allocation] == [min(factors)] * 7
    assert any("predicted 7.50 ms" in note for note in result.notes)
    if scheme == "fp32":
        assert result.gained is None


def test_of_plans_predicted_alike_the_one_that_runs_fastest_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def known(graph: Any, groups: Any, schemes: Any, *_: Any, **__: Any) -> latency.LatencyModel:
        rows = [[1.0 if name in group.schemes else math.nan for name in schemes] for group in groups]
        table = Table("latency", "ms", tuple(group.name for group in groups), tuple(schemes), np.array(rows))
        return latency.LatencyModel(table, (), 0.0, 1.0, ())

    def interleaved(sessions: Any, *_: Any, **__: Any) -> np.ndarray:
        """The smaller the file, the faster."""
        sizes.extend(session.path.stat().st_size for session in sessions)
        return np.array(sizes)[:, None]

    monkeypatch.setattr(costs, "measure_latency", known)
    monkeypatch.setattr(finalists, "interleave", interleaved)
    result = allocate(tmp_path / "run", minimize="latency", max_drop=20.0)

    assert len(sizes) > 1 and result.bytes["quantized"] == min(sizes)


def test_fewest_bytes_are_found_where_bytes_are_asked_for(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", max_drop=30.0)

    # A table of levels costs 16 bytes, which layers of few weights do not save: there other widths are as good, and latency decides.
    taken = {row.group: row.scheme for row in result.allocation if row.group not in ("add", "global_pool")}
    assert taken["down"] in ("c2a8", "c3a8") and set(taken.values()) <= {"c2a8", "c3a8", "c4a8", "w6a8"}
    assert result.kept
    (note,) = [note for note in result.notes if note.startswith("Bytes: promised")]
    promised, written = (int(word.rstrip(",").replace(",", "")) for word in note.split()[2:5:2])
    assert written == result.bytes["quantized"] and abs(written / promised - 1) < 0.02


@pytest.mark.parametrize(
    "options",
    [
        {"search": "bisection"},
        {"search": "swaps"},
        {"sensitivity": "hessian"},
        {"sensitivity": "augmented"},
        {"sensitivity": "displacement"},
        {"search": "bisection", "sensitivity": "hessian"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_every_way_to_score_and_search_ends_in_a_kept_promise(tmp_path: Path, options: dict[str, str]) -> None:
    result = allocate(tmp_path / "run", **options)
    (scores,) = (tmp_path / "run" / "stages").glob("scores-*.json")

    assert result.kept and result.executed.as_planned and result.executed.int8_macs > 0.5
    assert json.loads(scores.read_text())["data"]["table"]["name"] == options.get("sensitivity", "kl")


def test_a_network_without_anything_to_quantize_is_refused_in_words(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x).flatten(1)[:, :5]

    with pytest.raises(CaptureError, match=r"nothing in the network can be quantized: .+; wanted .+; next: see `quantkit inspect`"):
        allocate(tmp_path / "run", model=Plain().eval())


def test_agreement_needs_no_labels(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", data=data(labelled=False), metric="agreement")

    assert (result.metric, result.verdict.float, result.kept) == ("agreement", 100.0, True)


def test_a_squared_error_is_lower_where_better_and_has_its_own_unit(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", data=data(labelled=False), metric="mse", max_drop=1.0)
    tight = allocate(tmp_path / "tight", data=data(labelled=False), metric="mse", max_drop=1e-4)

    assert (result.unit, result.verdict.float) == ("mean squared error", 0)
    assert result.kept and result.verdict.drop == result.verdict.quantized > 0
    assert tight.verdict.drop <= 1e-4 < result.verdict.drop


def share_of_first(outputs: Any, labels: Any, index: Any) -> float:
    """A metric of the user's own: how much of the score mass lies on the right class."""
    scores = np.exp(outputs[0][index])
    return float((scores[np.arange(len(index)), labels[index]] / scores.sum(1)).mean())


share_of_first.higher_is_better = True  # type: ignore[attr-defined]
share_of_first.unit = "share"  # type: ignore[attr-defined]


class Pixels(torch.nn.Module):
    """A class for each pixel, at half the size and back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up, self.head = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ConvTranspose2d(8, 8, 2, 2), torch.nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(torch.relu(self.down(x)))))


def test_a_segmentation_is_judged_by_the_classes_of_its_pixels(tmp_path: Path) -> None:
    model, inputs = Pixels().eval(), toys.images(ITEMS, seed=4)[0]
    with torch.no_grad():  # so that no class is rare
        answers = model(inputs)
        model.head.bias -= answers.mean(dim=(0, 2, 3))
        model.head.weight *= 1 / answers.std(dim=(0, 2, 3))[:, None, None, None]
        model.head.bias *= 1 / answers.std(dim=(0, 2, 3))
    labels = model(inputs).argmax(dim=1)
    labels[:, 0] = 255  # pixels of no class
    result = allocate(tmp_path / "run", model=model, data=[Batch({"x": inputs}, labels)], metric="miou", max_drop=30.0)

    assert (result.metric, result.unit, result.kept) == ("miou", "points", True)
    assert result.verdict.float == pytest.approx(100) and 0 < result.verdict.drop <= 30
    assert result.executed.as_planned and {row.group for row in result.allocation} == {"down", "head"}


def test_a_function_can_be_the_metric(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", metric=share_of_first, max_drop=0.05)

    assert (result.metric, result.unit, result.kept) == ("share_of_first", "share", True)
    assert 0 < result.verdict.float <= 1


def test_a_relative_budget_is_a_share_of_the_float_score(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", max_drop=None, keep="90%")

    assert result.max_drop == pytest.approx(0.1 * result.verdict.float)


@pytest.mark.parametrize("wrong", [{"labels": 9}, {"labels": -1}], ids=["too large", "negative"])
def test_labels_out_of_range_are_the_datas_fault(tmp_path: Path, wrong: dict[str, int]) -> None:
    batches = data()
    assert batches[0].labels is not None
    batches[0].labels[5:] = wrong["labels"]

    with pytest.raises(DataError, match=r"label -?\d"):
        allocate(tmp_path / "run", data=batches)


def test_items_that_are_too_few_for_the_budget_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="items"):
        allocate(tmp_path / "run", max_drop=0.1)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("room", ["score_groups", "search", "verify_plan", "report"])
def test_ctrl_c_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"quantkit.pipeline.{room}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        allocate(tmp_path / "run", output=tmp_path / "out.onnx")

    assert not [name for name in files(tmp_path) if "/." in name or name.startswith(".")]
    assert not (tmp_path / "out.onnx").exists() and not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    with Run(tmp_path / "run"):
        pass  # and the lock is free


@pytest.mark.parametrize("where", ["candidate", "uniform", "model", "float"])
@pytest.mark.usefixtures("fresh")
def test_a_full_disk_is_said_as_such_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Writing stops in the middle of a file."""
    if where != "float":
        remember(monkeypatch)
    save = onnx_ir.save

    def full(model: Any, path: Any) -> None:
        save(model, path)
        if where in Path(path).name:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_ir, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        allocate(tmp_path / "run", output=tmp_path / "out.onnx")

    left = files(tmp_path)
    assert not [name for name in left if "/." in name] and "out.onnx" not in left and "run/result.json" not in left
    assert not [name for name in left if name.endswith(".onnx") and (tmp_path / name).stat().st_size <= 1000]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path: Path, spy: Spy) -> None:
    with pytest.raises(OutputError):
        allocate(tmp_path / "run", output=tmp_path / "absent" / "out.onnx", progress=spy)

    assert spy.stages == [] and files(tmp_path) == []


def test_a_search_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spy: Spy) -> None:
    append = Run.append
    records: list[Any] = []

    def killed(store: Run, record: Mapping[str, Any], name: str = JOURNAL) -> None:
        append(store, record, name)
        if name == JOURNAL:
            records.append(record["key"])
            if len(records) == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            allocate(tmp_path / "run")
    kept = stages(tmp_path / "run")
    spy.evaluated.clear()
    (tmp_path / "run" / ".scratch-left").mkdir()
    (tmp_path / "run" / ".model-0123abcd.onnx").write_bytes(b"torn")
    allocate(tmp_path / "run")
    keys = [json.loads(line)["key"] for line in (tmp_path / "run" / "measured.jsonl").read_text().splitlines()]

    assert len(kept) == 8 and kept < stages(tmp_path / "run")
    assert keys[:3] == records and len(set(keys)) == len(keys) > 3
    assert spy.evaluated.count("candidate.onnx") == len(keys) - 3
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with Run(tmp_path / "run"), pytest.raises(OutputError, match="in use"):
        allocate(tmp_path / "run")


def test_the_batch_size_reaches_the_files_and_calibration(tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()
    calibrate = ranges.calibrate

    def spied(captured: Any, batches: Any) -> Any:
        listed = list(batches)
        sizes.update(batch.size for batch in listed)
        return calibrate(captured, listed)

    monkeypatch.setattr("quantkit.stages.ranges.calibrate", spied)
    allocate(tmp_path / "run", batch_size=11)

    assert spy.batch_sizes == {11} and max(sizes) == 11


def test_threads_reach_every_timing_and_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    opened = evaluation.open_session

    def spied(path: Path, *, threads: int, **others: Any) -> Any:
        asked.append(threads)
        return opened(path, threads=threads, **others)

    monkeypatch.setattr("quantkit.runtimes.ort_cpu.open_session", spied)
    result = allocate(tmp_path / "run", threads=2)

    assert result.latency.threads == 2
    assert 2 in asked and asked.count(2) > len(toys.SCHEMES) + 5


@pytest.mark.parametrize("option", ["seed", "split_seed"])
def test_seeds_change_what_is_drawn(tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    estimate = scores.SENSITIVITIES["kl"]

    def spied(context: Any) -> Any:
        seen[str(len(seen))] = (context.seed, context.items.digests())
        return estimate(context)

    monkeypatch.setitem(scores.SENSITIVITIES, "kl", spied)
    results = [allocate(tmp_path / str(place), **{option: place}) for place in range(2)]

    assert results[0].fingerprint != results[1].fingerprint
    (first_seed, first_items), (other_seed, other_items) = seen.values()
    assert (first_seed != other_seed) == (option == "seed")
    assert (first_items != other_items) == (option == "split_seed")


@pytest.mark.parametrize(("effort", "time"), [("fast", r"\d+ s, "), ("balanced", "")])
def test_the_estimate_comes_before_the_search(effort: str, time: str, tmp_path: Path, spy: Spy) -> None:
    """How many candidates at most, and how long where each is written at once: plans whose weights are rounded take their time."""
    allocate(tmp_path / "run", progress=spy, effort=effort, minimize="bytes", certificate=0)
    wanted = rf"search: at most (\d+) candidates on \d+ items, {time}\d+ MB a candidate"
    (most,) = [int(found[1]) for note in spy.notes if (found := re.fullmatch(wanted, note))]
    measured = {json.dumps(record["allocation"]) for record in Run(tmp_path / "run").records() if "look" in record}
    assert 3 < len(measured) <= most


def test_a_network_of_fixed_batch_does_the_whole_job(tmp_path: Path) -> None:
    program = torch.export.export(toys.trained(), (torch.zeros(7, 3, toys.SIDE, toys.SIDE),))
    path = tmp_path / "toy.pt2"
    torch.export.save(program, path)
    result = allocate(tmp_path / "run", model=path)

    assert result.kept and result.latency.batch == 7 and result.verdict.float > 60


def test_data_of_another_shape_than_the_archives_is_the_requests_fault(tmp_path: Path) -> None:
    program = torch.export.export(toys.trained(), (torch.zeros(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "toy.pt2")

    with pytest.raises(DataError, match="shape"):
        allocate(tmp_path / "run", model=tmp_path / "toy.pt2")


def test_inspect_tells_groups_and_what_stays_float() -> None:
    found = quantkit.inspect(toys.trained(), input_shape="1x3x8x8", exclude=["stem"])

    assert {group.name: group.schemes for group in found.groups}["stem"] == ("fp32",)
    assert [group.name for group in found.groups] == ["stem", "depthwise", "point", "add", "down", "global_pool", "classifier"]
    assert found.graph.unsupported == () and found.overview.int8_groups == len(found.groups) - 1
    assert not math.isnan(sum(layer.macs for layer in found.graph.layers))


def data_folder() -> Path:
    folder = Path(os.environ.get("QUANTKIT_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "weights" / "cifar10-resnet").is_dir():
        pytest.skip("no real weights and images here: set QUANTKIT_DATA")
    return folder


@pytest.mark.slow
def test_resnet20_keeps_its_promise_on_the_command_line(tmp_path: Path) -> None:
    environment = {**os.environ, "QUANTKIT_DATA": str(data_folder()), "OMP_WAIT_POLICY": "PASSIVE"}
    root = Path(__file__).resolve().parent.parent
    command = ["-m", "quantkit", "allocate", "recipes/resnet20.py", "--max-drop", "0.5", "--json", "--run", str(tmp_path / "run")]
    ran = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, check=False)
    result = json.loads(ran.stdout)

    check_shape(result, SHAPES)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert ran.returncode == (0 if result["kept"] else 1), ran.stderr
    assert result["verdict"]["decision"] != "broken" and result["verdict"]["float"] > 75
    assert result["executed"]["as_planned"] and result["simulation"]["layers_exact"] == 1.0
