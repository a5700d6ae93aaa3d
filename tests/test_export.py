"""Emitted files as ONNX Runtime really runs them, and as the ONNX standard reads them."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Bench, Formed, build, captured, formed, images, run
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from quantkit.core.errors import CaptureError, ContractError
from quantkit.core.spec import PerGroup, QuantSpec, Scheme, parse_scheme
from quantkit.data import Batch, Subset, collect
from quantkit.export.executed_layers import find_owner, plain
from quantkit.export.float_onnx import export_float, read_parameters
from quantkit.export.intermediate_outputs import expose
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.quantization.rounding import ROUNDINGS
from quantkit.quantization.weights import WeightBank
from quantkit.runtimes.evaluation import open_session
from quantkit.runtimes.static_quantizer import quantize_with_onnxruntime
from quantkit.targets import ort_cpu
from quantkit.targets.common import weight_bytes_stored


def operations(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


CHAINS: dict[str, Callable[[Formed, Tensor], Tensor]] = {
    "convolutions": lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
    "convolutions without activation": lambda m, x: m.c(m.b(m.a(x))),
    "linear": lambda m, x: m.fd(F.relu(m.fc(F.relu(m.a(x)).mean((2, 3))))),
    "linear over tokens": lambda m, x: m.fd(F.relu(m.fc(m.a(x).flatten(2).transpose(1, 2)))),
    "addition": lambda m, x: (lambda t: m.b(F.relu(t + x.repeat(1, 3, 1, 1)[:, :8])))(m.a(x)),
    "concatenation": lambda m, x: (lambda t: m.c(torch.cat([t[:, :4], t[:, 4:]], 1)))(F.relu(m.a(x))),
    "silu": lambda m, x: m.b(F.silu(m.a(x))),
    "sigmoid": lambda m, x: m.b(torch.sigmoid(m.a(x))),
    "leaky": lambda m, x: m.b(F.leaky_relu(m.a(x), 0.1)),
    "average pool": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, 1)),
    "global pool": lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 1)),
    "global pool without its axes": lambda m, x: m.fc(F.relu(m.a(x)).mean((-1, -2))),
    "squeeze and excite": lambda m, x: (lambda t: t * torch.sigmoid(m.b(t.mean((2, 3), keepdim=True))))(F.relu(m.a(x))),
    "linear with gates": lambda m, x: m.fd(torch.sigmoid(m.fc(F.leaky_relu(m.fd(x.mean((2, 3)).repeat(1, 3)[:, :8]))))),
}


@pytest.mark.parametrize("form", CHAINS.values(), ids=CHAINS)
def test_what_is_planned_runs_in_every_mix_of_a_chain(form: Callable[[Formed, Tensor], Tensor], tmp_path: Path) -> None:
    """The runtime would quantize a float layer between Q and DQ behind our back, and drop int8 kernels for want of one Q."""
    work = Bench(formed(form), images(), tmp_path)
    names = [layer.name for layer in work.graph.layers]
    for mix in itertools.product(["fp32", "w8a8"], repeat=len(names)):
        allocation = dict(zip(names, mix, strict=True))
        placement = work.place(allocation)
        executed = work.executed(work.emit(placement)[0], placement)
        assert executed.mismatches == ()
        assert executed.precisions == {name: "float" if scheme == "fp32" else "int8" for name, scheme in allocation.items()}


NAKED: dict[str, tuple[Callable[[Formed, Tensor], Tensor], str, str]] = {
    "convolution": (CHAINS["convolutions"], "8f8", "QLinearConv"),
    "linear": (lambda m, x: m.fd(m.fc(F.relu(m.fd(x.mean((2, 3)).repeat(1, 3)[:, :8])))), "88f8", "QGemm"),
    "addition": (lambda m, x: (lambda t: m.c(t + m.b(t)))(F.relu(m.a(x))), "88f8", "QLinearAdd"),
    "concatenation": (CHAINS["concatenation"], "8f8", "QLinearConcat"),
    "product": (CHAINS["silu"], "88f8", "QLinearMul"),
    "sigmoid": (CHAINS["sigmoid"], "8f8", "QLinearSigmoid"),
    "leaky": (CHAINS["leaky"], "8f8", "QLinearLeakyRelu"),
    "average pool": (CHAINS["average pool"], "8f8", "QLinearAveragePool"),
}


@pytest.mark.parametrize(("form", "mix", "kernel"), NAKED.values(), ids=NAKED)
def test_without_its_barrier_a_float_layer_is_a_named_mismatch(
    form: Callable[[Formed, Tensor], Tensor], mix: str, kernel: str, tmp_path: Path
) -> None:
    work = Bench(formed(form), images(), tmp_path)
    names = [layer.name for layer in work.graph.layers]
    placement = work.place({name: "fp32" if letter == "f" else "w8a8" for name, letter in zip(names, mix, strict=True)})
    assert placement.barriers
    naked = replace(placement, barriers={})
    assert work.executed(work.emit(naked)[0], naked).mismatches == (f"{names[mix.index('f')]}: planned float, ran int8 ({kernel})",)


@pytest.mark.parametrize("scheme", ["w8a32", "w16a32"])
@pytest.mark.parametrize(("form", "mix", "kernel"), NAKED.values(), ids=NAKED)
def test_a_float_layer_that_is_stored_narrow_stays_float_between_int8_neighbours(
    form: Callable[[Formed, Tensor], Tensor], mix: str, kernel: str, scheme: str, tmp_path: Path
) -> None:
    work = Bench(formed(form), images(), tmp_path)
    names = [layer.name for layer in work.graph.layers]
    placement = work.place({name: scheme if letter == "f" else "w8a8" for name, letter in zip(names, mix, strict=True)})
    path, emitted = work.emit(placement)
    assert work.executed(path, placement).mismatches == ()
    assert work.parity(path, placement, emitted).exact == 1.0
    floats = [work.graph.layer(name) for name, letter in zip(names, mix, strict=True) if letter == "f"]
    assert set(placement.stored) == {layer.name for layer in floats if layer.weight}


def test_a_missing_quantizer_is_a_named_mismatch(tmp_path: Path) -> None:
    work = Bench(formed(CHAINS["convolutions"]), images(), tmp_path)
    placement = work.place(work.uniform("w8a8"))
    short = replace(
        placement,
        outputs=placement.outputs - {"b"},
        inputs=placement.inputs - {("c", 0)},
        schemes={name: scheme for name, scheme in placement.schemes.items() if name != "c"},
    )
    path, _ = work.emit(short)
    (mismatch,) = work.executed(path, short).mismatches
    assert mismatch.startswith("b: planned int8, ran float")


def test_a_layer_that_vanished_is_a_named_mismatch(benches: Callable[[str], Bench]) -> None:
    work = benches("chain")
    placement = work.place(work.uniform("w8a8"))
    path, _ = work.emit(placement)
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = node.name.replace("conv2d_1", "other")
        for names in (node.input, node.output):
            names[:] = ["other" if name in ("conv2d_1", "relu_1") else name.replace("relu_1_quantized", "codes") for name in names]
        if node.op_type == "Relu" and node.name == "node_relu_1":
            node.output[:], node.name = ["behind"], "behind"
        if node.name == "relu_1_QuantizeLinear":
            node.input[0], node.name = "behind", "quantizer"
    onnx.save(model, path)
    assert work.executed(path, placement).mismatches == ("b: planned int8, not found in the runtime's graph",)


def assert_twins(work: Bench, narrow: Path, wide: Path) -> Counter[str]:
    """Equal outputs and equal optimised graphs; what remains of them."""
    onnx.checker.check_model(narrow, full_check=True)
    optimized = [path.with_suffix(".optimized.onnx") for path in (narrow, wide)]
    sessions = [open_session(path, threads=1, optimized=out) for path, out in zip((narrow, wide), optimized, strict=True)]
    for one, other in zip(*(run(session, work.inputs) for session in sessions), strict=True):
        assert torch.equal(one, other)
    assert operations(optimized[0]) == operations(optimized[1])
    return operations(optimized[0])


FORMS = ("w2a8", "w4a8", "w5a8", "w4g4a8", "w3g4a8", "c4a8", "c3a8")
RARER = ("w3a8", "w6a8", "w7a8", "w2g4a8", "w6g4a8", "c2a8", "c5a8", "c6a8")
NARROW = [*FORMS, *(pytest.param(name, marks=pytest.mark.slow) for name in RARER)]


def scheme_of(name: str) -> Scheme:
    """By name, or with groups of 4, which the small networks have several of."""
    if "g4" not in name:
        return parse_scheme(name)
    scheme = parse_scheme(name.replace("g4", "g16"))
    assert isinstance(scheme.weights, QuantSpec)
    return Scheme(name, replace(scheme.weights, granularity=PerGroup(0, 4)), scheme.activations)


@pytest.mark.parametrize("scheme", NARROW)
@pytest.mark.parametrize("name", NETWORKS)
def test_narrow_storage_runs_the_int8_kernel_with_the_same_bits(benches: Callable[[str], Bench], name: str, scheme: str) -> None:
    """The twin stores the same codes as INT8: equal outputs, equal optimised graph, a larger file."""
    work, form = benches(name), scheme_of(scheme)
    placement = work.place(work.uniform("w8a8"))
    placement = replace(placement, schemes={key: form if work.graph.layer(key).weight else old for key, old in placement.schemes.items()})
    narrow, emitted = work.emit(placement, "narrow.onnx")
    wide, _ = work.emit(replace(placement, storage=dict.fromkeys(range(2, 9), "int8"), made=False), "wide.onnx")
    left = assert_twins(work, narrow, wide)
    assert not left & Counter(["Cast", "BitShift", "Gather", "MatMulInteger", "Conv", "FusedConv", "Gemm", "MatMul"])
    assert work.parity(narrow, placement, emitted).layers_exact == 1.0
    tensors = {tensor.name: tensor for tensor in onnx.load(narrow).graph.initializer}
    for layer in work.graph.layers:
        if layer.weight:
            assert isinstance(form.weights, QuantSpec)
            stem = f"{layer.weight}_w{form.weights.label}"
            parts = [f"{stem}_{part}" for part in ("codes", "multipliers", "levels")]
            held = sum(len(tensors[part].raw_data) for part in parts if part in tensors)
            channels = layer.weight_shape[0]
            assert held == weight_bytes_stored(replace(layer, bias=None), form, ort_cpu.STORAGE) - 4 * channels


@pytest.mark.parametrize("scheme", ["w16a32", "w8a32", "w5a32", "w4a32", "c5a32", "c4a32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float_layers_that_are_stored_narrow_compute_with_the_same_weights(benches: Callable[[str], Bench], name: str, scheme: str) -> None:
    """The twin is the float file with those weights in place of its own."""
    work = benches(name)
    placement = work.place(work.uniform(scheme))
    narrow, emitted = work.emit(placement, "narrow.onnx")
    twin = onnx.load(work.float_file)
    changed = set()
    for layer in work.graph.layers:
        if layer.weight:
            weights = work.bank.parameter(layer.weight), work.bank.stored_weight(layer, parse_scheme(scheme))
            old, new = (value.detach().numpy() for value in weights)
            for tensor in twin.graph.initializer:
                held = onnx.numpy_helper.to_array(tensor)
                for ours, theirs in ((old, new), (old.T, new.T)) if old.ndim == 2 else ((old, new),):
                    if held.shape == ours.shape and np.array_equal(held, ours):
                        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(theirs), tensor.name))
                        changed.add(layer.weight)
    onnx.save(twin, work.folder / "twin.onnx")
    left = assert_twins(work, narrow, work.folder / "twin.onnx")
    assert changed == {layer.weight for layer in work.graph.layers if layer.weight}
    assert not left & Counter(["Cast", "BitShift", "MatMulInteger", "Mul"])
    parity = work.parity(narrow, placement, emitted)
    assert parity.agreement == 1.0 and (parity.exact == 1.0 or name != "chain")


def test_file_sizes_follow_the_bits(tmp_path: Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(512, 512)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    inputs = {"x": torch.randn(8, 512)}
    work = Bench(capture(build(Large), inputs), inputs, tmp_path)
    sizes = {scheme: work.emit(work.place(work.uniform(scheme)))[0].stat().st_size for scheme in ("fp32", "w8a8", "w5a8", "w4a8", "w2a8")}
    for scheme, bits in (("fp32", 32), ("w8a8", 8), ("w5a8", 5), ("w4a8", 4), ("w2a8", 2)):
        assert sizes[scheme] == pytest.approx(512 * 512 * bits / 8, abs=12_000)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_are_valid_and_agree_with_the_standard(benches: Callable[[str], Bench], name: str) -> None:
    """onnx.reference computes Q/DQ in float and does not round biases: where a sum lies between two codes, a step is its right."""
    work = benches(name)
    allocation = work.uniform("w8a8") | {next(layer.name for layer in work.graph.layers if layer.weight): "w4a8"}
    placement = work.place(allocation)
    path, emitted = work.emit(placement)
    onnx.checker.check_model(path, full_check=True)
    watched = work.folder / "watched.onnx"
    expose(path, [*emitted.inputs.values(), *emitted.outputs.values()], watched)
    session = open_session(watched, threads=1)
    feeds = {key: value.numpy() for key, value in work.inputs.items()}
    names = [output.name for output in session.handle.get_outputs()]
    ours, standard = session.run(feeds), ReferenceEvaluator(str(watched)).run(None, feeds)
    codes = [key for key, one in zip(names, ours, strict=True) if one.dtype == np.uint8]
    pairs = [(one, np.asarray(other)) for key, one, other in zip(names, ours, standard, strict=True) if key in codes]
    apart = np.concatenate([np.abs(one.astype(int) - other.astype(int)).ravel() for one, other in pairs])
    assert apart.max() <= (1 if name in ("mlp", "tokens") else 3)  # steps add up with depth
    assert (apart > 0).mean() < 0.05


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_one_convolution_agrees_with_the_standard_to_one_step(scheme: str, tmp_path: Path) -> None:
    work = Bench(formed(lambda m, x: F.relu(m.a(x))), images(), tmp_path)
    path, _ = work.emit(work.place(work.uniform(scheme)))
    (ours,) = run(open_session(path, threads=1), work.inputs)
    (standard,) = ReferenceEvaluator(str(path)).run(None, {"x": work.inputs["x"].numpy()})
    apart = (ours - torch.from_numpy(np.array(standard))).abs() / work.bank.output_qparams(work.graph.layer("a")).scale
    assert apart.max() < 1.001 and (apart > 0.5).float().mean() < 0.02


def test_one_quantizer_a_tensor_and_one_dequantizer_a_reader(benches: Callable[[str], Bench]) -> None:
    work = benches("residual")
    path, _ = work.emit(work.place(work.uniform("w8a8")))
    file = onnx.load(path).graph
    quantized = [node.input[0] for node in file.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == len(set(quantized))
    readers = Counter(name for node in file.node for name in node.input)
    assert all(readers[node.output[0]] == 1 for node in file.node if node.op_type == "DequantizeLinear" and node.output[0] != "linear")
    assert not [tensor for tensor in file.initializer if tensor.name.endswith(".weight")]


def test_a_float_plan_is_the_float_file(benches: Callable[[str], Bench]) -> None:
    work = benches("inception")
    path, emitted = work.emit(work.place(work.uniform("fp32")))
    assert operations(path) == operations(work.float_file)
    assert emitted.inputs == {} and emitted.outputs == {}


def test_a_file_that_is_written_leaves_none_of_its_tensors_in_memory(benches: Callable[[str], Bench], tmp_path: Path) -> None:
    """A graph refers to itself, so what it holds would wait for the collector: a network for each candidate."""
    work = benches("residual")

    def tensors() -> int:
        return sum(type(value) in (ir.Tensor, ir.serde.TensorProtoTensor) for value in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for scheme in ("w8a8", "w4a8", "fp32"):
            path, _ = work.emit(work.place(work.uniform(scheme)))
            expose(path, [], tmp_path / "watched.onnx")
        read_parameters(work.float_file, work.graph)
        assert tensors() == before
    finally:
        gc.enable()


def test_outputs_keep_their_names_whatever_is_put_behind_them(benches: Callable[[str], Bench], tmp_path: Path) -> None:
    for work in (benches("several"), Bench(formed(lambda m, x: (lambda t: (t, m.fc(t)))(F.relu(m.a(x)).mean((2, 3)))), images(), tmp_path)):
        path, _ = work.emit(work.place(work.uniform("w8a8")))
        assert tuple(value.name for value in onnx.load(path).graph.output) == work.graph.outputs


def test_layers_that_share_a_weight_keep_their_own_biases(tmp_path: Path) -> None:
    """The int32 bias depends on the input's scale, and the two uses see inputs of different size."""
    work = Bench(formed(lambda m, x: m.fc(torch.tanh(m.fc(F.relu(m.a(x)).mean((2, 3)) * 50)) * 0.01)), images(), tmp_path)
    path, _ = work.emit(work.place(work.uniform("w8a8")))
    codes = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name.startswith("fc.bias_codes")]
    assert len(codes) == 2 and not np.array_equal(*codes)
    assert len([t for t in onnx.load(path).graph.initializer if t.name.startswith("fc.weight_w8_codes")]) == 1


