"""A stored plan's file, written again for each target: the same bytes for its own, NVIDIA's rules for TensorRT."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from networks import NETWORKS, Bench, bench, run
from stepwise import run_stepwise
from test_pipeline import data, hurry
from torch import Tensor, nn
from toys import images, trained

import quantkit
from quantkit.calibration.ranges import choose_grids
from quantkit.cli import main
from quantkit.core.errors import OutputError, SchemeError
from quantkit.core.run_files import PLAN_WEIGHTS, WEIGHTS
from quantkit.core.spec import FLOAT, parse_scheme
from quantkit.core.store import stage_name
from quantkit.export.float_onnx import read_parameters
from quantkit.network.capture import capture
from quantkit.quantization.simulation.program import Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import StoredPlan, export_plan, read_plan, simulate
from quantkit.runtimes.evaluation import open_session
from quantkit.targets import tensorrt
from quantkit.targets.tensorrt import LEAST_CHANNELS
from quantkit.verification.lint import lint_file


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        folder = tmp_path_factory.mktemp("stored") / "run"
        return quantkit.allocate(trained(), data=data(), max_drop=10.0, minimize="bytes", run=folder, certificate=0)


def test_its_own_target_gets_the_same_bytes(result: Result, tmp_path: Path) -> None:
    exported = export_plan(read_plan(result.run), "ort-cpu", tmp_path / "again.onnx")
    assert exported.file.read_bytes() == result.files.onnx.read_bytes() and exported.notes == ()


def test_the_run_directory_may_move(result: Result, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(result.run, moved)
    assert export_plan(read_plan(moved), "ort-cpu", tmp_path / "a.onnx").file.read_bytes() == result.files.onnx.read_bytes()


def test_the_command_says_what_became_of_the_plan(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "trt.onnx"
    command = ["export", str(result.run), "--target", "tensorrt", "--output", str(output)]
    assert main(command) == 2 and not output.exists()
    refused = capsys.readouterr().err
    assert len(refused.splitlines()) == 1 and "stem: " in refused and "fewer than 16 channels" in refused and "--adapt" in refused
    assert main([*command, "--adapt"]) == 0
    assert "became fp16" in capsys.readouterr().out
    assert main([*command, "--adapt", "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] == 0 and any("stem" in note for note in told["notes"]) and told["failures"] == []
    assert told["examined"]["latency"] is None and told["reference_check"]["same_top"] == 1.0
    assert [Path(path).name for path in told["beside"]] == ["trt.onnx.trtexec.sh", "build_and_check.py"]
    assert main(["export", str(tmp_path), "--output", str(output)]) == 2
    assert "no plan" in capsys.readouterr().err


def test_a_stored_plan_runs_in_torch_and_writes_its_file_again(result: Result, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(result.run, moved)
    found = simulate(read_plan(moved), tmp_path / "again.onnx")
    inputs, _ = images(8, seed=3)
    assert (tmp_path / "again.onnx").read_bytes() == result.files.onnx.read_bytes()
    assert found.captured.graph == read_plan(moved).graph
    torch.testing.assert_close(found.captured.module(inputs), trained()(inputs), rtol=1e-5, atol=1e-5)
    (output,) = Simulation(found.captured, found.placement, found.bank).run({"x": inputs})["output"]
    assert torch.equal(output, run(open_session(result.files.onnx, threads=1), {"x": inputs})[0])


@pytest.mark.parametrize("spoil", ["plan.json", "graph.json", "weights", "float", "torn"])
def test_a_run_without_a_whole_plan_is_refused(result: Result, spoil: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(result.run, folder)
    plan = json.loads((folder / "plan.json").read_text())
    kept = [folder / "stages" / f"{stage_name(stage, plan['weights'])}.npz" for stage in (PLAN_WEIGHTS, WEIGHTS)]
    weights = next(path for path in kept if path.exists())
    path = {"weights": weights, "float": folder / plan["float_onnx"], "torn": folder / "plan.json"}.get(spoil, folder / spoil)
    if spoil in ("weights", "torn"):
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.unlink()
    with pytest.raises(OutputError, match="no plan"):
        read_plan(folder)


def test_an_unknown_target_is_refused_and_nothing_is_written(result: Result, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="tensorrt"):
        export_plan(read_plan(result.run), "tensorr", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_found_in_the_float_file_as_the_network_had_them(name: str, tmp_path: Path) -> None:
    work = bench(name, tmp_path)
    state = dict(work.captured.module.named_parameters(remove_duplicate=False))
    found = read_parameters(work.float_file, work.graph)
    assert set(found) == {name for layer in work.graph.layers for name in (layer.weight, layer.bias) if name}
    for parameter, value in found.items():
        assert torch.equal(value, state[parameter].detach())


# TensorRT.


class Wide(nn.Module):
    """A residual network of enough channels, with a shortcut that is a convolution, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.down, self.shortcut = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(16, 32, 1, stride=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.two(self.one(x).relu()) + x).relu()
        x = (self.down(x) + self.shortcut(x)).relu()
        return self.head(x.mean((2, 3)))


