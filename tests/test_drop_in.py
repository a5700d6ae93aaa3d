"""ONNX files that are not one straight graph: branches, ends that stay as they are, and the file that takes the place of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import toys
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from test_disk import decide_by_no_clock
from test_from_onnx import array, exported
from test_pipeline import data

import quantkit
from quantkit import pipeline
from quantkit.cli.app import main
from quantkit.core.errors import ModelError
from quantkit.export.joining import write_in_place
from quantkit.loading.from_onnx.comparison import differs
from quantkit.loading.from_onnx.network import read_onnx
from quantkit.runs.result import Result
from quantkit.settings.request import resolve_model


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, **attributes)


def branch(kind: str, name: str) -> onnx.GraphProto:
    """A graph that reads `z` from outside."""
    return helper.make_graph([node(kind, ["z"], [name])], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def model(nodes: list[onnx.NodeProto], path: Path, opset: int = 20, **stored: np.ndarray[Any, Any]) -> Path:
    value = helper.make_tensor_value_info("in.put:0", TensorProto.FLOAT, ["batch", 4, 6, 6])
    constants = [numpy_helper.from_array(each, name) for name, each in {"w": array(5, 4, 3, 3), **stored}.items()]
    graph = helper.make_graph(nodes, "own", [value], [helper.make_empty_tensor_value_info("y")], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    made.metadata_props.append(onnx.StringStringEntryProto(key="classes", value="cat,dog"))
    onnx.save(onnx.shape_inference.infer_shapes(made), path)
    return path


CONV = node("Conv", ["in.put:0", "w"], ["z"])
SIZE = [node("Shape", ["z"], ["sides"]), node("Gather", ["sides", "axis"], ["side"]), node("Equal", ["side", "wanted"], ["is"])]


@pytest.mark.parametrize(("wanted", "kind"), [(4, "Relu"), (5, "Sigmoid")])
def test_the_branch_that_shapes_choose_takes_the_place_of_an_if(wanted: int, kind: str, tmp_path: Path) -> None:
    choice = node("If", ["is"], ["y"], then_branch=branch("Relu", "a"), else_branch=branch("Sigmoid", "b"))
    numbers = {"axis": np.array(2, np.int64), "wanted": np.array(wanted, np.int64)}
    read = read_onnx(model([CONV, *SIZE, choice], tmp_path / "m.onnx", **numbers))
    assert [step.kind for step in read.module.steps if step.kind in ("If", "Relu", "Sigmoid")] == [kind]  # type: ignore[union-attr]
    assert read.file.rest is None


def test_a_branch_within_a_branch_is_chosen_too(tmp_path: Path) -> None:
    inner = node("If", ["is"], ["c"], then_branch=branch("Tanh", "d"), else_branch=branch("Sigmoid", "e"))
    outer = helper.make_graph([inner], "then", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
    choice = node("If", ["is"], ["y"], then_branch=outer, else_branch=branch("Relu", "b"))
    read = read_onnx(model([CONV, *SIZE, choice], tmp_path / "m.onnx", axis=np.array(2, np.int64), wanted=np.array(4, np.int64)))
    assert "Tanh" in [step.kind for step in read.module.steps]  # type: ignore[union-attr]


SUM = [node("ReduceSum", ["z"], ["total"], keepdims=0), node("Greater", ["total", "zero"], ["is"])]


def test_a_branch_that_data_choose_stays_behind_the_network(tmp_path: Path) -> None:
    choice = node("If", ["is"], ["y"], then_branch=branch("Relu", "a"), else_branch=branch("Sigmoid", "b"))
    path = model([CONV, *SUM, choice], tmp_path / "m.onnx", zero=np.array(0, np.float32))
    read = read_onnx(path)
    assert read.file.rest is not None and [one.op_type for one in read.file.rest.nodes] == ["ReduceSum", "Greater", "If"]
    assert read.outputs == ("z",)


def test_it_is_refused_where_layers_with_weights_stand_behind_it(tmp_path: Path) -> None:
    """What comes before holds no weights, so that nothing could be quantized."""
    choice = node("If", ["is"], ["z"], then_branch=branch2("Relu", "a"), else_branch=branch2("Sigmoid", "b"))
    nodes = [node("ReduceSum", ["in.put:0"], ["total"], keepdims=0), node("Greater", ["total", "zero"], ["is"]), choice,
             node("Conv", ["z", "w"], ["y"])]  # fmt: skip
    with pytest.raises(ModelError, match="an If whose branch the numbers of a tensor decide"):
        read_onnx(model(nodes, tmp_path / "m.onnx", zero=np.array(0, np.float32)))


def branch2(kind: str, name: str) -> onnx.GraphProto:
    inner = [node(kind, ["in.put:0"], [name])]
    return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def loop(count: int) -> list[onnx.NodeProto]:
    """`z` doubled so many times."""
    info = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []), helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
    ]  # fmt: skip
    outs = [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, None)]
    body = helper.make_graph([node("Identity", ["going"], ["on"]), node("Add", ["state", "state"], ["next"])], "body", info, outs)
    turns = node("Constant", [], ["count"], value=numpy_helper.from_array(np.array(count, np.int64)))
    return [turns, node("Loop", ["count", "", "z"], ["y"], body=body)]


@pytest.mark.parametrize("opset", [17, 20])
def test_what_stands_behind_the_network_is_given_back_as_it_was(opset: int, tmp_path: Path) -> None:
    """Under the user's names and notes, and in the opset of the network's file. Half the network stands for a quantized one."""
    path = model([CONV, *loop(3)], tmp_path / "m.onnx", opset=opset)
    file = read_onnx(path).file
    network = model([node("Conv", ["x", "w"], ["y"])], tmp_path / "network.onnx", w=array(5, 4, 3, 3) / 2)
    inner = onnx.load(network)
    inner.graph.input[0].name = "x"
    onnx.save(inner, network)
    assert file.inputs == {"in_put_0": "in.put:0"} and file.outputs == ("z",)
    file = type(file)(file.path, {"x": "in.put:0"}, file.outputs, file.rest)
    write_in_place(network, file, tmp_path / "whole.onnx")
    write_in_place(network, file, tmp_path / "shown.onnx", shows_read=True)

    x = {"in.put:0": array(1, 4, 6, 6)}
    before, after = InferenceSession(path), InferenceSession(tmp_path / "whole.onnx")
    np.testing.assert_allclose(after.run(None, x)[0], before.run(None, x)[0] / 2, rtol=1e-5, atol=1e-6)
    assert [value.name for value in after.get_outputs()] == ["y"]
    assert {entry.key: entry.value for entry in onnx.load(tmp_path / "whole.onnx").metadata_props}["classes"] == "cat,dog"
    read, whole = InferenceSession(tmp_path / "shown.onnx").run(None, x)
    np.testing.assert_allclose(read * 8, whole, rtol=1e-6)


def test_the_network_ends_in_the_fewest_tensors_that_the_rest_follows_from(tmp_path: Path) -> None:
    """Each channel is looked at by itself; the network's output is the map that they are cut from, and not the one before its function."""
    parts = [node("Relu", ["z"], ["map"])]
    for channel in range(3):
        parts += [node("Gather", ["map", f"c{channel}"], [f"s{channel}"], axis=1), node("NonZero", [f"s{channel}"], [f"n{channel}"])]
    last = node("Concat", [f"n{channel}" for channel in range(3)], ["y"], axis=1)
    numbers = {f"c{channel}": np.array(channel, np.int64) for channel in range(3)}
    read = read_onnx(model([CONV, *parts, last], tmp_path / "m.onnx", **numbers))

    assert read.outputs == ("map",) and read.file.rest is not None
    assert [one.op_type for one in read.file.rest.nodes] == ["Gather", "NonZero"] * 3 + ["Concat"]
    assert [step.kind for step in read.module.steps] == ["Conv", "Relu"]  # type: ignore[union-attr]