def test_nothing_of_the_author_s_source_is_in_the_file(benches: Callable[[str], Bench]) -> None:
    work = benches("residual")
    for path in (work.float_file, work.emit(work.place(work.uniform("w4a8")))[0]):
        content = path.read_bytes()
        assert not [mark for mark in (b"stack_trace", b"networks.py", b"tests/", b"F.relu", b"Residual", b"def forward") if mark in content]


def test_a_bias_of_zeros_which_the_exporter_drops_loses_no_layer(tmp_path: Path) -> None:
    """It makes a new node then, under a name of its own; several equal biases are one initializer."""
    model = build(lambda: Formed(lambda m, x: m.fc(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3)))))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    work = Bench(capture(model, images()), images(), tmp_path)
    state = dict(work.captured.module.named_parameters(remove_duplicate=False))
    assert all(torch.equal(value, state[name]) for name, value in read_parameters(work.float_file, work.graph).items())
    for scheme in ("fp32", "w8a8", "w5a8"):
        placement = work.place(work.uniform(scheme))
        path, emitted = work.emit(placement)
        assert work.executed(path, placement).mismatches == ()
        assert work.parity(path, placement, emitted).layers_exact == 1.0


def test_a_name_that_the_exporter_lost_is_our_fault(tmp_path: Path) -> None:
    network = captured("residual")
    graph = network.graph
    lost = replace(graph, layers=(replace(graph.layers[0], node="gone"), *graph.layers[1:]))
    with pytest.raises(ContractError, match="lost the names of stem"):
        export_float(Captured(network.program, network.module, lost), tmp_path / "float.onnx", ort_cpu.OPSET)
    assert not (tmp_path / "float.onnx").exists()


