"""Files examined: what runs for each weighted node, what is lost, what was asked for and is not so."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import toys
from micro import CHANNELS, S8, U8, Micro
from networks import bench, captured
from onnx import numpy_helper
from test_loading_archive import members, poison_sample_inputs, write_archive
from test_parity import alter
from test_pipeline import data, hurry
from test_stored_plan import stored, wide

import quantkit
from quantkit import targets
from quantkit.cli import main
from quantkit.core.errors import ConfigError, DataError, ModelError, OutputError, RequestError
from quantkit.core.spec import FLOAT
from quantkit.export.session_file import read_session, write_session
from quantkit.gating.examine import Examined, examine, weighted_nodes
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import export_plan
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.evaluation import open_session
from quantkit.runtimes.static_quantizer import quantize_with_onnxruntime
from quantkit.settings.arguments import Arguments
from quantkit.settings.request import Check, resolve_check
from quantkit.verification import probe
from quantkit.verification.parity import RANDOM_ITEMS


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.verification.verify.LATENCY_SECONDS", 0.1)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        folder = tmp_path_factory.mktemp("examined") / "run"
        schemes = ("fp32", "w8a8", "w6a8", "w4a8")
        pinned = {"down": "fp32"}
        options = {"max_drop": 10.0, "minimize": "bytes", "certificate": 0}
        return quantkit.allocate(toys.trained(), data=data(), run=folder, fix=pinned, schemes=schemes, **options)


def look(path: Path, float_file: Path | None = None, check: Check | None = None, parity: bool = False) -> Examined:
    return examine(path, float_file=float_file, check=check, threads=1, batch_size=32, seed=0, parity=parity)


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
    assert found.verdict.counted_drop == pytest.approx(100 * (right[0] - right[1]))


def test_what_was_asked_for_and_is_not_so(result: Result, tmp_path: Path) -> None:
    wrecked = tmp_path / "wrecked.onnx"
    model = onnx.load(result.files.onnx)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("stem.weight") and tensor.name.endswith("codes"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, wrecked)
    found = look(wrecked, result.files.float_onnx, resolve_check(Arguments(data=str(shard(tmp_path)), max_drop="0.5")))
    failures = found.failures(as_planned=False, int8_share=0.99)
    assert len(failures) == 2 and "99.0 % are required" in failures[0] and "at most 0.50 allowed (broken)" in failures[1]


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


def broken(result: Result, folder: Path) -> Path:
    """A copy of the run whose file has the weight codes of `point` in another order."""
    shutil.copytree(result.run, folder)
    names = [tensor.name for tensor in onnx.load(folder / "model.onnx").graph.initializer]
    alter(folder / "model.onnx", next(name for name in names if re.match(r"point\.weight_w\d_codes", name)), backwards)
    return folder


def backwards(array: Any) -> None:
    """The codes in another order, whatever their width."""
    array.reshape(-1)[:] = array.reshape(-1)[::-1].copy()


def test_the_simulation_of_a_run_needs_neither_model_nor_data(result: Result) -> None:
    found = look(result.run, parity=True)
    assert found.compared is not None and (found.compared.parity.items, found.compared.random) == (RANDOM_ITEMS, True)
    assert found.compared.parity.layers_exact == 1.0 and found.compared.parity.parted == ()
    assert found.failures(as_planned=False, int8_share=None) == []
    assert look(result.run).compared is None


def test_the_simulation_is_compared_on_the_data_where_there_is_any(result: Result, tmp_path: Path) -> None:
    found = look(result.run, check=resolve_check(Arguments(data=str(shard(tmp_path)))), parity=True)
    assert found.compared is not None and (found.compared.parity.items, found.compared.random) == (200, False)
    assert found.compared.parity.layers_exact == 1.0
    with np.load(shard(tmp_path)) as arrays:
        np.savez(tmp_path / "small.npz", x=arrays["x"][:, :, :4], labels=arrays["labels"])
    with pytest.raises(DataError, match="shape"):
        look(result.run, check=resolve_check(Arguments(data=str(tmp_path / "small.npz"))), parity=True)


def test_a_broken_file_parts_from_the_simulation_in_that_very_layer(result: Result, tmp_path: Path) -> None:
    found = look(broken(result, tmp_path / "run"), parity=True)
    assert found.compared is not None
    (parting,) = found.compared.parity.parted
    assert parting.layer == "point" and parting.difference > 0 and "not the plan's" in parting.cause
    (failure,) = found.failures(as_planned=True, int8_share=None)
    assert failure.startswith("1 layers do not compute what the simulation does, first point (")


@pytest.mark.parametrize("spoil", ["absent", "unnamed", "garbage", "code", "another network", "another target"])
def test_a_run_that_cannot_be_simulated_is_refused_in_one_line(result: Result, spoil: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(result.run, folder)
    plan = json.loads((folder / "plan.json").read_text())
    program = folder / plan["program"]
    if spoil == "absent":
        program.unlink()
    elif spoil == "garbage":
        program.write_bytes(program.read_bytes()[:3000])
    elif spoil == "code":
        content = members(program)
        poison_sample_inputs(content, tmp_path / "ran")
        write_archive(program, content)
    elif spoil == "another network":
        torch.export.save(captured("chain").program, program)
    else:
        changed = {"target": "openvino"} if spoil == "another target" else {}
        kept = {name: value for name, value in plan.items() if name != "program" or spoil != "unnamed"}
        (folder / "plan.json").write_text(json.dumps({**kept, **changed}))
    words = {"garbage": "cannot be read", "code": "could run code", "another network": "another network", "another target": "openvino"}
    with pytest.raises(RequestError, match=words.get(spoil, "keeps no captured program")) as told:
        look(folder, parity=True)
    assert "\n" not in str(told.value) and not (tmp_path / "ran").exists()


# Session options.


def test_every_session_is_opened_with_the_options_beside_the_file(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(result.run, folder)
    options = {"session.disable_quant_qdq": "1"}
    (folder / "session.json").write_text(json.dumps({"session_options": options, "onnxruntime": ">=1.22"}))
    asked: list[Any] = []
    for room in ("runtimes.ort_cpu", "verification.parity"):
        monkeypatch.setattr(f"quantkit.{room}.open_session", partial(spied, asked))
    found = look(folder, check=resolve_check(Arguments(data=str(shard(tmp_path)))), parity=True)
    assert len(asked) >= 7 and all(given == options for given in asked)
    assert found.int8_macs == 0.0 and found.mismatches and found.session_options == options
    assert look(result.run).session_options == {} and look(result.run).int8_macs > 0.3
    assert look(folder / "model.onnx").int8_macs == 0.0


def spied(asked: list[Any], path: Path, *, options: Any = None, **others: Any) -> Any:
    asked.append(options)
    return open_session(path, options=options, **others)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        ('{"session_options": {"session.x": 1}}', "session.x"),
        ('{"session_options": {"session.optimized_model_external_initializers_file_name": "/tmp/x"}}', "names files"),
        ('{"session_options": {}, "onnxruntime": ">=99.0"}', "99.0"),
        ('{"session_options": {}, "onnxruntime": "new"}', "cannot be read"),
    ],
)
def test_a_session_file_that_cannot_be_followed_is_refused(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_session(tmp_path, targets.ort_cpu)


def test_what_allocate_writes_is_what_verify_reads(tmp_path: Path) -> None:
    wants: Any = SimpleNamespace(SESSION_OPTIONS={"session.x": "0"}, PACKAGE="onnxruntime", MINIMUM_RUNTIME="1.22")
    assert write_session(targets.ort_cpu, tmp_path) is None and read_session(tmp_path, targets.ort_cpu) == {}
    assert write_session(wants, tmp_path) == tmp_path / "session.json"
    assert read_session(tmp_path, targets.ort_cpu) == {"session.x": "0"}
    assert read_session(tmp_path, targets.openvino) == targets.openvino.SESSION_OPTIONS  # the file is for another runtime


# Saturation.


def neighbours(path: Path) -> set[str]:
    """The layers of `quantize_static`'s file with two neighbouring codes whose sum passes 128, read from the file itself, code by code."""
    model, found = onnx.load(path), set()
    codes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    dequantizers = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in codes]
    weights = {node.output[0]: codes[node.input[0]] for node in dequantizers}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in weights:
            weight = weights[node.input[1]]
            group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            for row in weight if group < len(weight) or node.op_type == "Gemm" else []:
                line = [int(row[(slice(None), *tap)][channel]) for tap in np.ndindex(*row.shape[1:]) for channel in range(len(row))]
                if any(abs(one + other) > 128 for one, other in zip(line[::2], line[1::2], strict=False)):
                    found.add(node.name)
    return found