def wide(folder: Path) -> Bench:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(8, 3, 12, 12)}
    return Bench(capture(Wide().eval(), inputs), inputs, folder)


def stored(work: Bench, scheme: str = "w8a8") -> StoredPlan:
    schemes = {name: parse_scheme(found) for name, found in work.uniform(scheme).items()}
    wanted = [(layer, schemes[layer.name]) for layer in work.graph.layers if layer.weight]
    bounds = {}
    for name, grid in work.bank.activations.items():
        low = float((grid.spec.code_min - grid.zero_point) * grid.scale)
        bounds[name] = (low, float((grid.spec.code_max - grid.zero_point) * grid.scale))
    return StoredPlan(work.folder, work.graph, "ort-cpu", schemes, bounds, work.bank.rounded(wanted), work.float_file)


def quantized_branches(path: Path) -> list[list[bool]]:
    graph = onnx.load(path).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return [[makers.get(name) == "DequantizeLinear" for name in node.input] for node in graph.node if node.op_type == "Add"]


def test_a_tensorrt_file_keeps_nvidia_s_rules(tmp_path: Path) -> None:
    work = wide(tmp_path)
    exported = export_plan(stored(work), "tensorrt", tmp_path / "trt.onnx", adapt=True)
    onnx.checker.check_model(exported.file, full_check=True)
    assert lint_file(exported.file, "tensorrt").findings == ()
    assert exported.notes == (
        f"stem: w8a8 became fp16, as convolutions of fewer than {LEAST_CHANNELS} channels have no 8-bit kernel",
        "what stays float computes in half: 2 of 9 layers, and all that is no layer",
    )
    assert quantized_branches(exported.file) == [[False, True], [False, True]]  # the identity, and the shortcut of fewer products
    kinds = Counter(node.op_type for node in onnx.load(exported.file).graph.node)
    assert kinds["QuantizeLinear"] == 5  # behind the stem, between one and two, behind the block and the shortcut, in front of the head
    codes = {tensor.data_type for tensor in onnx.load(exported.file).graph.initializer if tensor.name.endswith("zero_point")}
    assert codes == {onnx.TensorProto.INT8}


def test_a_tensorrt_file_computes_what_the_simulation_does(tmp_path: Path) -> None:
    work = wide(tmp_path)
    exported = export_plan(stored(work), "tensorrt", tmp_path / "trt.onnx", adapt=True)
    (ran,) = run(open_session(exported.file, threads=1, literal=True), work.inputs)
    plan = stored(work)
    grids = choose_grids(plan.bounds, plan.graph, tensorrt.ACTIVATIONS)
    parameters = read_parameters(plan.float_file, plan.graph)
    bank = WeightBank(plan.graph, parameters, grids, tensorrt.product_rows, rounded=plan.rounded)
    (simulated,) = Simulation(work.captured, exported.placement, bank).run(work.inputs)["output"]
    floats = work.captured.module(*work.inputs.values())
    # ONNX Runtime leaves out roundings to half between operations, and a code flips now and then.
    assert (ran - simulated).norm() < 0.6 * (ran - floats).norm()
    assert torch.equal(run_stepwise(exported.file, work.inputs)["linear"], simulated)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_becomes_a_file_that_tensorrt_does_not_refuse(name: str, tmp_path: Path) -> None:
    work = bench(name, tmp_path)
    exported = export_plan(stored(work, "w4a8"), "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert lint_file(exported.file, "tensorrt").count("error") == 0
    onnx.checker.check_model(exported.file, full_check=True)
    floats = work.captured.module(*work.inputs.values())
    ran = run(open_session(exported.file, threads=1, literal=True), work.inputs)
    first = floats if isinstance(floats, Tensor) else floats[0]
    assert (ran[0] - first).norm() < 0.5 * first.norm()


def test_narrow_weights_become_8_bits_for_tensorrt(tmp_path: Path) -> None:
    work = wide(tmp_path)
    adapted = tensorrt.adapt(work.graph, stored(work, "w4a8").schemes)
    assert adapted.schemes["one"].name == "w8a8" and adapted.schemes["stem"] == tensorrt.KEPT
    assert [note.split(":")[0] for note in adapted.changes] == [layer.name for layer in work.graph.layers if layer.weight]


def test_an_addition_without_a_quantized_layer_in_front_stays_as_it_is(tmp_path: Path) -> None:
    work = wide(tmp_path)
    plan = stored(work)
    schemes = {**plan.schemes, "two": FLOAT, "down": FLOAT, "shortcut": FLOAT}
    exported = export_plan(replace(plan, schemes=schemes), "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert quantized_branches(exported.file) == [[False, False], [False, False]]
