"""Activations that are quantized in each call (`w8d8`): the file, given items one by one, answers with the simulation's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import Bench, bench, build
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.numerics.affine import dequantize, fit_each_item, quantize
from quantkit.core.spec import BYTE_IN_CALL, parse_scheme
from quantkit.data import Batch, collect, whole
from quantkit.export.file_size import promised_bytes
from quantkit.export.float_onnx import read_parameters
from quantkit.network.capture import capture
from quantkit.quantization.simulation.program import Simulation
from quantkit.runtimes import ort_cpu as runtime
from quantkit.runtimes.evaluation import evaluate, open_session, quantizes_in_call
from quantkit.targets import find_target, ort_cpu

ITEMS, WORDS, WIDTH = 12, 9, 16


class Encoder(nn.Module):
    """One block of a transformer over [items, words, width]: queries, keys and values of one tensor, GELU, LayerNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        weights = (self.query(y) @ self.key(y).transpose(1, 2) / WIDTH**0.5).softmax(dim=-1)
        x = x + self.out(weights @ self.value(y))
        x = self.third(x + self.down(F.gelu(self.up(self.second(x)))))
        return self.head(x.mean(dim=1))


def items() -> Tensor:
    """Of very different sizes, so that their ranges differ."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ITEMS, WORDS, WIDTH, generator=generator) * torch.logspace(-1, 1, ITEMS)[:, None, None]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    inputs = {"x": items()}
    return Bench(capture(build(Encoder), inputs), inputs, tmp_path_factory.mktemp("encoder"))


def menu(work: Bench, *schemes: str) -> dict[str, str]:
    """Each layer's last scheme of those that it may have."""
    groups = ort_cpu.groups(work.graph, ort_cpu.check_schemes(schemes))
    return {name: next(s for s in reversed([*schemes, "fp32"]) if (s in group.schemes and s != "fp32") or len(group.schemes) == 1)
            for group in groups for name in group.layers}  # fmt: skip


def test_only_linear_layers_over_tokens_may_quantize_in_each_call(work: Bench) -> None:
    groups = ort_cpu.groups(work.graph, ort_cpu.check_schemes(["w8a8", "w8d8"]))
    menus = {name: group.schemes for group in groups for name in group.layers}
    dynamic = {name for name, schemes in menus.items() if "w8d8" in schemes}
    assert dynamic == {"query", "key", "value", "out", "up", "down"}
    assert menus["head"] == ("w8a8", "fp32") and menus["query"] == ("w8a8", "w8d8", "fp32")


def test_queries_keys_and_values_are_one_group(work: Bench) -> None:
    groups = {group.name: group for group in ort_cpu.groups(work.graph, ort_cpu.check_schemes(["w8a8"]))}
    assert groups["query"].layers == ("query", "key", "value") and "read one tensor" in groups["query"].reason
    assert all(groups[name].layers == (name,) for name in ("out", "up", "down", "head"))


def test_a_layer_that_cannot_stays_float(work: Bench) -> None:
    placement = work.place(dict.fromkeys((layer.name for layer in work.graph.layers), "w8d8"))
    assert "head" not in placement.dynamic and "head" not in placement.schemes


@pytest.mark.parametrize("scheme", ["w8d8", "w5d8", "w4d8", "c5d8", "c4d8"])
def test_the_file_answers_with_the_bits_of_the_simulation(work: Bench, scheme: str) -> None:
    placement = work.place(menu(work, scheme))
    path, emitted = work.emit(placement, f"{scheme}.onnx")
    onnx.checker.check_model(path, full_check=True)
    executed, found = work.executed(path, placement), work.parity(path, placement, emitted)

    assert executed.mismatches == ()
    assert [name for name, precision in executed.precisions.items() if precision == "int8"] == [*placement.dynamic]
    assert found.layers_exact == 1.0 and found.parted == ()  # whatever the runtime's own LayerNorm and softmax add up to
    assert found.agreement == 1.0


def test_one_kernel_computes_a_layer_and_layers_of_one_input_share_its_codes(work: Bench) -> None:
    path, _ = work.emit(work.place(menu(work, "w8d8")))
    optimized = path.with_suffix(".optimized.onnx")
    open_session(path, threads=1, optimized=optimized)
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 1 and kinds.count("MatMulIntegerToFloat") == 3  # query, key, value
    assert kinds.count("DynamicQuantizeMatMul") == 3 and "MatMulInteger" not in kinds and "Cast" not in kinds