@pytest.mark.parametrize("name", ["residual", "inception", "mlp", "chain"])
def test_codes_of_others_may_saturate_and_ours_cannot(name: str, tmp_path: Path) -> None:
    work = bench(name, tmp_path)
    ours, _ = work.emit(work.place(work.uniform("w8a8")))
    static, careful = tmp_path / "static.onnx", tmp_path / "careful.onnx"
    for path, reduce_range in ((static, False), (careful, True)):
        feeds = {key: value.numpy() for key, value in work.inputs.items()}
        quantize_with_onnxruntime(work.float_file, iter([feeds]), path, reduce_range=reduce_range)
    found = {path: look(path).saturation for path in (ours, static, careful)}
    assert set(found[static].layers_at_risk) == neighbours(static) and neighbours(static)
    assert found[ours].layers_at_risk == found[careful].layers_at_risk == ()
    assert {saturation.here for saturation in found.values()} == {probe.saturates()}


@pytest.mark.parametrize(("codes", "at_risk"), [([[100, -100], [100, -100]], True), ([[100, 100], [-100, -100]], False)])
@pytest.mark.parametrize("zero", [U8, S8])
def test_neighbours_are_those_of_the_sum(codes: list[list[int]], at_risk: bool, zero: Any, tmp_path: Path) -> None:
    """A product adds down the columns of its weight; one of signed activations adds in no pairs, and the runtime makes those unsigned."""
    micro = Micro(zero, (4, 2))
    weight = micro.dq(micro.const(np.array(codes, np.int8)), S8, 0.01)
    onnx.save(micro.model(micro.qdq(micro.op("MatMul", micro.qdq("x"), weight)), opset=20), tmp_path / "m.onnx")
    found = look(tmp_path / "m.onnx")
    assert found.int8_macs == 1.0 and bool(found.saturation.layers_at_risk) is at_risk