def test_a_name_that_the_float_file_lacks_is_our_fault(benches: Callable[[str], Bench]) -> None:
    work = benches("residual")
    placement = work.place(work.uniform("w8a8"))
    model = onnx.load(work.float_file)
    model.graph.node[0].output[0] = "other"
    model.graph.node[1].input[0] = "other"
    wrong = Bench.__new__(Bench)
    wrong.__dict__.update(work.__dict__ | {"float_file": work.folder / "wrong.onnx"})
    onnx.save(model, wrong.float_file)
    with pytest.raises(ContractError, match="no value 'conv2d'"):
        wrong.emit(placement, "never.onnx")
    assert not (work.folder / "never.onnx").exists()


def test_what_the_exporter_cannot_write_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = formed(lambda m, x: (lambda t: F.scaled_dot_product_attention(m.fc(t), m.fd(t), t))(m.a(x).flatten(2).transpose(1, 2)))
    with pytest.raises(CaptureError, match=r"torch\.onnx\.export refuses the network: only 4D query") as refusal:
        export_float(flat, tmp_path / "float.onnx", ort_cpu.OPSET)
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_a_float_file_computes_the_network(benches: Callable[[str], Bench]) -> None:
    for name in NETWORKS:
        work = benches(name)
        wanted = build(NETWORKS[name][0])(**work.inputs)
        got = run(open_session(work.float_file, threads=1), work.inputs)
        for one, other in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("node_conv2d_5_token_50", "node_conv2d_5"),
        ("relu_7_nchwc", "relu_7"),
        ("conv2d_pre_q_nchwc", "conv2d"),
        ("node_linear_product/MatMulAddFusion", "node_linear"),
        ("node_linear_product/MatmulTransposeFusion/", "node_linear"),
        ("node_conv2d_1", "node_conv2d_1"),
        ("fused node_linear", "node_linear"),
        ("node_mul_4/QuickGeluFusion/", "node_mul_4"),
    ],
)
def test_what_the_runtime_appends_to_names_is_taken_off(name: str, stripped: str) -> None:
    assert plain(name) == stripped


