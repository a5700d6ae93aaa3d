"""The modelled target `nbit`: integers of 4, 8 and 16 bits, in the file, in the simulation and against arithmetic in whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import toys
from networks import NETWORKS, Bench, captured, formed, images
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from test_pipeline import allocate, hurry, remember
from torch import Tensor

import quantkit
from quantkit.allocation.costs.modelled import model_latency
from quantkit.calibration.ranges import calibrate
from quantkit.core.errors import RequestError
from quantkit.core.numerics.affine import quantize
from quantkit.core.spec import FLOAT, QuantSpec, Scheme, parse_scheme, parse_schemes
from quantkit.data import Batch
from quantkit.export.qdq import emit
from quantkit.network.captured import Captured
from quantkit.quantization.rounding import ROUNDINGS
from quantkit.quantization.simulation.program import Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.runs.stored_plan import export_plan, plan_file, read_plan
from quantkit.runtimes import nbit as runtime
from quantkit.targets import find_target, nbit, openvino, ort_cpu, other_widths, tensorrt
from quantkit.targets.placement import Placement

INTEGERS = [name for name in nbit.SCHEMES if name != "fp32"]
TYPES = {4: (TensorProto.UINT4, TensorProto.INT4), 8: (TensorProto.UINT8, TensorProto.INT8), 16: (TensorProto.UINT16, TensorProto.INT16)}


def bits(scheme: str) -> tuple[int, int]:
    """Of the activations and the weights."""
    first, second, *_ = parse_scheme(scheme).precision
    return first, second


def bank_of(network: Captured, inputs: dict[str, Tensor], observer: str = "mse") -> WeightBank:
    ranges = calibrate(network, [Batch(inputs)])
    state = {name: value.detach() for name, value in network.module.named_parameters(remove_duplicate=False)}
    widths = {count: ranges.qparams(observer, network.graph, spec) for count, spec in other_widths(nbit).items()}
    activations = ranges.qparams(observer, network.graph, nbit.ACTIVATIONS)
    return WeightBank(network.graph, state, activations, nbit.product_rows, rounding=ROUNDINGS["nearest"], widths=widths)


def placed(network: Captured, schemes: Mapping[str, str] | str) -> Placement:
    given = dict.fromkeys([layer.name for layer in network.graph.layers], schemes) if isinstance(schemes, str) else schemes
    return nbit.place(network.graph, {name: parse_scheme(scheme) for name, scheme in given.items()})


def file_of(network: Captured, placement: Placement, bank: WeightBank, inputs: dict[str, Tensor], folder: Path) -> Path:
    work = Bench(network, inputs, folder)
    path = folder / "plan.onnx"
    emit(work.float_file, network.graph, placement, bank, path)
    return path


@pytest.mark.parametrize("scheme", INTEGERS)
def test_a_layer_is_arithmetic_in_whole_numbers(scheme: str) -> None:
    """A convolution by loops over Python integers, made real by one multiplication and one addition in float32."""
    network = formed(lambda m, x: m.b(F.relu(m.a(x))))
    bank, layer = bank_of(network, images()), next(one for one in network.graph.layers if one.weight == "b.weight")
    x = torch.rand(2, 8, 5, 5, generator=torch.Generator().manual_seed(0)) * 2
    spec = parse_scheme(scheme)
    assert isinstance(spec.weights, QuantSpec)
    grid, weight = bank.input_qparams(layer, 0, spec.activations), bank.weight(layer, spec.weights)
    assert grid.spec.bits == bits(scheme)[0] and weight.qparams.spec.bits == bits(scheme)[1]
    codes = np.pad((quantize(x, grid) - grid.zero_point).numpy().astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    kernel = weight.codes.numpy().astype(np.int64)
    total = np.zeros((2, 8, 5, 5), np.int64)
    for top in range(5):
        for left in range(5):
            total[:, :, top, left] = np.einsum("nchw,ochw->no", codes[:, :, top : top + 3, left : left + 3], kernel)
    assert abs(kernel).max() > 0.9 * spec.weights.code_max / 2
    scale = (grid.scale * weight.qparams.scale).numpy()[None, :, None, None]
    bias = bank.bias(layer)
    assert bias is not None
    wanted = total.astype(np.float32) * scale + bias.numpy()[None, :, None, None]
    found = Simulation(network, placed(network, scheme), bank).layer_output(layer, [x])

    np.testing.assert_array_equal(found.numpy(), wanted)


def constants(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each network, so that its float file is exported once."""
    return tmp_path_factory.mktemp("floats")


