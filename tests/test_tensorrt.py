"""The target `tensorrt`: what computes in half, in E4M3 and with 4-bit weights, in the file and in the simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import fuzz
import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from networks import NETWORKS, Bench, run
from onnx import TensorProto, numpy_helper
from stepwise import constants, run_stepwise, types
from test_stored_plan import stored, wide
from torch import Tensor, nn

from quantkit.calibration.ranges import choose_grids
from quantkit.core.spec import FLOAT, HALF, parse_scheme
from quantkit.export.float_onnx import read_parameters
from quantkit.network.capture import capture
from quantkit.quantization.simulation.program import Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.runs.stored_plan import Exported, StoredPlan, export_plan
from quantkit.runtimes.evaluation import open_session
from quantkit.runtimes.openvino import read_executed
from quantkit.sensitivity.passes.perturbed import FLOAT_PLACEMENT
from quantkit.settings.options import SCHEMES
from quantkit.targets import tensorrt
from quantkit.verification.lint import lint_file

FP16, W8A8, FP8, W4A16 = (parse_scheme(name) for name in ("fp16", "w8a8", "fp8", "w4a16"))


class Renamed(nn.Module):
    """A layer whose input is `x`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The residual network of channels enough, exported once."""
    return wide(tmp_path_factory.mktemp("wide"))


def planned(work: Bench, schemes: Mapping[str, str] | str) -> StoredPlan:
    """A plan made for this target: one scheme for all layers, or one for each."""
    given = dict.fromkeys([layer.name for layer in work.graph.layers], schemes) if isinstance(schemes, str) else schemes
    return replace(stored(work), target="tensorrt", schemes={name: parse_scheme(scheme) for name, scheme in given.items()})


def bank_of(plan: StoredPlan) -> WeightBank:
    grids = choose_grids(plan.bounds, plan.graph, tensorrt.ACTIVATIONS)
    return WeightBank(plan.graph, read_parameters(plan.float_file, plan.graph), grids, tensorrt.product_rows, rounded=plan.rounded)


def simulate(work: Bench, plan: StoredPlan, exported: Exported) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = Simulation(work.captured, exported.placement, bank_of(plan)).run(work.inputs)["output"]
    return found


def assert_well_typed(work: Bench, exported: Exported, plan: StoredPlan) -> None:
    """Every layer's result has the type that was planned, and no Cast stands behind a DequantizeLinear or between equal types."""
    onnx.checker.check_model(exported.file, full_check=True)
    assert lint_file(exported.file, "tensorrt").count("error") == 0
    known, nodes = types(exported.file), onnx.load(exported.file).graph.node
    makers = {name: node for node in nodes for name in node.output}
    for layer in work.graph.layers:
        name = layer.node if f"{layer.node}_half" not in known else f"{layer.node}_half"  # an output of the network goes out in float32
        wanted = TensorProto.FLOAT if plan.schemes[layer.name] == FLOAT else TensorProto.FLOAT16
        assert known[name] == wanted, layer.name
    for node in nodes:
        if node.op_type == "Cast":
            assert makers[node.input[0]].op_type != "DequantizeLinear" if node.input[0] in makers else True
            assert known[node.input[0]] != known[node.output[0]]
    assert {known[name] for name in (*work.graph.inputs, *work.graph.outputs)} == {TensorProto.FLOAT}


