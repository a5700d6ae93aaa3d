"""Every rule: a file that breaks it, one that does not, and, where the runtime is here, that what the rule says will happen does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from micro import CHANNELS, FEATURES, INT4, LOWEST, S8, U8, Micro, feeds, kernels, runs_in_int8
from mutation import mutated
from networks import bench
from onnx import TensorProto, helper, numpy_helper

from quantkit.cli import main
from quantkit.core.errors import ModelError, SchemeError
from quantkit.loading.from_onnx.opening import open_model
from quantkit.runtimes import openvino
from quantkit.runtimes.evaluation import open_session
from quantkit.runtimes.static_quantizer import quantize_with_onnxruntime
from quantkit.verification.lint import FIXES, RULES, fix_file, lint_file, lint_model, to_sarif

Case = Callable[[], onnx.ModelProto]


def case(build: Callable[[Micro], str], zero: object = U8, opset: int = 21, shape: tuple[int, ...] = (1, CHANNELS, 8, 8)) -> Case:
    def make() -> onnx.ModelProto:
        micro = Micro(zero, shape)
        return micro.model(build(micro), opset)

    return make


FLOAT8 = ml_dtypes.float8_e4m3fn
TOKENS, ROWS = (1, 4, FEATURES), (4, FEATURES)
GOOD_CONV = case(lambda m: m.qdq(m.op("Relu", m.conv(m.qdq("x")))))
GOOD_GEMM = case(lambda m: m.qdq(m.op("Gemm", m.qdq("x"), m.weight(FEATURES, FEATURES), m.real(FEATURES), transB=1)), shape=ROWS)
GOOD_MATMUL = case(lambda m: m.qdq(m.op("MatMul", m.qdq("x"), m.weight(FEATURES, FEATURES, axis=1))), shape=TOKENS)


def bias_of_dead_channel(m: Micro, bias: float) -> str:
    scale = np.full(CHANNELS, 0.01, np.float32)
    scale[3] = 1e-12
    codes = m.const(np.ones((CHANNELS, CHANNELS, 3, 3), np.int8))
    weight = m.op("DequantizeLinear", codes, m.const(scale), m.const(np.zeros(CHANNELS, np.int8)), axis=0)
    return m.qdq(m.op("Conv", m.qdq("x"), weight, m.const(np.full(CHANNELS, bias, np.float32)), pads=[1, 1, 1, 1]))


def residual(m: Micro, both: bool) -> str:
    x = m.qdq("x")
    y = m.conv(x)
    total = m.op("Add", m.qdq(y) if both else y, x)
    return m.qdq(total) if both else total


def token_layer(m: Micro) -> str:
    return m.qdq(m.op("Add", m.op("MatMul", m.qdq("x"), m.weight(FEATURES, FEATURES, axis=1)), m.real(FEATURES)))


def sixteen(m: Micro) -> str:
    return m.qdq(m.conv(m.qdq("x", np.uint16(0)), bias=False), np.uint16(0))


def weight_only(m: Micro, transposed: int) -> str:
    return m.op("Gemm", "x", m.weight(FEATURES, FEATURES, axis=1 - transposed), m.real(FEATURES), transB=transposed)


def codebook(m: Micro) -> str:
    codes = m.const(np.random.default_rng(0).integers(-7, 8, (CHANNELS, CHANNELS, 3, 3)).astype(INT4))
    wide = m.op("Cast", codes, to=TensorProto.INT8)
    weight = m.op("DequantizeLinear", wide, m.const(np.full(CHANNELS, 0.01, np.float32)), m.const(np.zeros(CHANNELS, np.int8)), axis=0)
    return m.conv(m.qdq("x"), weight)


def shifted(m: Micro) -> str:
    """Codes in the upper half of a byte."""
    halves = m.const(np.full((CHANNELS, CHANNELS, 3, 3), 0x30, np.uint8)), m.const(np.full((1, 1, 1, 1), 4, np.uint8))
    codes = m.op("Cast", m.op("BitShift", *halves, direction="RIGHT"), to=TensorProto.INT8)
    weight = m.op("DequantizeLinear", codes, m.const(np.full(CHANNELS, 0.01, np.float32)), m.const(np.zeros(CHANNELS, np.int8)), axis=0)
    return m.conv(m.qdq("x"), weight)


def int32_bias(m: Micro) -> str:
    bias = m.op("DequantizeLinear", m.const(np.ones(CHANNELS, np.int32)), m.const(np.full(CHANNELS, 0.0002, np.float32)), axis=0)
    return m.op("Conv", m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3), bias, pads=[1, 1, 1, 1])


def vector(m: Micro) -> str:
    scale, zero = m.const(np.full(CHANNELS, 0.02, np.float32)), m.const(np.zeros(CHANNELS, np.int8))
    return m.conv(m.op("DequantizeLinear", m.op("QuantizeLinear", "x", scale, zero, axis=1), scale, zero, axis=1))


def behind_cast(m: Micro) -> str:
    return m.conv(m.op("Cast", m.qdq("x"), to=TensorProto.FLOAT))


def float8(m: Micro, weight: tuple[int, ...] = (CHANNELS, CHANNELS, 3, 3), **attributes: int) -> str:
    zero, scale, channels = np.zeros((), FLOAT8), np.float32(0.02), weight[0]
    x = m.op("DequantizeLinear", m.op("QuantizeLinear", "x", m.const(scale), m.const(zero)), m.const(scale), m.const(zero))
    inputs = [np.ones(weight, FLOAT8), np.full(channels, 0.01, np.float32), np.zeros(channels, FLOAT8)]
    return m.op("Conv", x, m.op("DequantizeLinear", *map(m.const, inputs), axis=0), **attributes)


def blocks(m: Micro, dtype: object = INT4, axis: int = 0, leading: tuple[int, ...] = ()) -> str:
    codes, scale = np.ones((*leading, FEATURES, FEATURES), dtype), np.full((*leading, FEATURES, FEATURES), 0.01, np.float32)  # type: ignore[call-overload]
    scale = np.take(scale, range(scale.shape[axis] // 16), axis)
    return m.op("MatMul", "x", m.op("DequantizeLinear", m.const(codes), m.const(scale), axis=axis, block_size=16))


def mixed(m: Micro, kind: object) -> str:
    weight = m.op("DequantizeLinear", m.const(np.ones((FEATURES, 8), np.int8)), m.const(np.full(8, 0.01, kind)), axis=1)  # type: ignore[call-overload]
    return m.op("MatMul", m.qdq("x"), weight)


def bfloat() -> onnx.ModelProto:
    micro = Micro(shape=ROWS)
    weight = micro.const(np.ones((FEATURES, FEATURES), np.float32), TensorProto.BFLOAT16)
    return micro.model(micro.op("MatMul", "x", weight), kind=TensorProto.BFLOAT16)


def spoiled(change: Callable[[onnx.ModelProto], object]) -> Case:
    def make() -> onnx.ModelProto:
        model = GOOD_CONV()
        change(model)
        return model

    return make


def set_scale(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(-1), model.graph.initializer[0].name))


def set_zeros(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(3, np.uint8), model.graph.initializer[1].name))


# rule: target, what breaks it, what does not, and the kind of operation that then runs in float (None: not so, or no runtime here).
CASES: dict[str, tuple[str, Case, Case, str | None]] = {
    "Q001": ("ort-cpu", spoiled(lambda model: model.graph.node[0].input.append("nowhere")), GOOD_CONV, None),
    "Q002": ("ort-cpu", spoiled(set_scale), GOOD_CONV, None),
    "Q003": ("ort-cpu", spoiled(set_zeros), GOOD_CONV, None),
    "ORT001": (
        "ort-cpu",
        case(token_layer, S8, 21, TOKENS),
        case(token_layer, S8, 20, TOKENS),
        None,
    ),
    "ORT002": ("ort-cpu", bfloat, case(lambda m: m.op("MatMul", "x", m.real(FEATURES, FEATURES)), shape=ROWS), None),
    "ORT003": ("ort-cpu", case(lambda m: bias_of_dead_channel(m, 0.5)), case(lambda m: bias_of_dead_channel(m, 0.0)), None),
    "ORT101": ("ort-cpu", case(lambda m: m.conv(m.qdq("x"))), GOOD_CONV, "Conv"),
    "ORT102": ("ort-cpu", case(lambda m: m.qdq(m.op("Relu", m.conv(m.qdq("x")))), np.uint8(121)), GOOD_CONV, "Conv"),
    "ORT103": (
        "ort-cpu",
        case(lambda m: m.qdq(m.conv(m.qdq("x"), m.real(CHANNELS, CHANNELS, 3, 3)))),
        case(lambda m: m.qdq(m.conv(m.op("Max", m.qdq("x"), m.const(np.float32(-3e38))), m.real(CHANNELS, CHANNELS, 3, 3)))),
        None,
    ),
    "ORT104": (
        "ort-cpu",
        case(lambda m: m.qdq(m.op("ConvTranspose", m.qdq("x"), m.weight(CHANNELS, CHANNELS, 2, 2, axis=1)))),
        case(lambda m: m.op("ConvTranspose", "x", m.real(CHANNELS, CHANNELS, 2, 2))),
        None,
    ),
    "ORT105": ("ort-cpu", case(lambda m: m.qdq(m.op("Tanh", m.qdq("x")))), case(lambda m: m.op("Tanh", "x")), None),
    "ORT106": (
        "ort-cpu",
        case(lambda m: m.op("Add", m.qdq("x"), m.qdq(m.op("Abs", "x")))),
        case(lambda m: m.qdq(m.op("Add", m.qdq("x"), m.qdq(m.op("Abs", "x"))))),
        "Add",
    ),
    "ORT107": ("ort-cpu", case(lambda m: residual(m, both=False)), case(lambda m: residual(m, both=True)), "Add"),
    "ORT108": (
        "ort-cpu",
        case(lambda m: m.qdq(m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, largest=127)))),
        case(lambda m: m.qdq(m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, largest=64)))),
        None,
    ),
    "ORT109": ("ort-cpu", case(lambda m: m.qdq(m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, dtype=np.uint8)))), GOOD_CONV, None),
    "ORT110": ("ort-cpu", case(sixteen), GOOD_CONV, "Conv"),
    "ORT111": (
        "ort-cpu",
        case(lambda m: m.qdq(m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, dtype=INT4, largest=7)))),
        GOOD_CONV,
        "Conv",
    ),
    "ORT112": ("ort-cpu", case(lambda m: weight_only(m, 1), shape=ROWS), case(lambda m: weight_only(m, 0), shape=ROWS), None),
    "ORT113": ("ort-cpu", case(lambda m: m.qdq(m.op("Softmax", m.qdq("x")))), case(lambda m: m.op("Softmax", m.qdq("x"))), None),
    "OVO101": ("openvino", case(lambda m: m.conv(m.qdq("x"), m.real(CHANNELS, CHANNELS, 3, 3))), GOOD_CONV, "Conv"),
    "OVO102": ("openvino", case(sixteen), GOOD_CONV, "Conv"),
    "OVO103": (
        "openvino",
        case(lambda m: m.qdq(m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, dtype=np.uint8)))),
        GOOD_CONV,
        "Conv",
    ),
    "OVO104": (
        "openvino",
        case(lambda m: m.qdq(m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, dtype=INT4, largest=7)))),
        case(codebook),
        "Conv",
    ),
    "OVO105": ("openvino", case(shifted), case(codebook), "Conv"),
    "TRT001": ("tensorrt", case(lambda m: m.conv(m.qdq("x"))), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT002": ("tensorrt", case(lambda m: m.conv(m.qdq("x")), LOWEST), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT003": ("tensorrt", case(int32_bias, S8), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT004": (
        "tensorrt",
        case(lambda m: m.op("MatMulInteger", m.q("x"), m.const(np.ones((FEATURES, 2), np.int8))), S8, shape=ROWS),
        case(lambda m: m.conv(m.qdq("x")), S8),
        None,
    ),
    "TRT005": ("tensorrt", case(lambda m: m.op("Gelu", "x", domain="com.microsoft")), case(lambda m: m.op("Gelu", "x")), None),
    "TRT006": ("tensorrt", case(codebook, S8), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT007": ("tensorrt", case(vector, S8), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT008": (
        "tensorrt",
        case(lambda m: m.conv(m.qdq("x"), m.weight(CHANNELS, CHANNELS, 3, 3, dtype=INT4, largest=7)), S8),
        case(lambda m: m.conv(m.qdq("x")), S8),
        None,
    ),
    "TRT009": (
        "tensorrt",
        case(lambda m: m.op("MatMul", "x", m.weight(FEATURES, 8, dtype=INT4, axis=1, largest=7)), S8, 20, ROWS),
        case(lambda m: m.op("MatMul", "x", m.weight(FEATURES, 8, dtype=INT4, axis=1, largest=7)), S8, 21, ROWS),
        None,
    ),
    "TRT010": ("tensorrt", case(sixteen, S8), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT011": ("tensorrt", case(float8, S8, 18), case(float8, S8, 19), None),
    "TRT012": (
        "tensorrt",
        case(lambda m: m.op("Add", "x", m.weight(FEATURES, dtype=INT4, largest=7)), S8, shape=ROWS),
        case(lambda m: m.op("MatMul", "x", m.weight(FEATURES, 8, dtype=INT4, axis=1, largest=7)), S8, shape=ROWS),
        None,
    ),
    "TRT013": ("tensorrt", case(lambda m: blocks(m, np.int8), S8, shape=ROWS), case(blocks, S8, shape=ROWS), None),
    "TRT014": (
        "tensorrt",
        case(lambda m: mixed(m, np.float16), S8, shape=ROWS),
        case(lambda m: mixed(m, np.float32), S8, shape=ROWS),
        None,
    ),
    "TRT101": ("tensorrt", case(lambda m: residual(m, both=True), S8), case(lambda m: residual(m, both=False), S8), None),
    "TRT102": (
        "tensorrt",
        case(lambda m: m.conv(m.qdq("x"), m.real(CHANNELS, CHANNELS, 3, 3)), S8),
        case(lambda m: m.conv("x", m.real(CHANNELS, CHANNELS, 3, 3)), S8),
        None,
    ),
    "TRT103": ("tensorrt", case(behind_cast, S8), case(lambda m: m.conv(m.qdq("x")), S8), None),
    "TRT104": (
        "tensorrt",
        case(lambda m: m.op("Conv", m.qdq("x"), m.weight(4, CHANNELS, 3, 3)), S8),
        case(lambda m: m.conv(m.qdq("x")), S8),
        None,
    ),
    "TRT105": ("tensorrt", case(lambda m: float8(m, (CHANNELS, CHANNELS, 7, 7)), S8), case(float8, S8), None),
}  # fmt: skip


def found(model: onnx.ModelProto, target: str) -> set[str]:
    return {finding.rule for finding in lint_model(model, RULES[target])}


def test_every_rule_has_a_case_and_an_id_of_its_own() -> None:
    for target, rules in RULES.items():
        ids = [rule.id for rule in rules]
        assert len(set(ids)) == len(ids), target
        assert all(rule.source and rule.fix and rule.check.__doc__ for rule in rules)
    assert {rule.id for rules in RULES.values() for rule in rules} == set(CASES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_what_breaks_it_and_nothing_else(rule: str) -> None:
    target, broken, whole, _ = CASES[rule]
    assert rule in found(broken(), target)
    assert rule not in found(whole(), target)


def test_blocks_and_groups_have_their_places() -> None:
    assert "TRT013" in found(case(lambda m: blocks(m, axis=0, leading=(16,)), S8, shape=ROWS)(), "tensorrt")
    assert "TRT013" not in found(case(lambda m: blocks(m, axis=1), S8, shape=ROWS)(), "tensorrt")
    assert "TRT105" in found(case(lambda m: float8(m, (CHANNELS, 1, 3, 3), group=CHANNELS), S8)(), "tensorrt")
    assert "TRT012" in found(case(lambda m: m.qdq("x", np.zeros((), INT4)), S8)(), "tensorrt")


def test_fp8_codes_are_not_taken_for_uint8() -> None:
    without = case(float8, S8)()
    for node in without.graph.node:
        if node.op_type == "DequantizeLinear":
            del node.input[2]
    assert not {"TRT001", "TRT010"} & (found(without, "tensorrt") | found(case(float8, S8)(), "tensorrt"))


def test_only_operands_that_must_agree_are_compared() -> None:
    """The sizes of a Resize are float32 whatever is resized, and a Cast ends a type."""
    sizes = np.array([1, 1, 2, 2], np.float32)
    whole = case(lambda m: m.op("Cast", m.op("Resize", m.op("Cast", "x", to=10), "", m.const(sizes), mode="nearest"), to=1), S8)()
    assert "TRT014" not in found(whole, "tensorrt")
    broken = case(lambda m: m.op("Concat", m.op("Relu", m.op("Cast", "x", to=10)), "x", axis=0), S8)()
    assert "TRT014" in found(broken, "tensorrt")


@pytest.mark.parametrize("rule", [rule for rule, (target, *_) in CASES.items() if target == "ort-cpu" and not rule.startswith("Q")])
def test_what_is_whole_for_one_rule_breaks_no_error_of_another(rule: str) -> None:
    _, _, whole, _ = CASES[rule]
    assert not [finding for finding in lint_model(whole(), RULES["ort-cpu"]) if finding.severity == "error"]


@pytest.mark.parametrize("rule", [rule for rule, row in CASES.items() if row[0] == "openvino"])
def test_what_is_said_to_run_in_float_in_openvino_does(rule: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="quantkit[openvino] is not installed")
    ran = []
    for make in CASES[rule][1:3]:
        onnx.save(make(), tmp_path / "m.onnx")
        ran.append({kernel.integer for kernel in openvino.kernels(tmp_path / "m.onnx", {}, tmp_path).values()})
    assert ran == [{False}, {True}]


@pytest.mark.parametrize("rule", [rule for rule, row in CASES.items() if row[0] == "ort-cpu" and row[3]])
def test_what_is_said_to_run_in_float_does(rule: str, tmp_path: Path) -> None:
    _, broken, whole, kind = CASES[rule]
    assert kind is not None
    assert not runs_in_int8(kernels(broken(), tmp_path), kind)
    assert runs_in_int8(kernels(whole(), tmp_path), "Conv" if rule == "ORT110" else kind)


@pytest.mark.parametrize("rule", ["ORT001", "ORT002"])
def test_what_is_said_not_to_load_does_not(rule: str, tmp_path: Path) -> None:
    _, broken, whole, _ = CASES[rule]
    with pytest.raises(Exception, match=r"output_dtype|bfloat16|implementation"):
        kernels(broken(), tmp_path)
    assert kernels(whole(), tmp_path)


def test_a_float_layer_between_quantizers_is_quantized_behind_one_s_back(tmp_path: Path) -> None:
    _, broken, whole, _ = CASES["ORT103"]
    assert kernels(broken(), tmp_path)["QLinearConv"] == 1
    assert kernels(whole(), tmp_path)["QLinearConv"] == 0


def test_a_bias_that_overflows_computes_wrongly(tmp_path: Path) -> None:
    model = CASES["ORT003"][1]()
    onnx.save(model, tmp_path / "m.onnx")
    (ran,) = open_session(tmp_path / "m.onnx", threads=1).run(feeds(model))
    assert np.abs(ran[0, 3] - 0.5).max() > 0.1  # the dead channel's answer is its bias, 0.5


@pytest.mark.parametrize("rule", FIXES)
def test_what_a_mend_mends_is_found_no_more_and_computes_the_same(rule: str, tmp_path: Path) -> None:
    target, broken, _, _ = CASES[rule]
    if rule == "TRT001":
        broken = case(lambda m: m.conv(m.qdq("x")), np.uint8(128))
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(broken(), before)
    content = before.read_bytes()
    linted, fixed = fix_file(before, target, after)
    assert rule in fixed and rule not in {finding.rule for finding in linted.findings}
    assert linted.file == after and before.read_bytes() == content
    assert lint_file(after, target).findings == linted.findings
    one, other = (open_session(path, threads=1).run(feeds(broken()))[0] for path in (before, after))
    if rule == "ORT103":
        assert np.abs(one - other).max() > 0.02  # its weight is no longer rounded
    else:
        np.testing.assert_allclose(one, other, atol=0.021)  # one step where another kernel rounds


def test_a_name_that_the_file_has_for_something_else_is_not_taken(tmp_path: Path) -> None:
    model = CASES["ORT103"][1]()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(7), "lowest"))
    onnx.save(model, tmp_path / "before.onnx")
    _, fixed = fix_file(tmp_path / "before.onnx", "ort-cpu", tmp_path / "after.onnx")
    assert fixed == ["ORT103"]
    (ran,) = open_session(tmp_path / "after.onnx", threads=1).run(feeds(model))
    assert ran.min() < 1.0  # a Max with 7 would have raised everything


def test_what_is_not_valid_is_not_fixed(tmp_path: Path) -> None:
    onnx.save(CASES["Q001"][1](), tmp_path / "before.onnx")
    with pytest.raises(ModelError, match="not valid ONNX"):
        fix_file(tmp_path / "before.onnx", "ort-cpu", tmp_path / "after.onnx")
    assert not (tmp_path / "after.onnx").exists()


def test_nothing_is_fixed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(GOOD_CONV(), path)
    with pytest.raises(SchemeError, match="in place"):
        fix_file(path, "ort-cpu", path)


def test_the_runtime_s_own_file_has_no_error_here_and_is_refused_by_tensorrt(tmp_path: Path) -> None:
    work = bench("residual", tmp_path)
    static = tmp_path / "static.onnx"
    data = iter([{name: value.numpy() for name, value in work.inputs.items()}])
    quantize_with_onnxruntime(work.float_file, data, static, reduce_range=True)
    assert lint_file(static, "ort-cpu").count("error") == 0
    assert {"TRT001", "TRT003"} <= {finding.rule for finding in lint_file(static, "tensorrt").findings}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w5a8"])
def test_our_own_files_are_clean(scheme: str, tmp_path: Path) -> None:
    for name in ("residual", "inception", "tokens"):
        (tmp_path / name).mkdir()
        work = bench(name, tmp_path / name)
        path, _ = work.emit(work.place(work.uniform(scheme)))
        assert lint_file(path, "ort-cpu").findings == ()


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="did you mean 'tensorrt'"):
        lint_file(tmp_path / "m.onnx", "tensorr")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sarif = tmp_path / "m.onnx", tmp_path / "m.sarif"
    onnx.save(CASES["ORT101"][1](), path)
    assert main(["lint", str(path)]) == 0
    assert "ORT101" in capsys.readouterr().out
    assert main(["lint", str(path), "--strict"]) == 1
    assert main(["lint", str(path), "--target", "tensorrt", "--json", "--sarif", str(sarif)]) == 1
    written = json.loads(sarif.read_text())
    results = written["runs"][0]["results"]
    assert {result["ruleId"] for result in results} == {finding.rule for finding in lint_file(path, "tensorrt").findings}
    assert {rule["id"] for rule in written["runs"][0]["tool"]["driver"]["rules"]} == {rule.id for rule in RULES["tensorrt"]}
    assert main(["lint", str(path), "--fix", str(tmp_path / "n.onnx")]) == 0
    assert main(["lint", str(tmp_path / "absent.onnx")]) == 2


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(CASES["ORT101"][1](), path)
    main(["lint", str(path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["warnings"] == 1 and told["errors"] == 0 and told["findings"][0]["rule"] == "ORT101" and told["fixed"] == []


def test_sarif_names_the_node() -> None:
    findings = lint_model(CASES["ORT101"][1](), RULES["ort-cpu"])
    run = to_sarif("m.onnx", findings, RULES["ort-cpu"], "1")["runs"][0]
    assert run["results"][0]["locations"][0]["logicalLocations"][0]["name"] == findings[0].node


# Files that are not to be trusted.


def external(location: str, tmp_path: Path, length: int = 64) -> Path:
    model = case(lambda m: m.op("Add", "x", m.const(np.zeros(16, np.float32))))()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "inner" / "m.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "absent", "", "link", "\0"])
def test_data_outside_the_folder_is_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    path = external(location, tmp_path)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="beside the model"):
        open_model(path)


def test_data_beside_the_model_is_read(tmp_path: Path) -> None:
    path = external("data", tmp_path)
    (path.parent / "data").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    tensor = open_model(path).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.arange(16))
    with pytest.raises(ModelError, match="a part of a file"):
        open_model(external("data", tmp_path, length=65))


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = GOOD_CONV()
    change(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no network"),
        (b"not a model at all", "not a complete ONNX file"),
        (changed(lambda model: None)[:-40], "not a complete ONNX file"),
        (changed(lambda model: model.ClearField("graph")), "no network"),
        (changed(lambda model: setattr(model.graph.node[0], "domain", "evil")), "evil::QuantizeLinear"),
        (changed(lambda model: model.functions.append(helper.make_function("d", "f", [], [], [], []))), "functions"),
    ],
)
def test_what_is_no_plain_onnx_file_is_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says):
        open_model(path)


def test_too_many_nodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.loading.from_onnx.opening.MOST_NODES", 3)
    onnx.save(GOOD_CONV(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="at most 3"):
        open_model(tmp_path / "m.onnx")
    monkeypatch.setattr("quantkit.loading.from_onnx.opening.MOST_BYTES", 10)
    with pytest.raises(ModelError, match="at most 10"):
        open_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_raise_nothing_but_one_line(count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(count)
    originals = [row[1]().SerializeToString() for rule, row in CASES.items() if rule != "Q001"]
    path, opened = tmp_path / "m.onnx", 0
    for turn in range(count):
        content = mutated(originals[turn % len(originals)], random, turn % 2 == 0)
        path.write_bytes(content)
        try:
            model = open_model(path)
        except ModelError as error:
            assert "\n" not in str(error)
            continue
        opened += 1
        for target in RULES:
            lint_model(model, RULES[target])
            try:
                fix_file(path, target, tmp_path / "fixed.onnx")
            except ModelError as error:
                assert "\n" not in str(error)
    assert opened > count // 2
