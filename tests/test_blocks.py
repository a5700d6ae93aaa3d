"""Weights in blocks (`w4b32d8`, `w4b32a32`): MatMulNBits reads what was meant, and the simulation is as near as an order of float sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import Bench, bench
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.errors import SchemeError
from quantkit.core.numerics.affine import dequantize, fake_quantize_in_call
from quantkit.core.spec import BLOCK_SIZES, PerBlock, QuantSpec, parse_scheme, parse_schemes
from quantkit.export.file_size import promised_bytes
from quantkit.export.storage import in_blocks
from quantkit.gating.examine import share_of_file
from quantkit.network.capture import capture
from quantkit.quantization.simulation.program import Simulation
from quantkit.runtimes.evaluation import open_session, quantizes_in_call
from quantkit.targets import find_target, openvino, ort_cpu, tensorrt

SCHEMES = ("w8b32d8", "w4b32d8", "w4b128d8", "w4b32a32", "w4b128a32")
EPSILON = float(np.finfo(np.float32).eps)


class Mixer(nn.Module):
    """Products of 384, 160 and 96, which blocks of 128, 32 and 32 divide, and of 30, which none does; a Gemm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.odd = nn.Linear(384, 160), nn.Linear(160, 96, bias=False), nn.Linear(96, 30)
        self.back, self.head = nn.Linear(30, 96), nn.Linear(96, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.gelu(self.first(x)))
        return self.head((y + self.back(self.odd(y))).mean(dim=1))


