"""Files examined: what runs for each weighted node, what is lost, what was asked for and is not so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import toys
from micro import CHANNELS, U8, Micro
from networks import bench
from onnx import numpy_helper
from test_pipeline import data, hurry
from test_stored import stored, wide

import quantkit
from quantkit.cli import main
from quantkit.errors import DataError, ModelError, OutputError
from quantkit.evaluation import open_session
from quantkit.examination import Examined, examine, weighted_nodes
from quantkit.options import Arguments
from quantkit.request import Check, resolve_check
from quantkit.result import Result
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.static_quantizer import quantize_with_onnxruntime
from quantkit.spec import FLOAT
from quantkit.stored import export_plan


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.verify.LATENCY_SECONDS", 0.1)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        folder = tmp_path_factory.mktemp("examined") / "run"
        return quantkit.allocate(toys.trained(), data=data(), max_drop=10.0, run=folder, fix={"down": "fp32"}, minimize="bytes")


def look(path: Path, float_file: Path | None = None, check: Check | None = None) -> Examined:
    return examine(path, float_file=float_file, check=check, threads=1, batch_size=32, seed=0)


def shard(folder: Path) -> Path:
    inputs, labels = toys.images(200, seed=9, noise=1.5)
    np.savez(folder / "val.npz", x=inputs.numpy(), labels=labels.numpy())
    return folder / "val.npz"


def test_a_run_is_held_against_its_plan(result: Result) -> None:
    found = look(result.run)
    assert found.mismatches == () and found.file == result.files.onnx and found.float_file == result.files.float_onnx
    assert found.int8_macs == pytest.approx(result.executed.int8_macs, abs=1e-9) and 0.3 < found.int8_macs < 1
    assert {node.name: node.in_int8 for node in found.nodes}["node_conv2d_3"] is False
    assert found.latency is not None and found.verdict is None


def test_a_file_that_is_not_what_was_planned_is_named(result: Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(result.run, folder)
    plan = json.loads((folder / "plan.json").read_text())
    plan["layers"]["down"] = "w8a8"
    (folder / "plan.json").write_text(json.dumps(plan))
    found = look(folder)
    assert found.mismatches == ("down: planned int8, ran float (FusedConv)",) or "down: planned int8" in str(found.mismatches)
    assert "do not run as planned" in found.failures(as_planned=True, int8_share=None)[0]
    assert found.failures(as_planned=False, int8_share=None) == []


def test_the_verdict_is_the_run_s_own_on_the_same_items(result: Result, tmp_path: Path) -> None:
    check = resolve_check(Arguments(data=str(shard(tmp_path)), max_drop="5"))
    found = look(result.files.onnx, result.files.float_onnx, check)
    assert found.verdict is not None and found.verdict.n == 200 and found.budget == 5.0
    with np.load(tmp_path / "val.npz") as arrays:
        inputs, labels = arrays["x"], arrays["labels"]
    right = [
        float((open_session(path, threads=1).run({"x": inputs})[0].argmax(1) == labels).mean())
        for path in (result.files.float_onnx, result.files.onnx)
    ]
    assert found.verdict.drop == pytest.approx(100 * (right[0] - right[1]))


def test_what_was_asked_for_and_is_not_so(result: Result, tmp_path: Path) -> None:
    wrecked = tmp_path / "wrecked.onnx"
    model = onnx.load(result.files.onnx)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("stem.weight") and tensor.name.endswith("codes"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, wrecked)
    found = look(wrecked, result.files.float_onnx, resolve_check(Arguments(data=str(shard(tmp_path)), max_drop="0.5")))
    failures = found.failures(as_planned=False, int8_share=0.99)
    assert len(failures) == 2 and "99.0 % were asked for" in failures[0] and "at most 0.50 allowed (broken)" in failures[1]


def test_every_weighted_node_of_the_runtime_s_own_file_is_found(tmp_path: Path) -> None:
    work = bench("residual", tmp_path)
    static = tmp_path / "static.onnx"
    quantize_with_onnxruntime(work.float_file, iter([{"x": work.inputs["x"].numpy()}]), static, reduce_range=True)
    found = look(static, work.float_file)
    assert len(found.nodes) == sum(layer.weight is not None for layer in work.graph.layers)
    assert found.int8_macs == 1.0 and found.mismatches is None
    assert sum(node.macs for node in found.nodes) == sum(layer.macs for layer in work.graph.layers)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w5a8", "w3a8"])
def test_narrow_codes_count_as_weights(scheme: str, tmp_path: Path) -> None:
    for name in ("inception", "tokens", "mlp"):
        (tmp_path / name).mkdir()
        work = bench(name, tmp_path / name)
        path, _ = work.emit(work.place(work.uniform(scheme)))
        found = look(path)
        assert len(found.nodes) == sum(layer.weight is not None for layer in work.graph.layers), name
        assert found.int8_macs == 1.0, name


def test_a_float_layer_is_no_int8_layer(tmp_path: Path) -> None:
    work = wide(tmp_path)
    plan = stored(work)
    schemes = {**plan.schemes, "one": FLOAT}
    file = export_plan(replace(plan, schemes=schemes), "ort-cpu", tmp_path / "a.onnx").file
    found = look(file)
    total = sum(layer.macs for layer in work.graph.layers)
    assert found.int8_macs == pytest.approx(1 - work.graph.layer("one").macs / total)


def test_a_convolution_whose_output_is_not_quantized_counts_as_float(tmp_path: Path) -> None:
    micro = Micro(U8)
    onnx.save(micro.model(micro.conv(micro.qdq("x"))), tmp_path / "m.onnx")
    (node,) = look(tmp_path / "m.onnx").nodes
    assert not node.in_int8 and node.macs == 8 * 8 * CHANNELS * CHANNELS * 9


def test_bad_requests_are_one_line(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no plan"):
        look(tmp_path)
    with pytest.raises(ModelError, match="--float"):
        look(result.files.onnx, None, resolve_check(Arguments(data=str(shard(tmp_path)))))
    with pytest.raises(DataError, match="--data"):
        resolve_check(Arguments(max_drop="0.5"))
    (tmp_path / "bad.onnx").write_bytes(result.files.onnx.read_bytes()[:-200])
    with pytest.raises(ModelError, match="no ONNX file"):
        look(tmp_path / "bad.onnx")
    model = onnx.load(result.files.onnx)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, tmp_path / "nonsense.onnx")
    with pytest.raises(ModelError, match="does not load"):
        look(tmp_path / "nonsense.onnx")


def test_the_command(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(result.run), "--require-as-planned"]) == 0
    assert "every layer runs as planned" in capsys.readouterr().out
    assert main(["verify", str(result.run), "--require-int8", "100%", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["executed"]["as_planned"] is True and "asked for" in told["failures"][0]
    arguments = ["--float", str(result.files.float_onnx), "--data", str(shard(tmp_path)), "--max-drop", "20"]
    assert main(["verify", str(result.files.onnx), *arguments]) == 0
    assert "lost" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "absent.onnx")]) == 2
    assert main(["verify", str(result.run), "--threads", "-1"]) == 2
    assert "--threads -1" in capsys.readouterr().err


def test_weights_are_told_from_activations(tmp_path: Path) -> None:
    micro = Micro(U8, (4, 32))
    product = micro.op("MatMul", micro.qdq("x"), micro.op("Transpose", micro.qdq("x"), perm=[1, 0]))
    model = micro.model(micro.qdq(product))
    onnx.save(model, tmp_path / "m.onnx")
    open_session(tmp_path / "m.onnx", threads=1, optimized=tmp_path / "o.onnx")
    assert weighted_nodes(model, ort_cpu.kernels(tmp_path / "m.onnx", {}, tmp_path)) == ()
