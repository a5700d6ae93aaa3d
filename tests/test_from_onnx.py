"""Networks from ONNX files: every operator against ONNX Runtime, whole networks against the torch model that they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import toys
from mutation import mutated
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from standard_cases import standard_cases
from test_disk import decide_by_no_clock
from test_pipeline import data
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import quantkit
from quantkit.core.errors import ModelError
from quantkit.export.float_onnx import export_float
from quantkit.loading import load_model
from quantkit.loading.from_onnx import comparison
from quantkit.loading.from_onnx.network import read_onnx
from quantkit.loading.from_onnx.operators import OPERATORS
from quantkit.network.capture import capture
from quantkit.network.captured import Captured

MAP, ROW, TOKENS = (2, 4, 6, 8), (2, 6), (2, 5, 6)


def array(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def number(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One node: its inputs of these shapes, then these constants ("" leaves one out), in this opset."""

    kind: str
    shapes: Sequence[tuple[int, ...]] = (MAP,)
    constants: Sequence[Any] = ()
    opset: int = 21
    outputs: int = 1
    positive: bool = False
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


def written(case: Case, folder: Path) -> Path:
    names = [f"x{place}" for place in range(len(case.shapes))]
    stored = {f"c{place}": value for place, value in enumerate(case.constants) if not isinstance(value, str)}
    given = [*names, *(f"c{place}" if f"c{place}" in stored else "" for place in range(len(case.constants)))]
    outputs = [f"y{place}" for place in range(case.outputs)]
    nodes = []
    if case.positive:
        nodes = [helper.make_node("Abs", ["x0"], ["positive"])]
        given[0] = "positive"
    nodes.append(helper.make_node(case.kind, given, outputs, name=f"/{case.kind}", **case.attributes))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, case.shapes, strict=True)]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    path = folder / "case.onnx"
    onnx.save(model, path)
    return path