def detector(path: Path, tmp_path: Path) -> Path:
    """The toy network; the largest of its scores is looked for by an operator that is not translated, over boxes that are constants."""
    given = onnx.load(exported(toys.trained(), toys.images(2, seed=0)[0], tmp_path / "toy.onnx", newer=False))
    (scores,) = [value.name for value in given.graph.output]
    classes = given.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    stored = {
        "boxes": np.arange(4 * classes, dtype=np.float32).reshape(1, classes, 4), "most": np.array([3], np.int64),
        "one": np.array([1], np.int64),
    }  # fmt: skip
    given.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    given.graph.node.extend([
        node("Sigmoid", [scores], ["likely"]), node("Unsqueeze", ["likely", "one"], ["rows"]),
        node("NonMaxSuppression", ["boxes", "rows", "most"], ["kept"]),
    ])  # fmt: skip
    del given.graph.output[:]
    given.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.INT64, [None, 3]))
    onnx.save(given, path)
    return path


def test_a_detector_is_quantized_before_its_suppression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide_by_no_clock(monkeypatch)
    path = detector(tmp_path / "detector.onnx", tmp_path)
    run, output = tmp_path / "run", tmp_path / "small.onnx"
    arguments: dict[str, Any] = {"data": data(), "metric": "cosine", "max_drop": 10.0, "minimize": "bytes", "certificate": 0}
    result = quantkit.allocate(str(path), run=run, output=output, **arguments)
    (row,) = result.variants

    assert result.kept and row.name == "drop-in" and row.exact == 1.0 and row.as_planned and row.float_onnx == path
    assert row.latency is not None and row.latency.ratio > 0
    assert output.read_bytes() == row.onnx.read_bytes()
    mine, theirs = InferenceSession(output), InferenceSession(path)
    x = {mine.get_inputs()[0].name: toys.images(1, seed=3)[0].numpy()}
    assert mine.run(None, x)[0].shape == theirs.run(None, x)[0].shape
    assert [value.name for value in mine.get_outputs()] == ["kept"]
    again = Result.from_json(result.to_json(), None, run)
    assert again.variants[0].float_onnx == path and again.delivered == row.onnx
    found = pipeline.inspect(*resolve_model(str(path), {}))
    assert found.behind == ("NonMaxSuppression",)