@pytest.mark.parametrize("scheme", ["fp32", "w8d8", "w8a8"])
def test_a_float_addition_is_not_taken_into_the_norm_behind_it(work: Bench, scheme: str) -> None:
    """The runtime's SkipLayerNormalization takes longer than the addition and the norm that it replaces."""
    placement = work.place({**menu(work, scheme), "add.2": "fp32"})
    path, _ = work.emit(placement, "apart.onnx")
    kinds = {}
    for file in (path, work.float_file):
        optimized = path.with_suffix(".optimized.onnx")
        open_session(file, threads=1, optimized=optimized)
        kinds[file] = [node.op_type for node in onnx.load(optimized).graph.node]
    assert placement.sums == {work.graph.layer("add.2").node}
    assert "SkipLayerNormalization" in kinds[work.float_file] and "SkipLayerNormalization" not in kinds[path]
    assert kinds[path].count("Sum") == 1 and work.executed(path, placement).mismatches == ()
    plain, apart = (open_session(file, threads=1).run({"x": items().numpy()})[0] for file in (work.float_file, path))
    assert scheme != "fp32" or np.abs(plain - apart).max() <= 1e-5 * np.abs(plain).max()


def test_an_addition_of_codes_in_front_of_a_norm_stays_what_it_is(work: Bench) -> None:
    assert work.place(menu(work, "w8a8")).sums == frozenset()


def test_static_and_dynamic_layers_stand_in_one_file(work: Bench) -> None:
    allocation = {**menu(work, "w8a8"), "query": "w8d8", "out": "w4d8", "up": "w8a8", "down": "w8d8"}
    placement = work.place(allocation)
    path, emitted = work.emit(placement, "both.onnx")
    found = work.parity(path, placement, emitted)
    assert placement.dynamic.keys() == {"query", "out", "down"} and {"key", "up", "head"} <= placement.schemes.keys()
    assert work.executed(path, placement).mismatches == ()
    assert found.layers_exact == 1.0 and found.parted == ()


def test_each_item_has_its_own_range() -> None:
    x = items()
    qparams = fit_each_item(x, BYTE_IN_CALL)
    for item in range(ITEMS):
        low, high = min(float(x[item].min()), 0.0), max(float(x[item].max()), 0.0)
        scale = np.float32(np.float32(high) - np.float32(low)) / np.float32(255)
        zero_point = round(float(np.clip(-np.float32(low) / scale, 0, 255)))
        assert float(qparams.scale[item]) == scale and int(qparams.zero_point[item]) == zero_point
        codes = np.clip(np.rint(x[item].numpy() / scale) + zero_point, 0, 255)
        np.testing.assert_array_equal(quantize(x, qparams)[item].numpy(), codes)
    assert float((dequantize(quantize(x, qparams), qparams) - x).abs().amax() / qparams.scale.max()) <= 0.51


def test_what_is_positive_alone_starts_at_zero_and_zeros_stay() -> None:
    x = torch.stack([torch.full((3, 4), 5.0), torch.zeros(3, 4), torch.full((3, 4), -2.0)])
    qparams = fit_each_item(x, BYTE_IN_CALL)
    assert qparams.zero_point.tolist() == [0, 0, 255] and float(qparams.scale[1]) == 1
    torch.testing.assert_close(dequantize(quantize(x, qparams), qparams), x, rtol=1e-6, atol=0)


def test_an_item_is_answered_the_same_whoever_its_neighbours_are(work: Bench) -> None:
    placement = work.place(menu(work, "w8d8"))
    path, _ = work.emit(placement)
    session, data = open_session(path, threads=1), whole(collect([Batch(work.inputs)]))
    path.unlink()  # a candidate's file lies nowhere once it is open
    alone = evaluate(session, data, 1)[0]
    np.testing.assert_array_equal(evaluate(session, data, ITEMS)[0], alone)
    assert not np.array_equal(session.run({"x": items().numpy()})[0], alone)  # the file itself has one range for a batch
    simulation = Simulation(work.captured, placement, work.bank)
    whole_batch = simulation.run(work.inputs)["output"][0]
    torch.testing.assert_close(torch.cat([simulation.run({"x": x[None]})["output"][0] for x in items()]), whole_batch, rtol=0.02, atol=0.02)