def inputs() -> dict[str, Tensor]:
    """Tokens of very different sizes; one is 0 and one holds a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 384, generator=generator) * torch.logspace(-2, 2, 6)[:, None, None]
    x[0, 0], x[1, 1, 32:64] = 0, 0
    return {"x": x}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.manual_seed(0)
    return Bench(capture(Mixer().eval(), inputs()), inputs(), tmp_path_factory.mktemp("blocks"))


def plan(work: Bench, scheme: str) -> dict[str, str]:
    """Each weighted layer under `scheme` where its menu has it."""
    groups = ort_cpu.groups(work.graph, parse_schemes([scheme, "fp32"]))
    return {name: scheme if scheme in group.schemes else "fp32" for group in groups for name in group.layers}


def test_a_name_says_what_is_stored_and_what_is_quantized_in_each_call() -> None:
    in_call, stored = parse_scheme("w4b32d8"), parse_scheme("w4b64a32")
    assert isinstance(in_call.weights, QuantSpec) and isinstance(in_call.activations, QuantSpec)
    assert (in_call.weights.granularity, in_call.activations.granularity) == (PerBlock(1, 32), PerBlock(-1, 32))
    assert in_call.is_dynamic and in_call.has_blocks and not in_call.is_float
    assert stored.is_stored and stored.has_blocks and stored.is_float
    assert stored.weights is not None and stored.weights.granularity == PerBlock(1, 64)
    assert not parse_scheme("w4d8").has_blocks
    for wrong in ("w4b33d8", "w5b32d8", "w4b32a8"):
        with pytest.raises(SchemeError, match=wrong):
            parse_scheme(wrong)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_codes_are_packed_as_the_operator_reads_them(bits: int, size: int) -> None:
    """Written out: the low half of a byte first, each code above 2^(bits-1)."""
    limit = 1 << (bits - 1)
    codes = np.random.default_rng(bits).integers(1 - limit, limit, (3, 2 * size)).astype(np.int8)
    packed = in_blocks(codes, bits, size)
    assert packed.shape == (3, 2, size * bits // 8) and packed.dtype == np.uint8
    for row in range(3):
        for place in range(2 * size):
            byte = int(packed[row, place // size, place % size * bits // 8])
            code = byte if bits == 8 else (byte >> 4 * (place % 2)) & 15
            assert code - limit == codes[row, place]


@pytest.mark.parametrize("size", [32, 128])
def test_activations_are_quantized_block_by_block(size: int) -> None:
    spec = parse_scheme(f"w4b{size}d8").activations
    assert isinstance(spec, QuantSpec)
    x = inputs()["x"]
    found = fake_quantize_in_call(x, spec)
    for item, token in ((0, 0), (1, 1), (2, 3), (5, 4)):
        for start in range(0, 384, size):
            block = x[item, token, start : start + size].numpy()
            largest = np.abs(block).max()
            inverse = np.float32(127) / largest if largest else np.float32(0)
            wanted = np.rint(block * inverse) * (largest / np.float32(127))
            np.testing.assert_array_equal(found[item, token, start : start + size].numpy(), wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_answers_as_the_simulation_does(work: Bench, scheme: str) -> None:
    placement = work.place(plan(work, scheme))
    path, emitted = work.emit(placement, f"{scheme}.onnx")
    found = work.parity(path, placement, emitted)
    if parse_scheme(scheme).is_dynamic:
        assert found.layers_exact == 1.0
    ran = work.executed(path, placement)
    planned = "int8" if parse_scheme(scheme).is_dynamic else "float"
    assert not ran.mismatches
    assert {name: ran.precisions[name] for name in ("first", "second", "back", "head")} == {
        "first": planned, "second": planned, "back": "float", "head": planned,
    }  # fmt: skip
    assert [node.op_type for node in onnx.load(path).graph.node].count("MatMulNBits") == 4
    assert not quantizes_in_call(path), "a row does not hang on the others, so items may be given together"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_product_differs_from_the_exact_sum_by_what_float_sums_may(work: Bench, scheme: str) -> None:
    """The first layer alone: n terms in float32 differ from their sum by at most n·eps·Σ|terms|, in any order."""
    layer = work.graph.layer("first")
    placement = work.place({**dict.fromkeys(plan(work, "fp32"), "fp32"), layer.name: scheme})
    path, emitted = work.emit(placement, f"one-{scheme}.onnx")
    theirs = _value(path, layer.node, work.folder)
    form = parse_scheme(scheme)
    x = work.inputs["x"]
    x = fake_quantize_in_call(x, form.activations) if isinstance(form.activations, QuantSpec) else x
    weight = work.bank.under(layer, form)
    real, bias = dequantize(weight.codes, weight.qparams).double(), work.bank.bias(layer)
    assert bias is not None
    exact, size = F.linear(x.double(), real, bias.double()), F.linear(x.double().abs(), real.abs(), bias.double().abs())
    assert ((theirs.double() - exact).abs() <= 400 * EPSILON * size).all()
    far = F.linear(work.inputs["x"].double(), work.bank.parameter(str(layer.weight)).detach().double(), bias.double())
    assert not ((far - exact).abs() <= 400 * EPSILON * size).all(), "as it is not the float network's product"
    assert emitted.outputs.get(layer.name, layer.node) == layer.node


def _value(path: Path, name: str, folder: Path) -> Tensor:
    """What the file makes at `name`."""
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    shown = folder / f"shown-{path.name}"
    onnx.save(model, shown)
    session = open_session(shown, threads=1)
    return torch.from_numpy(session.run({"x": inputs()["x"].numpy()})[-1])


def test_the_simulation_is_of_the_scheme(work: Bench) -> None:
    """Each scheme answers otherwise: neither the size of a block, nor its bits, nor the activations are ignored."""
    found = [Simulation(work.captured, work.place(plan(work, scheme)), work.bank).run(work.inputs)["output"][0] for scheme in SCHEMES]
    assert all(not torch.equal(one, other) for place, one in enumerate(found) for other in found[:place])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_size_of_the_file_is_known_before_it_is_written(work: Bench, scheme: str) -> None:
    placement = work.place(plan(work, scheme))
    path, _ = work.emit(placement, f"size-{scheme}.onnx")
    plain, _ = work.emit(work.place(plan(work, "fp32")), "plain.onnx")
    promised = promised_bytes(plain.stat().st_size, work.graph, placement, ort_cpu.weight_bytes)
    assert promised == pytest.approx(path.stat().st_size, rel=0.005)


def test_accuracy_level_says_what_runs(work: Bench) -> None:
    """A file whose products were set to compute in float does not run as an integer plan."""
    placement = work.place(plan(work, "w4b32d8"))
    path, _ = work.emit(placement, "level.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    onnx.save(model, path)
    assert len(work.executed(path, placement).mismatches) == 4


def test_any_file_is_examined_by_what_its_products_compute_with(work: Bench) -> None:
    """`lint` and `gate --require-int8` count multiply-accumulates of packed weights, in int8 at level 4 alone."""
    macs = {"first": 5 * 384 * 160, "second": 5 * 160 * 96, "odd": 5 * 96 * 30, "back": 5 * 30 * 96, "head": 96 * 7}
    for scheme, share in (("w4b32d8", 1 - macs["back"] / sum(macs.values())), ("w4b32a32", 0.0)):
        path, _ = work.emit(work.place(plan(work, scheme)), f"share-{scheme}.onnx")
        assert share_of_file(path, "ort-cpu") == pytest.approx(share)


def test_only_matrices_that_blocks_divide_have_them(work: Bench, tmp_path: Path) -> None:
    menus = {group.name: group.schemes for group in ort_cpu.groups(work.graph, parse_schemes([*SCHEMES, "fp32"]))}
    assert [name for name, menu in menus.items() if menu == ("fp32",)] == ["back", "add"]
    assert all(set(SCHEMES) < set(menus[name]) for name in ("first", "second", "odd", "head"))
    images = bench("residual", tmp_path).graph
    convolutions = {layer.name for layer in images.layers if layer.kind == "conv"}
    menus = {group.name: group.schemes for group in ort_cpu.groups(images, parse_schemes([*SCHEMES, "fp32"]))}
    assert convolutions and all(menus[name] == ("fp32",) for name in convolutions)


def test_other_targets_take_what_comes_nearest(work: Bench) -> None:
    allocation = {name: parse_scheme(scheme) for name, scheme in plan(work, "w4b32d8").items()}
    assert openvino.adapt(work.graph, allocation).schemes["first"] == "w4a8"
    assert tensorrt.adapt(work.graph, allocation).schemes["first"] == "w8a8"
    assert find_target("ort-cpu").adapt(work.graph, allocation).schemes["first"] == "w4b32d8"
