"""Plans made for other runtimes, end to end: what is told comes from the runtime that the file is for."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from test_pipeline import allocate, hurry, remember

from quantkit.allocation.costs.timing import interleave
from quantkit.cli import tables
from quantkit.core.errors import SchemeError
from quantkit.runs.result import Result
from quantkit.runtimes import RUNTIMES, find_runtime, openvino
from quantkit.runtimes.evaluation import evaluate, open_session
from quantkit.runtimes.nncf_quantizer import quantize_with_nncf
from quantkit.targets import TARGETS
from quantkit.verification.lint import lint_file

with_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="quantkit[openvino] is not installed")
with_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="quantkit[nncf] is not installed")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)


def plan(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "plan.json").read_text()))


def test_every_target_has_a_runtime_and_an_unknown_one_is_refused() -> None:
    assert set(RUNTIMES) == set(TARGETS)
    with pytest.raises(SchemeError, match="did you mean 'openvino'"):
        find_runtime("openvin")


def names(box: toys.Toybox) -> dict[str, list[str]]:
    """What a node may be called, by weighted layer."""
    layers = [layer for layer in box.captured.graph.layers if layer.weight]
    return {layer.name: [f"node_{layer.node}", f"node_{layer.output}", layer.output] for layer in layers}


@with_openvino
def test_a_plan_for_openvino_is_made_and_judged_in_openvino(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", target="openvino", minimize="latency")
    assert result.executed.as_planned and result.executed.int8 + result.executed.float == sum(
        layer.weight is not None for layer in toys.toybox().captured.graph.layers
    )
    assert result.latency is not None and result.simulation.layers_exact is None and result.simulation.agreement > 0.9
    assert plan(tmp_path / "run")["target"] == "openvino"
    assert result.files.session is not None
    session = json.loads(result.files.session.read_text())
    assert session == {"session_options": {"INFERENCE_PRECISION_HINT": "f32"}, "openvino": ">=2024.4"}
    rivals = [row.name for row in result.baselines]
    assert rivals[:2] == ["float", "uniform w8a8"] and ("nncf quantize" in rivals) == (find_spec("nncf") is not None)


@with_openvino
def test_its_verdict_is_that_of_the_file_in_openvino(tmp_path: Path) -> None:
    result = allocate(tmp_path / "run", target="openvino")
    session = openvino.open_file(result.files.onnx, threads=1, options={})
    items = toys.subset(64, seed=4, noise=1.5)
    theirs = evaluate(session, items, 16)[0]
    ours = evaluate(open_session(result.files.onnx, threads=1), items, 16)[0]
    assert (theirs.argmax(1) == ours.argmax(1)).mean() > 0.9 and not np.array_equal(theirs, ours)  # it rounds elsewhere


def test_a_plan_for_tensorrt_has_no_latency_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result: Result = allocate(tmp_path / "run", target="tensorrt")
    told = result.to_json()
    assert result.latency is None and told["latency"] is None
    assert all(row["latency_ratio"] is None for row in told["baselines"])
    assert any("No latency" in note for note in result.notes)
    assert lint_file(result.files.onnx, "tensorrt").count("error") == 0
    tables.show_result(told, result.notes)
    shown = capsys.readouterr().out
    assert "vs float" in shown and " ms" not in shown


def test_a_result_without_latency_is_read_back_as_it_was(tmp_path: Path) -> None:
    first = allocate(tmp_path / "run", target="tensorrt")
    again = allocate(tmp_path / "run", target="tensorrt")
    assert again.latency is None and again.to_json() == first.to_json()


@with_openvino
def test_bfloat16_is_a_rival_only_where_the_processor_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = toys.toybox()
    path = toys.candidates(box, tmp_path).float_file
    monkeypatch.setattr(openvino, "find_spec", lambda _: None)

    class Core:
        def __init__(self, *capable: str) -> None:
            self.capable = capable

        def get_property(self, device: str, name: str) -> tuple[str, ...]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return self.capable

    for capable, names in {("FP32", "BF16"): ["float in bf16"], ("FP32", "INT8"): []}.items():
        monkeypatch.setattr(openvino, "_core", lambda capable=capable: Core(*capable))
        rivals = openvino.write_rivals(path, iter(()), tmp_path)
        assert [rival.name for rival in rivals] == names
        assert all(rival.options == {"INFERENCE_PRECISION_HINT": "bf16"} and rival.path == path for rival in rivals)


@with_openvino
@with_nncf
def test_nncf_s_file_is_int8_and_runs_beside_ours(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates = toys.candidates(box, tmp_path)
    feeds = [{"x": batch.inputs["x"].numpy()} for batch in toys.subset(24, seed=2).batches(1)]
    level = logging.getLogger().level
    quantize_with_nncf(candidates.float_file, iter(feeds), tmp_path / "nncf.xml")
    kernels = openvino.kernels(tmp_path / "nncf.xml", {}, tmp_path)
    sessions = [openvino.open_file(path, threads=1, options={}) for path in (candidates.float_file, tmp_path / "nncf.xml")]
    assert any(kernel.integer for kernel in kernels.values())
    assert interleave(sessions, feeds[0], rounds=2).shape == (2, 2)
    assert logging.getLogger().level == level


def test_onnx_runtime_s_kernels_are_told_by_the_names_of_the_nodes(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates = toys.candidates(box, tmp_path)
    path = toys.written(candidates, toys.everything(box.groups, "w8a8", down="fp32"))
    kernels = find_runtime("ort-cpu").kernels(path, {}, tmp_path)
    found = {name: next(kernels[key] for key in keys if key in kernels) for name, keys in names(box).items()}
    assert {name for name, kernel in found.items() if not kernel.integer} == {"down"}