def test_bad_requests_are_one_line(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no plan"):
        look(tmp_path)
    with pytest.raises(ModelError, match="--float"):
        look(result.files.onnx, None, resolve_check(Arguments(data=str(shard(tmp_path)))))
    with pytest.raises(DataError, match="--data"):
        resolve_check(Arguments(max_drop="0.5"))
    (tmp_path / "bad.onnx").write_bytes(result.files.onnx.read_bytes()[:-200])
    with pytest.raises(ModelError, match="not a complete ONNX file"):
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
    assert told["executed"]["as_planned"] is True and "are required" in told["failures"][0]
    arguments = ["--float", str(result.files.float_onnx), "--data", str(shard(tmp_path)), "--max-drop", "20"]
    assert main(["verify", str(result.files.onnx), *arguments]) == 0
    assert "lost" in capsys.readouterr().out
    assert main(["verify", str(result.run), "--parity"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "100.0 % of the quantized layers compute the simulation's codes on 16 random items (no --data was given)" in told
    assert "Its int8 sums give the same bits on every x86-64 CPU." in told
    assert main(["verify", str(result.run), "--parity", "--data", str(shard(tmp_path)), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parity"]["layers_exact"], told["parity"]["items"], told["parity"]["random_items"]) == (1.0, 200, False)
    assert told["saturation"] == {"here": probe.saturates(), "layers_at_risk": []}
    assert main(["verify", str(broken(result, tmp_path / "broken")), "--parity"]) == 1
    assert "the simulation differs from the file in point (" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(result.files.onnx), "--parity"]) == 2
    assert "a run directory" in capsys.readouterr().err
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