def test_a_kernel_named_after_what_it_took_in_runs_for_the_layer_in_front() -> None:
    """ONNX Runtime names a float convolution after the sigmoid that it computes with it: its time is the convolution's."""
    gated = find_owner(formed(CHAINS["sigmoid"]).graph)
    assert gated("Conv", "sigmoid_nchwc") == "a" and gated("Conv", "conv2d_1_nchwc") == "b"
    assert gated("Sigmoid", "node_sigmoid") == gated("QLinearSigmoid", "sigmoid") == "sigmoid"
    assert find_owner(formed(CHAINS["silu"]).graph)("QuickGelu", "node_mul_4/QuickGeluFusion/") == "mul"
    assert find_owner(formed(CHAINS["linear with gates"]).graph)("FusedGemm", "fused node_linear") == "fd"
    relu = find_owner(formed(CHAINS["convolutions"]).graph)
    assert relu("Relu", "node_relu") == "a" and relu("Transpose", "Transpose_1") is None


def test_the_baseline_is_onnxruntimes_own_file(benches: Callable[[str], Bench], capsys: pytest.CaptureFixture[str]) -> None:
    work = benches("residual")
    path = work.folder / "static.onnx"
    data = Subset(collect([Batch(work.inputs)]), tuple(range(4)))
    feeds = ({"x": batch.inputs["x"].numpy()} for batch in data.batches(2))
    quantize_with_onnxruntime(work.float_file, feeds, path, reduce_range=False)
    assert operations(path)["QuantizeLinear"] > 3
    (scores,) = run(open_session(path, threads=1), work.inputs)
    assert (scores - work.captured.module(*work.inputs.values())).abs().max() < 0.5
    assert capsys.readouterr().out == ""


def test_weights_are_computed_once_for_a_layer_and_spec(benches: Callable[[str], Bench]) -> None:
    work = benches("chain")
    layer = work.graph.layer("b")
    assert isinstance(work.bank, WeightBank)
    spec = work.place(work.uniform("w8a8")).schemes["b"].weights
    assert isinstance(spec, QuantSpec)
    assert work.bank.weight(layer, spec) is work.bank.weight(layer, spec)
    assert work.bank.to(torch.device("cpu")) is work.bank


def test_weights_that_are_handed_over_do_not_stay(benches: Callable[[str], Bench]) -> None:
    """Four bytes for each code of each scheme, while the next layer is rounded."""
    work = benches("chain")
    layer, bank = work.graph.layer("b"), work.bank.by(ROUNDINGS["nearest"])
    scheme = parse_scheme("w8a8")
    assert isinstance(scheme.weights, QuantSpec)
    before = bank.weight(layer, scheme.weights)
    handed = bank.rounded([(layer, scheme)])
    after = bank.weight(layer, scheme.weights)
    assert after is not before and torch.equal(after.codes, before.codes)
    assert np.array_equal(handed["b 8"], before.codes.numpy())