PLAIN = (
    "Abs", "ArgMax", "ArgMin", "Atan", "Ceil", "Celu", "Cos", "Dropout", "Elu", "Erf", "Exp",
    "Flatten", "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "LpNormalization", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softmax", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", "Transpose",
)  # fmt: skip
CASES = {
    **{kind: Case(kind) for kind in PLAIN},
    **{f"{kind} of two": Case(kind, (MAP, MAP)) for kind in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")},
    **{f"{kind} of positive numbers": Case(kind, positive=True) for kind in ("Log", "Sqrt", "Reciprocal")},
    "Div": Case("Div", constants=[number(3)]),
    "Pow": Case("Pow", constants=[number(2)]),
    "Add of a vector": Case("Add", constants=[array(8)]),
    "Max of three": Case("Max", (MAP, MAP, MAP)),
    "Max of a number": Case("Max", constants=[number(0.1)]),
    "Min of a number": Case("Min", constants=[number(0.1)]),
    "Clip": Case("Clip", constants=[number(0), number(0.5)]),
    "Clip from below": Case("Clip", constants=[number(0)]),
    "Clip from above": Case("Clip", constants=["", number(0.5)]),
    "Clip of opset 10": Case("Clip", opset=10, attributes={"min": 0.0, "max": 0.5}),
    "HardSigmoid as torch has it": Case("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),
    "PRelu": Case("PRelu", constants=[array(4, 1, 1)]),
    "Softmax over channels": Case("Softmax", attributes={"axis": 1}),
    "Softmax of opset 11": Case("Softmax", opset=11, attributes={"axis": 1}),
    "Conv": Case("Conv", constants=[array(5, 4, 3, 3), array(5)], attributes={"pads": [1, 1, 1, 1]}),
    "Conv without a bias": Case("Conv", constants=[array(5, 4, 3, 3)]),
    "Conv, padded at ends": Case("Conv", constants=[array(5, 4, 3, 3)], attributes={"pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "Conv, same upper": Case("Conv", constants=[array(5, 4, 3, 3)], attributes={"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv, same lower": Case("Conv", constants=[array(5, 4, 2, 2)], attributes={"auto_pad": "SAME_LOWER"}),
    "Conv, valid": Case("Conv", constants=[array(5, 4, 3, 3)], attributes={"auto_pad": "VALID"}),
    "Conv, depthwise": Case("Conv", constants=[array(4, 1, 3, 3)], attributes={"group": 4}),
    "Conv, dilated": Case("Conv", constants=[array(5, 4, 3, 3)], attributes={"dilations": [2, 2]}),
    "Conv of a sequence": Case("Conv", ((2, 4, 9),), [array(5, 4, 3), array(5)], attributes={"pads": [1, 1]}),
    "ConvTranspose": Case("ConvTranspose", constants=[array(4, 5, 2, 2), array(5)], attributes={"strides": [2, 2]}),
    "ConvTranspose, same": Case("ConvTranspose", constants=[array(4, 5, 3, 3)], attributes={"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "ConvTranspose to a size": Case(
        "ConvTranspose", constants=[array(4, 5, 3, 3)], attributes={"strides": [3, 2], "output_shape": [20, 17]}
    ),
    "ConvTranspose, padded at ends": Case("ConvTranspose", constants=[array(4, 5, 3, 3), array(5)], attributes={"pads": [0, 1, 1, 0]}),
    "Gemm": Case("Gemm", (ROW,), [array(3, 6), array(3)], attributes={"transB": 1}),
    "Gemm of a matrix as it lies": Case("Gemm", (ROW,), [array(6, 3), array(3)]),
    "Gemm with factors": Case("Gemm", (ROW,), [array(6, 3), array(3)], attributes={"alpha": 0.5, "beta": 2.0}),
    "Gemm turned": Case("Gemm", ((6, 6),), [array(6, 3), array(3)], attributes={"transA": 1}),
    "MatMul": Case("MatMul", (TOKENS,), [array(6, 3)]),
    "MatMul of two": Case("MatMul", (TOKENS, (2, 6, 3))),
    "BatchNormalization": Case("BatchNormalization", constants=[array(4), array(4, seed=1), array(4, seed=2), np.abs(array(4, seed=3))]),
    "LayerNormalization": Case("LayerNormalization", (TOKENS,), [array(6), array(6, seed=1)]),
    "LayerNormalization over two axes": Case("LayerNormalization", (TOKENS,), [array(5, 6)], attributes={"axis": 1}),
    "InstanceNormalization": Case("InstanceNormalization", constants=[array(4), array(4, seed=1)]),
    "GroupNormalization": Case("GroupNormalization", constants=[array(4), array(4, seed=1)], attributes={"num_groups": 2}),
    "MaxPool": Case("MaxPool", attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    "MaxPool, padded": Case("MaxPool", attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "MaxPool, rounded up": Case("MaxPool", attributes={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool": Case("AveragePool", attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool, padded": Case("AveragePool", attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "AveragePool, dilated": Case("AveragePool", attributes={"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 0, 0, 1]}),
    "AveragePool, same": Case("AveragePool", attributes={"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "AveragePool of volumes": Case("AveragePool", ((2, 3, 5, 6, 7),), attributes={"kernel_shape": [2, 2, 2]}),
    "MaxPool of volumes": Case("MaxPool", ((2, 3, 5, 6, 7),), attributes={"kernel_shape": [2, 2, 2]}),
    "MaxPool and its places": Case("MaxPool", outputs=2, attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool that counts padding": Case(
        "AveragePool", attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "ReduceMean": Case("ReduceMean", constants=[whole(2, 3)]),
    "ReduceMean of opset 13": Case("ReduceMean", opset=13, attributes={"axes": [2, 3], "keepdims": 0}),
    "ReduceSum": Case("ReduceSum", constants=[whole(-1)], attributes={"keepdims": 0}),
    "ReduceMax": Case("ReduceMax", constants=[whole(1)]),
    "ReduceMin": Case("ReduceMin", constants=[whole(1)]),
    "ReduceMean of everything": Case("ReduceMean"),
    **{f"Reduce{kind}": Case(f"Reduce{kind}", constants=[whole(1, -1)]) for kind in ("L1", "L2", "LogSumExp", "Prod", "SumSquare")},
    "ReduceProd without its axes": Case("ReduceProd", constants=[whole(1, 3)], attributes={"keepdims": 0}),
    "ArgMax over channels": Case("ArgMax", attributes={"axis": 1, "keepdims": 0}),
    "LRN": Case("LRN", attributes={"size": 3, "alpha": 0.2, "beta": 0.6, "bias": 1.5}),
    "LpNormalization of absolutes": Case("LpNormalization", attributes={"p": 1, "axis": 1}),
    "OneHot": Case("OneHot", (ROW,), [number(5), np.array([-1, 2], np.float32)], positive=True, attributes={"axis": 1}),
    "TopK": Case("TopK", constants=[whole(3)], outputs=2, attributes={"axis": 1}),
    "TopK of the least": Case("TopK", constants=[whole(2)], outputs=2, attributes={"largest": 0}),
    "ThresholdedRelu of another": Case("ThresholdedRelu", attributes={"alpha": 0.3}),
    "Reshape": Case("Reshape", constants=[whole(0, -1)]),
    "Reshape to more sides than there were": Case("Reshape", ((1, 6),), [whole(1, 6, 1)]),
    "Flatten from an axis": Case("Flatten", attributes={"axis": 2}),
    "Transpose by an order": Case("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    "Squeeze": Case("Squeeze", ((2, 1, 3, 1),), [whole(1, 3)]),
    "Squeeze of opset 11": Case("Squeeze", ((2, 1, 3, 1),), opset=11, attributes={"axes": [1]}),
    "Unsqueeze": Case("Unsqueeze", (ROW,), [whole(1, 3)]),
    "Concat": Case("Concat", (MAP, MAP), attributes={"axis": 1}),
    "Split": Case("Split", constants=[whole(1, 3)], outputs=2, attributes={"axis": 1}),
    "Split into so many": Case("Split", outputs=2, attributes={"axis": 1, "num_outputs": 2}),
    "Split of opset 11": Case("Split", outputs=2, opset=11, attributes={"axis": 1, "split": [1, 3]}),
    "Slice": Case("Slice", constants=[whole(1, 0), whole(3, 100), whole(1, 3), whole(1, 2)]),
    "Slice backwards": Case("Slice", constants=[whole(-1), whole(-100), whole(2), whole(-1)]),
    "Slice of opset 9": Case("Slice", opset=9, attributes={"axes": [1], "starts": [1], "ends": [3]}),
    "Gather one": Case("Gather", constants=[np.array(1, np.int64)], attributes={"axis": 1}),
    "Gather several": Case("Gather", constants=[np.array([[1, 0], [2, 2]], np.int64)], attributes={"axis": 1}),
    "Gather from the end": Case("Gather", constants=[np.array([-1, 0], np.int64)], attributes={"axis": 1}),
    "ScatterND that adds": Case(
        "ScatterND", constants=[np.array([[0, 1], [0, 1]], np.int64), array(2, 6, 8)], opset=18, attributes={"reduction": "add"}
    ),
    "CumSum backwards, without itself": Case("CumSum", constants=[np.array(1, np.int64)], attributes={"reverse": 1, "exclusive": 1}),
    "PRelu of each channel and row": Case("PRelu", constants=[array(4, 6, 1)]),
    "Selu of another": Case("Selu", attributes={"alpha": 1.2, "gamma": 0.9}),
    "Clip without bounds": Case("Clip"),
    "GRU, reset before the product": Case(
        "GRU", ((3, 2, 6),), [array(2, 15, 6), array(2, 15, 5, seed=1), array(2, 30, seed=2)],
        outputs=2, attributes={"hidden_size": 5, "direction": "bidirectional"},
    ),
    "Pad": Case("Pad", constants=[whole(0, 0, 1, 0, 0, 0, 2, 1)]),
    "Pad with a number": Case("Pad", constants=[whole(0, 0, 1, 0, 0, 0, 2, 1), number(0.5)]),
    "Pad by reflection": Case("Pad", constants=[whole(0, 0, 1, 1, 0, 0, 1, 1)], attributes={"mode": "reflect"}),
    "Pad of opset 10": Case("Pad", opset=10, attributes={"pads": [0, 0, 1, 0, 0, 0, 2, 1]}),
    "Resize, nearest": Case(
        "Resize", constants=["", np.array([1, 1, 2, 2], np.float32)],
        attributes={"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "Resize, nearest by centres": Case("Resize", constants=["", np.array([1, 1, 2, 1.5], np.float32)]),
    "Resize, cubic by another": Case(
        "Resize", constants=["", np.array([1, 1, 2, 2], np.float32)],
        attributes={"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    ),
    "Resize, linear of a sequence": Case("Resize", ((2, 4, 9),), ["", np.array([1, 1, 2], np.float32)], attributes={"mode": "linear"}),
    "Resize, smoothed": Case(
        "Resize", constants=["", np.array([1, 1, 0.5, 0.5], np.float32)], opset=18, attributes={"mode": "linear", "antialias": 1}
    ),
    "Resize, by sizes, as scales had to be there": Case(
        "Resize", constants=[np.zeros(0, np.float32), np.zeros(0, np.float32), whole(2, 4, 9, 12)], opset=11
    ),
    "Resize, linear": Case("Resize", constants=["", "", whole(2, 4, 9, 12)], attributes={"mode": "linear"}),
    "Resize, corners": Case(
        "Resize", constants=["", "", whole(2, 4, 9, 12)], attributes={"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    ),
    "DepthToSpace": Case("DepthToSpace", attributes={"blocksize": 2}),
    "DepthToSpace as torch has it": Case("DepthToSpace", attributes={"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": Case("SpaceToDepth", attributes={"blocksize": 2}),
    "Expand": Case("Expand", ((2, 1, 6),), [whole(2, 5, 6)]),
    "Tile": Case("Tile", (ROW,), [whole(1, 3)]),
    "CumSum": Case("CumSum", constants=[np.array(1, np.int64)]),
    "Einsum": Case("Einsum", (TOKENS, (2, 6, 3)), attributes={"equation": "bij,bjk->bik"}),
    "GatherElements": Case("GatherElements", ((2, 4),), [np.array([[0, -1], [2, 1]], np.int64)], attributes={"axis": 1}),
    "GatherND": Case("GatherND", constants=[np.array([[0, 1], [1, 3]], np.int64)]),
    "GatherND of each item": Case("GatherND", constants=[np.array([[[0, 1]], [[1, 3]]], np.int64)], attributes={"batch_dims": 1}),
    "Mod": Case("Mod", constants=[number(2)], attributes={"fmod": 1}),
    "ScatterND": Case("ScatterND", constants=[np.array([[0, 1], [1, 2]], np.int64), array(2, 6, 8)]),
    **{
        f"{kind}, {direction}": Case(
            kind, ((3, 2, 6),), [array(both, gates * 5, 6), array(both, gates * 5, 5, seed=1), array(both, gates * 10, seed=2)],
            outputs=states + 1,
            attributes={"hidden_size": 5, "direction": direction, **({"linear_before_reset": 1} if kind == "GRU" else {})},
        )
        for kind, gates, states in (("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1))
        for direction, both in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
    },
    "LSTM with its first states": Case(
        "LSTM", ((3, 2, 6),),
        [array(1, 20, 6), array(1, 20, 5, seed=1), array(1, 40, seed=2), "", array(1, 2, 5, seed=3), array(1, 2, 5, seed=4)],
        outputs=3, attributes={"hidden_size": 5},
    ),
    "GRU without biases": Case(
        "GRU", ((3, 2, 6),), [array(1, 15, 6), array(1, 15, 5, seed=1)], outputs=2, attributes={"hidden_size": 5, "linear_before_reset": 1}
    ),
    "RNN of rectified sums": Case(
        "RNN", ((3, 2, 6),), [array(1, 5, 6), array(1, 5, 5, seed=1)], outputs=2, attributes={"hidden_size": 5, "activations": ["Relu"]}
    ),
    "Trilu": Case("Trilu", ((2, 5, 5),), attributes={"upper": 0}),
    "Cast": Case("Cast", attributes={"to": TensorProto.INT32}),
    "Where": Case("Where", (), [np.array([[True, False]] * 2), array(2, 2), array(2, 2, seed=1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_operator_answers_as_the_runtime_does(case: Case, tmp_path: Path) -> None:
    """`read_onnx` compares and raises; here it is done once more, from outside."""
    if not case.shapes:
        pytest.skip("constants alone are no network; `test_what_follows_from_constants_is_computed_once` has it")
    path = written(case, tmp_path)
    read = read_onnx(path)
    module, names = read.module, read.outputs
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in case.shapes]
    theirs = InferenceSession(path).run(None, {f"x{place}": value.numpy() for place, value in enumerate(inputs)})
    found = module(*inputs)
    found = found if isinstance(found, tuple) else (found,)

    assert len(found) == len(theirs) == len(names)
    for mine, wanted in zip(found, theirs, strict=True):
        assert tuple(mine.shape) == wanted.shape
        np.testing.assert_allclose(mine.numpy(), wanted, rtol=1e-4, atol=1e-5)


SPELT = (
    "AveragePool, dilated", "Resize, nearest by centres", "Resize, smoothed", "ScatterND that adds",
    "MaxPool and its places",
)  # fmt: skip


@pytest.mark.parametrize("name", SPELT)
def test_forms_that_are_spelt_out_are_captured(name: str, tmp_path: Path) -> None:
    """What torch.export traces is what was compared with ONNX Runtime."""
    read = read_onnx(written(CASES[name], tmp_path))
    module, example = read.module, read.example
    assert example is not None
    found = capture(module, example)
    inputs = list(example.values())
    mine, wanted = (pytree.tree_leaves(each(*inputs)) for each in (found.module, module))
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_standards_own_cases_are_answered_save_these() -> None:
    """Training, peepholes, the order of equal numbers, and two where ONNX Runtime, too, differs from the standard."""
    failed = {case.name for case in standard_cases() if case.apart()}
    assert failed == {
        "test_batchnorm_example_training_mode", "test_batchnorm_epsilon_training_mode", "test_lstm_with_peepholes",
        "test_training_dropout", "test_training_dropout_default", "test_training_dropout_default_mask", "test_training_dropout_mask",
        "test_resize_downsample_scales_cubic_align_corners", "test_resize_downsample_scales_linear_align_corners",
        "test_top_k_same_values", "test_top_k_same_values_2d", "test_top_k_same_values_largest",
    }  # fmt: skip
    assert len(failed) < 0.02 * len(standard_cases())


def test_every_operator_has_a_case() -> None:
    """Save those that whole networks below hold: arithmetic of shapes and of truth values."""
    tried = {case.kind for case in CASES.values()}
    truths = {"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"}
    assert set(OPERATORS) - tried == {*truths, "ConstantOfShape", "Range", "Shape", "Upsample"}


def test_the_page_lists_the_operators_that_there_are() -> None:
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "onnx-file.md").read_text()
    listed = page.partition("<!-- operators -->")[2].partition("<!-- end of operators -->")[0]
    assert listed.replace("\n", " ").replace(" ", "").split(",") == sorted({*OPERATORS, "Constant"})


def test_a_wrong_translation_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(CASES["Conv"], tmp_path)
    read_onnx(path)
    monkeypatch.setitem(OPERATORS, "Conv", lambda call: F.conv2d(call.x(), call.x(1), None, padding=1))  # type: ignore[index]
    with pytest.raises(ModelError, match=r"differs by .* from ONNX Runtime's"):
        read_onnx(path)


class Spelt(nn.Module):
    """A GELU that an exporter spells out, and one that is read in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.GELU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        inner = 1 + torch.erf(y / 2**0.5)
        return self.head(y * inner * 0.5) + inner.sum(-1, keepdim=True)


def test_a_gelu_that_is_spelt_out_is_one_where_nothing_else_reads_of_it(tmp_path: Path) -> None:
    module = read_onnx(exported(Spelt(), torch.randn(2, 5, 6), tmp_path / "spelt.onnx", newer=False)).module
    kinds = [step.kind for step in module.steps]  # type: ignore[union-attr]
    assert kinds.count("Gelu") == 1 and kinds.count("Erf") == 1
    assert {name for name, _ in module.named_parameters()} == {"block.0.weight", "block.0.bias", "head.weight", "head.bias"}


class Shapely(nn.Module):
    """What exporters make of sizes: padding, a head that flattens by the batch, a causal mask of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        y = self.layer(x)
        scores = y @ y.transpose(1, 2)
        mask = torch.arange(length)[:, None] >= torch.arange(length)[None, :]
        y = torch.where(mask, scores, torch.full_like(scores, -9.0)).softmax(-1) @ y
        y = F.pad(y, (0, (4 - y.shape[2] % 4) % 4, 1, 0))[:, 1:, :6]
        return self.head(y.reshape(x.shape[0], -1))


def exported(model: nn.Module, x: Tensor, path: Path, *, newer: bool, fixed: bool = False) -> Path:
    with torch.no_grad():
        if newer:
            shapes = None if fixed else ({0: torch.export.Dim("batch")},)
            torch.onnx.export(model.eval(), (x,), str(path), dynamo=True, dynamic_shapes=shapes, input_names=["x"], verbose=False)
        else:
            axes = None if fixed else {"x": {0: "batch"}}
            torch.onnx.export(
                model.eval(), (x,), str(path), dynamo=False, input_names=["x"], output_names=["scores"], dynamic_axes=axes, opset_version=17
            )
    return path


def alike(one: Captured, other: Captured) -> None:
    """The same layers, in the same order, and the same reasons for what stays float."""
    for mine, theirs in zip(one.graph.layers, other.graph.layers, strict=True):
        known = [(layer.name, layer.kind, layer.weight_shape, layer.groups, layer.macs, layer.activation) for layer in (mine, theirs)]
        assert known[0] == known[1]
    assert [entry.reason for entry in one.graph.unsupported] == [entry.reason for entry in other.graph.unsupported]


@pytest.mark.parametrize("newer", [False, True], ids=["older exporter", "newer exporter"])
@pytest.mark.parametrize("fixed", [False, True], ids=["any batch", "a fixed batch"])
def test_a_network_has_the_layers_that_it_has_from_torch(newer: bool, fixed: bool, tmp_path: Path) -> None:
    x = toys.images(2, seed=0)[0]
    given = x[:1] if fixed else x
    path = exported(toys.trained(), given, tmp_path / "toy.onnx", newer=newer, fixed=fixed)
    loaded = load_model(str(path))
    assert loaded.module is not None and loaded.example is not None
    found = capture(loaded.module, loaded.example, outputs=loaded.outputs)

    alike(found, capture(toys.trained(), {"x": x}))
    assert found.graph.batch is None and found.graph.inputs == ("x",)
    assert newer or found.graph.outputs == ("scores",)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), toys.trained()(x), rtol=1e-4, atol=1e-5)


class Spoken(nn.Module):
    """Two recurrent layers, one over the other, and a linear layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(6, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


RECURRENT = {  # the newer exporter spells an RNN out, step by step
    "LSTM, older exporter": (nn.LSTM, False), "LSTM, newer exporter": (nn.LSTM, True), "GRU, older exporter": (nn.GRU, False),
    "GRU, newer exporter": (nn.GRU, True), "RNN, older exporter": (nn.RNN, False),
}  # fmt: skip


@pytest.mark.parametrize("fixed", [False, True], ids=["any batch", "a fixed batch"])
@pytest.mark.parametrize(("kind", "newer"), RECURRENT.values(), ids=RECURRENT)
def test_a_network_with_recurrent_layers_answers_as_from_torch(kind: type[nn.RNNBase], fixed: bool, newer: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Spoken(kind).eval(), torch.randn(2, 5, 6)
    loaded = load_model(str(exported(model, x, tmp_path / "spoken.onnx", newer=newer, fixed=fixed)))
    assert loaded.module is not None and loaded.example is not None
    found = capture(loaded.module, loaded.example)
    assert [layer.name for layer in found.graph.layers] == ["head"]
    assert {entry.reason.partition(":")[0] for entry in found.graph.unsupported} == {"recurrent"}
    more = torch.randn(7, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(found.module(more), model(more), rtol=1e-4, atol=1e-5)


REFUSED_FORMS = {
    "lengths": ("LSTM", {}, [np.array([3, 2], np.int32)], "sequence_lens"),
    "activations": ("LSTM", {"activations": ["Relu"] * 3}, [], "activations Relu, Relu, Relu"),
    "clipped": ("LSTM", {"clip": 1.0}, [], "a clip of its sums"),
    "coupled": ("LSTM", {"input_forget": 1}, [], "coupled gates"),
    "peepholes": ("LSTM", {}, ["", "", "", array(1, 15)], "peepholes"),
}


@pytest.mark.parametrize(("kind", "attributes", "more", "match"), REFUSED_FORMS.values(), ids=REFUSED_FORMS)
def test_forms_of_recurrent_layers_that_torch_has_not_are_refused(
    kind: str, attributes: dict[str, Any], more: list[Any], match: str, tmp_path: Path
) -> None:
    gates = 4 if kind == "LSTM" else 3
    stored = [array(1, gates * 5, 6), array(1, gates * 5, 5), array(1, gates * 10), *more]
    case = Case(kind, ((3, 2, 6),), stored, outputs=1, attributes={"hidden_size": 5, **attributes})
    with pytest.raises(ModelError, match=match):
        read_onnx(written(case, tmp_path))


def test_a_file_that_takes_its_one_item_apart_is_served_at_its_own_batch(tmp_path: Path) -> None:
    """As detectors do: the first item is picked, and made a batch again."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])
    stored = {"first": np.array(0, np.int64), "axis": whole(0), "w": array(5, 4, 3, 3)}
    nodes = [node("Gather", "x", "first", output="item", axis=0), node("Unsqueeze", "item", "axis", output="again"),
             node("Conv", "again", "w")]  # fmt: skip
    constants = [numpy_helper.from_array(one, name) for name, one in stored.items()]
    graph = helper.make_graph(nodes, "g", [value], [helper.make_empty_tensor_value_info("y")], constants)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    loaded = load_model(str(path))
    assert loaded.module is None and loaded.program is not None
    found = capture(loaded.program, {}, outputs=loaded.outputs)
    assert found.graph.batch == 1 and found.graph.outputs == ("y",) and [layer.kind for layer in found.graph.layers] == ["conv"]
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), F.conv2d(x, torch.from_numpy(stored["w"])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("newer", [False, True], ids=["older exporter", "newer exporter"])
def test_arithmetic_of_shapes_is_followed(newer: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Shapely(), torch.randn(2, 5, 6)
    loaded = load_model(str(exported(model, x, tmp_path / "shapely.onnx", newer=newer)))
    assert loaded.module is not None and loaded.example is not None
    found = capture(loaded.module, loaded.example)
    more = torch.randn(7, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(found.module(more), model(more), rtol=1e-4, atol=1e-5)


def test_an_allocation_from_a_file_is_that_from_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide_by_no_clock(monkeypatch)
    path = exported(toys.trained(), toys.images(2, seed=0)[0], tmp_path / "toy.onnx", newer=False)
    arguments: dict[str, Any] = {"data": data(), "max_drop": 10.0, "minimize": "bytes", "certificate": 0}
    ours = quantkit.allocate(str(path), run=tmp_path / "onnx", **arguments)
    theirs = quantkit.allocate(toys.trained(), run=tmp_path / "torch", **arguments)
    plans = [{row.group: row.scheme for row in result.allocation} for result in (ours, theirs)]
    session = InferenceSession(ours.files.onnx)

    assert ours.kept and plans[0] == plans[1]
    assert [value.name for value in session.get_inputs()] == ["x"] and [value.name for value in session.get_outputs()] == ["scores"]
    assert ours.executed.as_planned and ours.simulation.layers_exact == 1.0


def node(kind: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


def model_of(nodes: Sequence[onnx.NodeProto], path: Path, initializers: Sequence[onnx.TensorProto] = (), domain: str = "") -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph(list(nodes), "g", [value], [helper.make_empty_tensor_value_info("y")], list(initializers))
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_what_follows_from_constants_is_computed_once(tmp_path: Path) -> None:
    stored = [numpy_helper.from_array(value, name) for name, value in
              {"flag": np.array([True, False, True, True]), "a": array(4), "b": array(4, seed=1)}.items()]  # fmt: skip
    path = model_of([node("Where", "flag", "a", "b", output="w"), node("Mul", "x", "w")], tmp_path / "m.onnx", stored)
    module = read_onnx(path).module
    assert [step.kind for step in module.steps] == ["Mul"]  # type: ignore[union-attr]


REFUSED = {
    "an operator that is not translated": (lambda p: model_of([node("Hardmax", "x")], p), r"not translated: Hardmax \(1\)"),
    "a quantized file": (
        lambda p: model_of([node("DynamicQuantizeLinear", "x", output="y")], p), "quantized already.*quantkit gate"
    ),
    "another domain": (
        lambda p: model_of([node("Scaler", "x", domain="ai.onnx.ml")], p, domain="ai.onnx.ml"), "other domains: ai.onnx.ml::Scaler"
    ),
    "a form that is not translated": (lambda p: model_of([node("Cast", "x", to=TensorProto.STRING)], p), "Cast with type 8"),
    "more memory than there is": (
        lambda p: model_of(
            [node("ConstantOfShape", "s", output="z"), node("Add", "x", "z")], p, [numpy_helper.from_array(whole(1 << 40), "s")]
        ),
        "a result of 1,099,511,627,776 numbers",
    ),
    "half a file": (lambda p: p.write_bytes(model_of([node("Relu", "x")], p).read_bytes()[:-7]) and p, "not a complete ONNX file"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_told_in_one_line(make: Callable[[Path], Path], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_model(str(make(tmp_path / "m.onnx")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1200, pytest.param(12_000, marks=pytest.mark.slow)])
def test_mutated_files_are_translated_or_told_in_one_line(count: int, tmp_path: Path) -> None:
    """Files of one operator each, and a network; none takes the memory that it asks for."""
    random, path = np.random.default_rng(count), tmp_path / "m.onnx"
    network_file = exported(toys.trained(), toys.images(2, seed=0)[0], path, newer=False)
    originals = [network_file.read_bytes()]
    originals += [written(case, tmp_path).read_bytes() for case in CASES.values() if case.shapes]
    served = 0
    for turn in range(count):
        path.write_bytes(mutated(originals[turn % len(originals)], random, turn % 3 != 0, most=1))
        try:
            load_model(str(path))
        except ModelError as error:
            assert "\n" not in str(error)
        else:
            served += 1
    assert count / 20 < served < count / 2


LARGE = {
    "padding": (lambda: [node("Pad", "x", "s")], whole(0, 0, 100_000, 100_000)),
    "an expansion": (lambda: [node("Expand", "x", "s")], whole(100_000, 100_000, 2, 4)),
    "a larger map": (
        lambda: [node("Unsqueeze", "x", "a", output="m"), node("Resize", "m", "", "", "s", mode="linear")], whole(1, 1, 100_000, 100_000)
    ),
    "tiles": (lambda: [node("Tile", "x", "s")], whole(100_000, 100_000)),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "sizes"), LARGE.values(), ids=LARGE)
def test_no_operation_takes_the_memory_that_a_file_asks_for(nodes: Callable[[], Any], sizes: Any, tmp_path: Path) -> None:
    """Ten milliard numbers, which would not fit."""
    stored = [numpy_helper.from_array(sizes, "s"), numpy_helper.from_array(whole(0, 1), "a")]
    with pytest.raises(ModelError, match=r"a result of \d\d,\d\d\d,\d\d\d,\d\d\d numbers"):
        load_model(str(model_of(nodes(), tmp_path / "m.onnx", stored)))


def test_an_axis_that_is_made_by_a_matrix_is_as_long_as_fits(tmp_path: Path) -> None:
    """A changed file asked for 600 million numbers of four, as a matrix for ONNX Runtime to make."""
    stored = [numpy_helper.from_array(whole(1, 1, 2, 600_000_000), "s"), numpy_helper.from_array(whole(0, 1), "a")]
    resize = node("Resize", "m", "", "", "s", coordinate_transformation_mode="align_corners")
    with pytest.raises(ModelError, match=r"Resize with 4 numbers along an axis, and 600000000 of them"):
        load_model(str(model_of([node("Unsqueeze", "x", "a", output="m"), resize], tmp_path / "m.onnx", stored)))


@pytest.mark.parametrize("shared", [-3, 2])
def test_axes_that_an_index_cannot_share_are_refused_before_the_runtime_sees_them(shared: int, tmp_path: Path) -> None:
    """ONNX Runtime ends the process where they are negative."""
    stored = [numpy_helper.from_array(whole(0, 1).reshape(2, 1), "s")]
    with pytest.raises(ModelError, match=f"GatherND with batch_dims {shared}"):
        load_model(str(model_of([node("GatherND", "x", "s", batch_dims=shared)], tmp_path / "m.onnx", stored)))


def test_functions_are_spelt_out(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets[:1])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph([node("Twice", "x", domain="mine")], "g", [value], [helper.make_empty_tensor_value_info("y")])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10), tmp_path / "m.onnx")
    module = read_onnx(tmp_path / "m.onnx").module
    torch.testing.assert_close(module(torch.ones(2, 4)), 2 * torch.ones(2, 4))


def test_weights_beside_the_file_count_in_its_digest(tmp_path: Path) -> None:
    digests = set()
    for seed in range(2):
        stored = numpy_helper.from_array(array(4, 512, seed=seed), "w")
        graph = helper.make_graph(
            [node("MatMul", "x", "w")], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
            [helper.make_empty_tensor_value_info("y")], [stored],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        digests.add(load_model(str(tmp_path / "m.onnx")).digest)
    assert len(digests) == 2


def test_a_shared_matrix_is_one_parameter(tmp_path: Path) -> None:
    stored = [numpy_helper.from_array(array(4, 4), "w")]
    path = model_of([node("MatMul", "x", "w", output="z"), node("MatMul", "z", "w")], tmp_path / "m.onnx", stored)
    module = read_onnx(path).module
    assert len(list(module.parameters())) == 1


def test_a_bias_that_others_read_stays_an_addition(tmp_path: Path) -> None:
    stored = [numpy_helper.from_array(array(4, 4), "w"), numpy_helper.from_array(array(4), "b")]
    nodes = [node("MatMul", "x", "w", output="z"), node("Add", "z", "b", output="a"), node("Mul", "z", "a")]
    module = read_onnx(model_of(nodes, tmp_path / "m.onnx", stored)).module
    assert [step.kind for step in module.steps] == ["MatMul", "Add", "Mul"]  # type: ignore[union-attr]
    merged = read_onnx(model_of([node("MatMul", "x", "w", output="z"), node("Add", "z", "b")], tmp_path / "m.onnx", stored)).module
    assert [step.kind for step in merged.steps] == ["MatMul"] and len(list(merged.parameters())) == 2  # type: ignore[union-attr]


def test_the_comparison_can_fail_by_its_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(CASES["Gelu"], tmp_path)
    monkeypatch.setitem(OPERATORS, "Gelu", lambda call: F.gelu(call.x(), approximate="tanh"))  # type: ignore[index]
    read_onnx(path)  # by 5e-4 at most
    monkeypatch.setattr(comparison, "RELATIVE", 1e-6)
    with pytest.raises(ModelError, match="differs"):
        read_onnx(path)


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Div"])
def test_a_number_may_stand_before_the_tensor(kind: str, tmp_path: Path) -> None:
    """Through torch's own exporter, which takes none there."""
    stored = [numpy_helper.from_array(number(0.5), "half"), numpy_helper.from_array(array(4, 4), "w")]
    path = model_of([node("MatMul", "x", "w", output="z"), node(kind, "half", "z")], tmp_path / "m.onnx", stored)
    loaded = load_model(str(path))
    assert loaded.module is not None and loaded.example is not None
    found = capture(loaded.module, loaded.example)
    export_float(found, tmp_path / "float.onnx", 20)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    theirs = InferenceSession(path).run(None, {"x": x})[0]
    np.testing.assert_allclose(InferenceSession(tmp_path / "float.onnx").run(None, {"x": x})[0], theirs, rtol=1e-4, atol=1e-5)


def test_a_file_that_is_too_large_for_memory_is_compared_with_its_weights_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered for it; a weight that lies there changed is found, so the answers are those of the file."""
    path = exported(toys.trained(), toys.images(2, seed=0)[0], tmp_path / "plain.onnx", newer=False)
    model = onnx.load(path)
    monkeypatch.setattr(comparison, "MOST_IN_MEMORY", 0)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    told: list[Path] = []
    real = comparison._with_weights_outside
    monkeypatch.setattr(comparison, "_with_weights_outside", lambda path, options: told.append(path) or real(path, options))
    module = read_onnx(tmp_path / "m.onnx").module
    assert told == [tmp_path / "m.onnx"] and module(toys.images(2, seed=0)[0]).shape == (2, toys.CLASSES)