@pytest.mark.parametrize("scheme", SCHEMES["tensorrt"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_simulation_is_the_file_node_by_node(benches: Callable[[str], Bench], name: str, scheme: str, tmp_path: Path) -> None:
    work = benches(name)
    plan = planned(work, scheme)
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert_well_typed(work, exported, plan)
    outputs = run_stepwise(exported.file, work.inputs)
    for ours, output in zip(simulate(work, plan, exported), work.graph.outputs, strict=True):
        if name in ("tokens", "chain") or scheme == "fp32":  # a product and its bias are rounded apart there; sums in another order
            assert (ours - outputs[output]).norm() < 4e-3 * ours.norm()
        else:
            assert torch.equal(ours, outputs[output])


def test_every_scheme_moves_the_outputs_and_the_narrower_ones_more(work: Bench, tmp_path: Path) -> None:
    floats = work.captured.module(*work.inputs.values())
    moved = {}
    for scheme in SCHEMES["tensorrt"]:
        plan = planned(work, scheme)
        (output,) = simulate(work, plan, export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True))
        moved[scheme] = float((output - floats).norm() / floats.norm())
    assert moved["fp32"] < 1e-6 < moved["fp16"] < 2e-3 < moved["w8a8"] < moved["fp8"] < 0.1
    assert moved["fp16"] < moved["w4a16"] < 0.1


@pytest.mark.parametrize("mix", list(product(["fp32", "fp16", "w8a8", "fp8"], repeat=2)), ids="-".join)
def test_precision_changes_where_the_plan_changes_it(mix: tuple[str, str], work: Bench, tmp_path: Path) -> None:
    """Casts: where the network begins and ends and where float32 meets half, none where a quantizer lies between."""
    schemes = dict.fromkeys((layer.name for layer in work.graph.layers), "fp16") | {"one": mix[0], "two": mix[1]}
    plan = planned(work, schemes)
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert_well_typed(work, exported, plan)
    one, two = mix
    changes = [
        one == "fp32",  # the stem's half is read in float32
        one == "fp32" and two == "fp16",
        two == "fp32" and one != "fp32",
        two == "fp32",  # the addition behind it is in half
    ]
    casts = [node for node in onnx.load(exported.file).graph.node if node.op_type == "Cast"]
    assert len(casts) == 2 + sum(changes)
    assert set(exported.placement.schemes) == {name for name, scheme in zip(("one", "two"), mix, strict=True) if scheme in ("w8a8", "fp8")}


def test_what_only_float32_feeds_stays_float32(tmp_path: Path) -> None:
    """A pooling or a view behind a float32 layer carries float32, and the Cast stands behind it; a layer decides for itself."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(torch.max_pool2d(self.a(x), 2))
            return torch.softmax(self.head(self.b(x).amax((2, 3))), 1)

    inputs = {"x": torch.randn(8, 3, 12, 12)}
    work = Bench(capture(Net().eval(), inputs), inputs, tmp_path)
    plan = planned(work, {"a": "fp32", "b": "fp16", "head": "fp32"})
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert_well_typed(work, exported, plan)
    casts = [node.input[0] for node in onnx.load(exported.file).graph.node if node.op_type == "Cast"]
    assert casts == ["tanh", "amax"]
    (ours,) = simulate(work, plan, exported)
    torch.testing.assert_close(ours, run_stepwise(exported.file, work.inputs)["softmax"], rtol=2e-3, atol=1e-4)


def test_scales_weights_and_biases_are_halves_and_exact(work: Bench, tmp_path: Path) -> None:
    """The simulation's scales are those of the file: representable in half, rounded up."""
    for scheme, kind in (("w8a8", np.int8), ("fp8", ml_dtypes.float8_e4m3fn)):
        plan = planned(work, scheme)
        exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
        held, bank = constants(exported.file), bank_of(plan)
        label = {"w8a8": "w8", "fp8": "e4m3"}[scheme]
        weights = exported.placement.schemes["one"].weights
        assert weights is not None
        found = bank.weight(work.graph.layer("one"), weights)
        codes, scales = held[f"one.weight_{label}_codes"], held[f"one.weight_{label}_scale_half"]
        assert codes.dtype == kind and np.array_equal(codes.astype(np.float32), found.codes.numpy())  # type: ignore[attr-defined]
        assert scales.dtype == np.float16 and np.array_equal(scales.astype(np.float32), found.qparams.scale.numpy())  # type: ignore[attr-defined]
        assert held["one.bias_half"].dtype == np.float16  # type: ignore[attr-defined]
        assert not any(array.dtype == np.float32 for name, array in held.items() if "scale" not in name)  # type: ignore[attr-defined]
        grids = [bank.input_qparams(layer, 0, plan.schemes[layer.name].activations) for layer in work.graph.layers if layer.weight]
        assert all(torch.equal(grid.scale, grid.scale.half().float()) and grid.zero_point == 0 for grid in grids)


def test_fp8_is_e4m3_of_half_operands(tmp_path: Path) -> None:
    """One layer by hand: numpy's E4M3 around a product in float64."""
    layer = nn.Linear(32, 16)
    inputs = {"x": torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * 3}
    work = Bench(capture(Renamed(layer), inputs), inputs, tmp_path)
    plan = planned(work, "fp8")
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    (ours,) = simulate(work, plan, exported)
    largest = max(abs(bound) for bound in plan.bounds["x"])
    scale = np.float32(bank_of(plan).input_qparams(work.graph.layers[0], 0, FP8.activations).scale)
    assert largest / 448 <= scale <= 1.003 * largest / 448  # rounded up to half, twice: from the range to int8's, and to this one's
    codes = np.clip(inputs["x"].numpy() / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    real = (codes * scale).astype(np.float16).astype(np.float64)
    held = constants(exported.file)
    weight = next(array for name, array in held.items() if name.endswith("e4m3_codes")).astype(np.float32)  # type: ignore[attr-defined]
    scales = next(array for name, array in held.items() if name.endswith("weight_e4m3_scale_half")).astype(np.float32)  # type: ignore[attr-defined]
    weight = (weight * scales[:, None]).astype(np.float16).astype(np.float64)
    assert np.abs(weight - layer.weight.detach().numpy()).max() <= np.abs(layer.weight.detach().numpy()).max() / 16
    wanted = real @ weight.T + layer.bias.detach().half().double().numpy()
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("features", "block"), [(256, 128), (192, 64), (96, 32), (48, 16)])
@pytest.mark.parametrize("tokens", [False, True])
def test_4_bit_weights_lie_in_the_largest_blocks_that_divide(features: int, block: int, tokens: bool, tmp_path: Path) -> None:
    layer = nn.Linear(features, 16)
    inputs = {"x": torch.randn(4, *([3] if tokens else []), features, generator=torch.Generator().manual_seed(0))}
    work = Bench(capture(Renamed(layer), inputs), inputs, tmp_path)
    plan = planned(work, "w4a16")
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert_well_typed(work, exported, plan)
    file = onnx.load(exported.file)
    (node,) = (node for node in file.graph.node if node.op_type == "DequantizeLinear")  # no quantizer on the activations
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes == {"axis": 0 if tokens else 1, "block_size": block}
    tensors = {tensor.name: tensor for tensor in file.graph.initializer}
    codes, scales = (numpy_helper.to_array(tensors[name]) for name in node.input)
    assert tensors[node.input[0]].data_type == TensorProto.INT4 and np.abs(codes.astype(int)).max() == 7
    weight, steps = layer.weight.detach().numpy(), np.repeat(scales.astype(np.float32), block, axis=0 if tokens else 1)
    wanted = np.clip(np.rint((weight.T if tokens else weight) / steps), -7, 7)
    assert np.array_equal(codes.astype(np.float32), wanted) and float(np.linalg.norm(wanted * steps)) > 0.9 * float(np.linalg.norm(weight))
    stored_bytes = sum(len(tensors[name].raw_data) for name in node.input) + 2 * 16
    assert tensorrt.weight_bytes(work.graph.layers[0], W4A16) == stored_bytes


def test_what_no_block_divides_has_no_4_bit_weights(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(4, 20)}
    work = Bench(capture(Renamed(nn.Linear(20, 16)), inputs), inputs, tmp_path)
    (group,) = tensorrt.groups(work.graph, tensorrt.check_schemes(["w4a16", "w8a8"]))
    assert group.schemes == ("w8a8", "fp16")
    assert tensorrt.place(work.graph, {group.name: W4A16}).floating == {}


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "fp8", "w4a16"])
def test_bytes_are_those_of_the_file(scheme: str, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 1), nn.Linear(64, 128)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x)).mean((2, 3)))

    inputs = {"x": torch.randn(8, 16, 6, 6)}
    work = Bench(capture(Net().eval(), inputs), inputs, tmp_path)
    plan = planned(work, scheme)
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    marks = ("a.", "b.", "head.")
    held = sum(len(t.raw_data) for t in onnx.load(exported.file).graph.initializer if t.name.startswith(marks))
    runs = {**dict.fromkeys(exported.placement.schemes, scheme), **dict.fromkeys(exported.placement.floating, "w4a16")}
    counted = sum(tensorrt.weight_bytes(layer, parse_scheme(runs.get(layer.name, "fp16"))) for layer in work.graph.layers)
    assert counted == held