def test_a_stored_plan_takes_the_place_of_the_file_that_the_run_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit the drop-in of the allocation; another network's file is refused, by its names and by its answers."""
    decide_by_no_clock(monkeypatch)
    path, run, output = detector(tmp_path / "detector.onnx", tmp_path), tmp_path / "run", tmp_path / "again.onnx"
    arguments: dict[str, Any] = {"data": data(), "metric": "cosine", "max_drop": 10.0, "minimize": "bytes", "certificate": 0}
    (row,) = quantkit.allocate(str(path), run=run, **arguments).variants
    assert main(["export", str(run), "--output", str(output), "--in-place-of", str(path)]) == 0
    assert output.read_bytes() == row.onnx.read_bytes()

    other = onnx.load(path)
    weight = next(tensor for tensor in other.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    plain = model([CONV, node("Relu", ["z"], ["y"])], tmp_path / "m.onnx")
    for strange, why in ((tmp_path / "other.onnx", "answers otherwise"), (plain, "other inputs")):
        capsys.readouterr()
        assert main(["export", str(run), "--output", str(tmp_path / "none.onnx"), "--in-place-of", str(strange)]) == 2
        assert not (tmp_path / "none.onnx").exists()
        assert why in capsys.readouterr().err


def test_a_plain_file_has_a_drop_in_under_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide_by_no_clock(monkeypatch)
    path = exported(toys.trained(), toys.images(2, seed=0)[0], tmp_path / "toy.onnx", newer=False)
    given = onnx.load(path)
    for one in given.graph.node:
        one.input[:] = ["image/x:0" if name == "x" else name for name in one.input]
        one.output[:] = ["scores:0" if name == "scores" else name for name in one.output]
    given.graph.input[0].name, given.graph.output[0].name = "image/x:0", "scores:0"
    onnx.save(given, path)
    result = quantkit.allocate(str(path), data=data(), max_drop=10.0, minimize="bytes", certificate=0, run=tmp_path / "run")
    (row,) = result.variants
    session = InferenceSession(row.onnx)
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["image/x:0", "scores:0"]
    assert result.delivered == row.onnx


def test_answers_that_are_no_numbers_are_not_the_same() -> None:
    given = [np.ones((2, 3), np.float32)]
    assert not differs(lambda x: 2 * x, given, [2 * given[0]]) and differs(lambda x: 2.1 * x, given, [2 * given[0]])
    assert differs(lambda x: x * float("nan"), given, [given[0]]) and differs(lambda x: x[:1], given, [given[0]])