def test_files_are_known_by_the_operation(work: Bench) -> None:
    static, _ = work.emit(work.place(menu(work, "w8a8")), "static.onnx")
    dynamic, _ = work.emit(work.place({**menu(work, "w8a8"), "down": "w8d8"}), "dynamic.onnx")
    assert [quantizes_in_call(path) for path in (work.float_file, static, dynamic)] == [False, False, True]


@pytest.mark.parametrize("scheme", ["w8d8", "w5d8", "w4d8", "c5d8", "c4d8"])
def test_the_size_of_the_file_is_known_before_it_is_written(work: Bench, scheme: str) -> None:
    placement = work.place(menu(work, scheme))
    path, _ = work.emit(placement)
    plain, _ = work.emit(work.place(dict.fromkeys((layer.name for layer in work.graph.layers), "fp32")), "plain.onnx")
    promised = promised_bytes(plain.stat().st_size, work.graph, placement, ort_cpu.weight_bytes)
    assert promised == pytest.approx(path.stat().st_size, rel=0.01)


def test_an_input_of_the_network_may_be_quantized_in_each_call(tmp_path: Path) -> None:
    work = bench("tokens", tmp_path)
    placement = work.place({layer.name: "w8d8" if layer.weight else "fp32" for layer in work.graph.layers})
    path, emitted = work.emit(placement)
    found = work.parity(path, placement, emitted)
    assert (found.layers_exact, found.exact, found.agreement) == (1.0, 1.0, 1.0)


class Twice(nn.Module):
    """A weight used twice, of a size that the exporter does not transpose by itself then."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.head = nn.Linear(384, 384), nn.Linear(384, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))))


@pytest.mark.parametrize("scheme", ["w8d8", "w8a8", "w4a32"])
def test_a_large_weight_that_several_layers_share_is_stored_once(scheme: str, tmp_path: Path) -> None:
    inputs = {"x": torch.randn(3, 5, 384, generator=torch.Generator().manual_seed(2))}
    work = Bench(capture(build(Twice), inputs), inputs, tmp_path)
    placement = work.place({layer.name: scheme if layer.weight else "fp32" for layer in work.graph.layers})
    path, emitted = work.emit(placement)
    found, parameters = work.parity(path, placement, emitted), read_parameters(work.float_file, work.graph)

    assert found.layers_exact == 1.0 and work.executed(path, placement).mismatches == ()
    assert work.float_file.stat().st_size < 1.2 * 4 * 384 * 384 and path.stat().st_size < 0.4 * 4 * 384 * 384
    assert torch.equal(parameters["twice.weight"], work.captured.module.get_parameter("twice.weight"))


def test_the_dynamic_quantizer_is_a_baseline_where_tokens_are_multiplied(work: Bench, tmp_path: Path) -> None:
    image = bench("chain", tmp_path)
    found = {}
    for label, one in (("tokens", work), ("image", image)):
        feeds = ({"x": row[None].numpy()} for row in one.inputs["x"])
        found[label] = runtime.write_rivals(one.float_file, feeds, tmp_path)
    assert [rival.name.split(" (")[0] for rival in found["image"]] == ["onnxruntime quantize_static"]
    static, dynamic = found["tokens"]
    assert dynamic.name.startswith("onnxruntime quantize_dynamic") and dynamic.bytes == dynamic.path.stat().st_size
    kinds = [node.op_type for node in onnx.load(dynamic.path).graph.node]
    assert kinds.count("MatMulInteger") >= 6 and quantizes_in_call(dynamic.path) and not quantizes_in_call(static.path)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_another_target_takes_fixed_ranges_instead(work: Bench, target: str) -> None:
    allocation = {**dict.fromkeys((layer.name for layer in work.graph.layers), parse_scheme("fp32")), "up": parse_scheme("w8d8")}
    adapted = find_target(target).adapt(work.graph, allocation)
    assert adapted.schemes["up"].name == "w8a8"
    assert any(change.startswith("up: w8d8 became w8a8") for change in adapted.changes)