# The rules.


def test_menus_hold_what_can_run(work: Bench) -> None:
    menus = {group.name: group.schemes for group in tensorrt.groups(work.graph, tensorrt.check_schemes(SCHEMES["tensorrt"]))}
    assert menus["stem"] == ("fp16", "fp32")  # three channels
    assert menus["one"] == ("fp16", "w8a8", "fp8", "fp32")
    assert menus["head"] == ("fp16", "w8a8", "fp8", "w4a16", "fp32")
    assert menus["add"] == ("fp16", "w8a8", "fp32")
    assert all(group.schemes[-1] == "fp16" for group in tensorrt.groups(work.graph, tensorrt.check_schemes(["w8a8"])))


def test_fp8_convolutions_want_small_filters_and_no_narrow_groups(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.deep = nn.Conv2d(16, 16, 7, padding=3), nn.Conv2d(16, 16, 3, groups=16)

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(self.large(x))

    inputs = {"x": torch.randn(2, 16, 12, 12)}
    graph = capture(Net().eval(), inputs).graph
    menus = {group.name: group.schemes for group in tensorrt.groups(graph, tensorrt.check_schemes(SCHEMES["tensorrt"]))}
    assert menus == {"large": ("fp16", "w8a8", "fp32"), "deep": ("fp16", "w8a8", "fp32")}
    assert tensorrt.place(graph, {"large": FP8, "deep": FP8}).schemes == {}
    adapted = tensorrt.adapt(graph, {"large": FP8, "deep": W8A8})
    assert adapted.schemes["large"] == FP16 and "filter" in adapted.changes[0]


def test_what_another_target_keeps_float_computes_in_half_and_our_own_float32_stays(work: Bench, tmp_path: Path) -> None:
    plan = replace(stored(work), schemes=dict.fromkeys(stored(work).schemes, FLOAT))
    foreign = export_plan(plan, "tensorrt", tmp_path / "foreign.onnx", adapt=True)
    assert foreign.placement.float32 == frozenset() and "computes in half" in foreign.notes[0]
    own = export_plan(replace(plan, target="tensorrt"), "tensorrt", tmp_path / "own.onnx", adapt=True)
    assert own.placement.float32 == set(plan.schemes) and own.notes == ()
    assert not [node for node in onnx.load(own.file).graph.node if node.op_type == "Cast"]


def test_an_addition_is_fused_into_int8_layers_only(work: Bench) -> None:
    additions = {layer.name for layer in work.graph.layers if layer.kind == "add"}
    for scheme, fused in (("fp8", set()), ("w8a8", additions)):
        plan = planned(work, {layer.name: "w8a8" if layer.kind == "add" else scheme for layer in work.graph.layers})
        assert tensorrt.place(work.graph, plan.schemes).schemes.keys() & additions == fused


def test_a_tensor_read_in_int8_and_in_fp8_has_a_quantizer_for_each(work: Bench, tmp_path: Path) -> None:
    plan = planned(work, {layer.name: {"down": "w8a8", "shortcut": "fp8"}.get(layer.name, "fp16") for layer in work.graph.layers})
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    assert_well_typed(work, exported, plan)
    quantizers = [node.input[0] for node in onnx.load(exported.file).graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 2 and len(set(quantizers)) == 1
    assert exported.placement.int8 == {"down"}
    (ours,) = simulate(work, plan, exported)
    assert torch.equal(ours, run_stepwise(exported.file, work.inputs)[work.graph.outputs[0]])


@pytest.mark.parametrize("scheme", [FP16, W8A8, FP8, W4A16], ids=lambda scheme: scheme.name)
def test_a_layer_in_isolation_is_perturbed_alone(scheme: object, work: Bench) -> None:
    bank = bank_of(planned(work, "fp16"))
    plain = Simulation(work.captured, FLOAT_PLACEMENT, bank).run(work.inputs)
    moved = Simulation(work.captured, tensorrt.isolate(work.graph, ["head"], scheme), bank).run(work.inputs)  # type: ignore[arg-type]
    head = work.graph.layer("head")
    assert torch.equal(plain[head.inputs[0]], moved[head.inputs[0]])
    difference = float((moved["output"][0] - plain["output"][0]).norm() / plain["output"][0].norm())
    assert 0 < difference < (1e-3 if scheme == FP16 else 0.1)


def test_codes_that_were_kept_for_float32_scales_serve_for_half_ones(work: Bench) -> None:
    plan = stored(work)
    layer = work.graph.layer("one")
    weights = tensorrt.place(work.graph, plan.schemes).schemes["one"].weights
    assert weights is not None
    found = bank_of(plan).weight(layer, weights)
    assert np.array_equal(found.codes.numpy(), plan.rounded["one 8"])
    np.testing.assert_allclose(found.qparams.scale.numpy(), plan.rounded["one 8 scale"], rtol=1e-3)
    assert (found.qparams.scale.numpy() >= plan.rounded["one 8 scale"]).all()


def test_kept_fp8_and_block_codes_come_back(work: Bench) -> None:
    first = bank_of(planned(work, "fp16"))
    layer = work.graph.layer("head")
    rounded = first.rounded((layer, scheme) for scheme in (FP8, W4A16, FP16))
    assert set(rounded) == {f"head {kind}{what}" for kind in ("e4m3", "4b128 float") for what in ("", " scale", " alignment")}
    other = WeightBank(work.graph, {}, {}, tensorrt.product_rows, rounded=rounded)
    other._parameters = {name: torch.zeros_like(first.parameter(name)) for name in ("head.weight", "head.bias")}  # type: ignore[assignment]
    for scheme in (FP8, W4A16):
        assert scheme.weights is not None
        one, two = (bank.weight(layer, scheme.weights, in_float=scheme.is_float) for bank in (first, other))
        assert torch.equal(one.codes, two.codes) and torch.equal(one.qparams.scale, two.qparams.scale)
    half = first.weight(layer, HALF)
    assert torch.equal(half.codes, first.parameter("head.weight").half().float())


# Random networks.

FAST, ALL = 4, 60


def draw_wide(seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, dict[str, Tensor]]:
    """A random network most of whose layers have channels enough."""
    monkeypatch.setattr(fuzz.Drawn, "width", lambda self: int(self.random.choice([8, 16, 24, 32])))
    return fuzz.draw(seed)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= FAST)) for seed in range(ALL)])