@pytest.mark.parametrize("scheme", INTEGERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_has_the_types_of_the_scheme_and_answers_as_the_simulation(name: str, scheme: str, floats: Path) -> None:
    network, inputs = captured(name), NETWORKS[name][1]()
    bank, placement = bank_of(network, inputs), placed(network, scheme)
    folder = floats / name
    folder.mkdir(exist_ok=True)
    path = file_of(network, placement, bank, inputs, folder)
    model, stored = onnx.load(path), constants(path)
    onnx.checker.check_model(model, full_check=True)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    weights = [stored[node.input[0]] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]

    assert {stored[node.input[2]].data_type for node in quantizers} == {TYPES[bits(scheme)[0]][0]}
    assert {tensor.data_type for tensor in weights} == {TYPES[bits(scheme)[1]][1]}
    session = runtime.open_file(path, threads=1, options=nbit.SESSION_OPTIONS)
    theirs = session.run({key: value.numpy() for key, value in inputs.items()})
    ours = Simulation(network, placement, bank).run(inputs)["output"]
    exact = network.module(*inputs.values())
    reals = [exact] if isinstance(exact, Tensor) else list(exact)
    for one, other, real in zip(ours, theirs, reals, strict=True):
        apart = np.abs(one.numpy() - other).max(axis=tuple(range(1, other.ndim)))
        lost = float((one - real.detach()).square().mean().sqrt())
        # A sum in float32 may fall on the other side of a tie, a step of a later layer: of few items, no more than rounding loses.
        assert np.median(apart) <= 1e-4 * np.abs(other).max()
        assert apart.max() <= max(1e-4 * np.abs(other).max(), 4 * lost)


def test_readers_of_one_tensor_have_quantizers_of_their_own_width(tmp_path: Path) -> None:
    network = formed(lambda m, x: (lambda y: m.b(y) + m.c(y) + m.depth(y))(F.relu(m.a(x))))
    weights = {str(layer.weight): layer.name for layer in network.graph.layers if layer.weight}
    schemes = {layer.name: "fp32" for layer in network.graph.layers}
    schemes |= {weights["b.weight"]: "w4a4", weights["c.weight"]: "w16a16", weights["depth.weight"]: "w8a4"}
    bank, placement = bank_of(network, images()), placed(network, schemes)
    path = file_of(network, placement, bank, images(), tmp_path)
    found = [node for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    stored = constants(path)

    assert sorted(stored[node.input[2]].data_type for node in found) == sorted([TensorProto.UINT4, TensorProto.UINT16])
    assert len({node.input[0] for node in found}) == 1
    answer = runtime.open_file(path, threads=1, options={}).run({"x": images()["x"].numpy()})[0]
    np.testing.assert_allclose(answer, Simulation(network, placement, bank).run(images())["output"][0].numpy(), rtol=1e-4, atol=1e-4)


def test_a_narrow_range_is_chosen_for_its_own_width() -> None:
    network, inputs = captured("residual"), NETWORKS["residual"][1]()
    bank, ranges = bank_of(network, inputs), calibrate(network, [Batch(inputs)])
    layer = next(one for one in network.graph.layers if one.kind == "conv" and one.inputs[0] not in network.graph.inputs)
    narrow, wide = (bank.input_qparams(layer, 0, replace(nbit.ACTIVATIONS, bits=count)) for count in (4, 8))

    assert float(narrow.scale * 15) < float(wide.scale * 255)  # of few steps more is clipped
    assert ranges.bounds("minmax", network.graph, replace(nbit.ACTIVATIONS, bits=4)) == ranges.bounds("minmax", network.graph)


def named(scheme: str) -> Scheme:
    return parse_scheme(scheme)


@pytest.mark.parametrize(
    ("target", "before", "after"),
    [
        (ort_cpu, "w4a4", "w4a8"), (ort_cpu, "w16a16", "w8a8"), (openvino, "w8a4", "w8a8"), (tensorrt, "w4a4", "w8a8"),
        (nbit, "c3a8", "w4a8"), (nbit, "w6a8", "w8a8"), (nbit, "w8d8", "w8a8"), (nbit, "w8a32", "fp32"), (nbit, "fp16", "fp32"),
    ],
)  # fmt: skip
def test_plans_of_other_machines_are_adapted_and_said_so(target: Any, before: str, after: str) -> None:
    graph = captured("tokens").graph
    adapted = target.adapt(graph, {layer.name: named(before) if layer.weight else FLOAT for layer in graph.layers})

    assert {adapted.schemes[layer.name].name for layer in graph.layers if layer.weight} == {after}
    assert adapted.changes or adapted.notes or before == "w8a32"


def test_the_model_charges_for_the_wider_operand() -> None:
    graph = captured("residual").graph
    schemes = nbit.check_schemes(nbit.SCHEMES)
    model = model_latency(graph, nbit.groups(graph, schemes), parse_schemes(nbit.SCHEMES), nbit)
    times = dict(zip(nbit.SCHEMES, np.nansum(model.table.values, axis=0), strict=True))

    assert times["w4a4"] < times["w8a4"] <= times["w8a8"] < times["w16a16"]
    assert times["w4a4"] < times["w4a8"] <= times["w8a8"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    remember(monkeypatch)


@pytest.mark.usefixtures("hasty")
def test_an_allocation_mixes_bits_of_activations_and_keeps_its_promise(tmp_path: Path) -> None:
    result = allocate(tmp_path, target="nbit", minimize="bops", max_drop=2.0)
    schemes = {row.scheme for row in result.allocation}
    plan = read_plan(tmp_path)
    again = export_plan(plan, "nbit", tmp_path / "again.onnx").file
    other = export_plan(plan, "ort-cpu", tmp_path / "cpu.onnx", adapt=True)

    assert result.kept and result.latency is None
    assert any(bits(scheme)[0] == 4 for scheme in schemes if scheme != "fp32")
    assert again.read_bytes() == plan_file(plan).read_bytes()
    assert other.notes and "activations have 8 bits" in " ".join(other.notes)


@pytest.mark.parametrize("asked", [{"max_latency": "0.5x"}, {"schemes": "w3a8"}])
def test_what_the_machine_has_not_is_refused(asked: dict[str, str]) -> None:
    data = [Batch({"x": toys.images(300, seed=4)[0]})]
    with pytest.raises(RequestError):
        quantkit.allocate(toys.trained(), data=data, metric="agreement", max_drop=1, target="nbit", **asked)


def test_codes_of_sixteen_bits_lie_in_the_file_as_they_were_rounded(tmp_path: Path) -> None:
    network, inputs = captured("chain"), NETWORKS["chain"][1]()
    bank, placement = bank_of(network, inputs), placed(network, "w16a16")
    stored = constants(file_of(network, placement, bank, inputs, tmp_path))
    layer = network.graph.layers[0]
    scheme = parse_scheme("w16a16")
    assert scheme.weights is not None
    codes: NDArray[Any] = numpy_helper.to_array(stored[f"{layer.weight}_w16_codes"])

    np.testing.assert_array_equal(codes, bank.weight(layer, scheme.weights).codes.numpy())
    assert abs(codes.astype(int)).max() > 127
    assert find_target("nbit") is nbit


@pytest.mark.usefixtures("hasty")
def test_the_machine_that_is_described_decides_the_plan(tmp_path: Path) -> None:
    """One that multiplies floats a hundred times as fast as half, and whose memory takes no time: nothing is gained by quantizing."""
    (tmp_path / "floats.toml").write_text("macs_per_s = 1e9\nbytes_per_s = 1e15\n[speed]\nfp32 = 100\n")
    result = allocate(tmp_path / "run", target="nbit", minimize="latency", max_drop=2.0, machine=tmp_path / "floats.toml")
    assert {row.scheme for row in result.allocation} == {"fp32"}
    assert any("modelled latency on floats" in note for note in result.notes)


def test_a_machine_is_for_what_does_not_run_here(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text("macs_per_s = 1e9\nbytes_per_s = 1e9\n")
    with pytest.raises(RequestError, match=r"--machine for ort-cpu, whose files are timed here"):
        allocate(tmp_path / "run", machine=tmp_path / "m.toml")