def test_a_random_network_under_a_random_plan(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is well typed, is near its simulation, and its int8 layers run in int8 where such structures run here: in OpenVINO."""
    net, inputs = draw_wide(seed, monkeypatch)
    few = {name: value[:16] for name, value in inputs.items()}
    work = Bench(capture(net, {name: value[:2] for name, value in inputs.items()}), few, tmp_path)
    random = np.random.default_rng(seed)
    floats = work.captured.module(*few.values()).detach()
    mixed = {layer.name: str(random.choice(SCHEMES["tensorrt"])) for layer in work.graph.layers}
    for schemes in ("w8a8", mixed):
        plan = planned(work, schemes)
        exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
        assert_well_typed(work, exported, plan)
        (literal,) = run(open_session(exported.file, threads=1, literal=True), few)
        (ours,) = simulate(work, plan, exported)
        stepwise = run_stepwise(exported.file, few)[work.graph.outputs[0]]
        assert (ours - stepwise).norm() < 0.3 * (floats - stepwise).norm() + 3e-3 * floats.norm()
        assert (literal - stepwise).norm() < 0.8 * (floats - stepwise).norm() + 3e-3 * floats.norm()
        if schemes == "w8a8":
            pytest.importorskip("openvino", reason="quantkit[openvino] is not installed")
            assert read_executed(exported.file, work.graph, exported.placement, {}, tmp_path).mismatches == ()
