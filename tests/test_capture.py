from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Formed, Mlp, Residual, Several, build, captured, formed, images
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from quantkit.core.errors import CaptureError
from quantkit.core.graph import Graph
from quantkit.core.spec import parse_scheme
from quantkit.export.float_onnx import export_float
from quantkit.loading import from_module, to_program
from quantkit.network.capture import capture
from quantkit.targets import ort_cpu


def through_archive(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_are_a_fixed_point(name: str) -> None:
    once = captured(name)
    assert capture(once.program, {}).graph == once.graph
    assert capture(through_archive(once.program), {}).graph == once.graph


@pytest.mark.parametrize("name", NETWORKS)
def test_names_survive_the_exporter(name: str, tmp_path: Path) -> None:
    network = captured(name)
    export_float(network, tmp_path / "float.onnx", ort_cpu.OPSET)
    file = onnx.load(tmp_path / "float.onnx").graph
    found = {output for node in file.node for output in node.output}
    assert {tensor for layer in network.graph.layers for tensor in (layer.node, layer.output)} <= found
    assert tuple(value.name for value in file.input) == network.graph.inputs
    assert tuple(value.name for value in file.output) == network.graph.outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_the_captured_module_computes_the_network_and_leaves_it_as_it_was(name: str) -> None:
    make, inputs = NETWORKS[name]
    model = build(make)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = capture(model, inputs())
    wanted = model(**inputs())
    got = network.module(*[inputs()[key] for key in network.graph.inputs])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert set(model.state_dict()) == set(before)


def test_layers_of_a_residual_network() -> None:
    graph = captured("residual").graph
    assert [(layer.name, layer.kind) for layer in graph.layers] == [
        ("stem", "conv"),
        ("one", "conv"),
        ("two", "conv"),
        ("shortcut", "conv"),
        ("add", "add"),
        ("global_pool", "global_pool"),
        ("head", "linear"),
    ]
    one = graph.layer("one")
    assert (one.weight, one.bias, one.weight_shape, one.output_shape) == ("one.weight", "one.bias", (16, 8, 3, 3), (16, 5, 5))
    assert one.macs == 16 * 5 * 5 * 8 * 9 and one.activation == ("relu",)
    assert graph.layer("stem").output == "relu" and graph.layer("add").activation == ("relu",)
    assert graph.layer("one").inputs == graph.layer("shortcut").inputs == ("relu",)
    assert graph.layer("add").macs == 0 and graph.layer("add").weight_count == 0
    assert not [tensor for tensor in graph.tensors if "norm" in tensor.name]


def test_movers_lead_back_to_their_source() -> None:
    graph = captured("inception").graph
    assert {mover.kind for mover in graph.movers} >= {"max_pool", "reshape"}
    assert graph.source(graph.layer("grouped").inputs[0]) == graph.layer("stem").output
    assert graph.layer("depthwise").groups == 8 and graph.layer("grouped").groups == 2
    assert graph.layer("grouped").macs == 8 * 5 * 5 * 4 * 9
    assert graph.layer("concat").inputs[2] == "max_pool2d_1"


def test_a_weight_used_twice_is_one_group() -> None:
    graph = captured("mlp").graph
    groups = {group.name: group for group in ort_cpu.groups(graph, [parse_scheme("w8a8"), parse_scheme("fp32")])}
    assert groups["middle"].layers == ("middle", "middle.2")
    assert graph.layer("middle").weight == graph.layer("middle.2").weight == "middle.weight"
    assert set(groups) == {"one", "middle", "last"}


def test_tied_modules_share_a_group_too() -> None:
    model = build(lambda: Formed(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))))
    assert isinstance(model, Formed)
    model.c.weight = model.b.weight
    graph = capture(model, images()).graph
    assert len({layer.weight for layer in graph.layers}) == 2


def test_named_inputs_keep_their_names_in_the_example_s_order() -> None:
    _, inputs = NETWORKS["several"]
    named = inputs()
    graph = capture(build(Several), {"words": named["words"], "picture": named["picture"]}).graph
    assert set(graph.inputs) == {"picture", "words"}
    assert graph.symbolic == {"picture": {0: "batch"}, "words": {0: "batch"}}
    assert graph.batch is None


def test_unnamed_inputs_take_the_names_of_the_forward_pass() -> None:
    _, inputs = NETWORKS["several"]
    assert capture(build(Several), list(inputs().values())).graph.inputs == ("picture", "words")


def test_an_example_of_one_item_is_enough() -> None:
    assert capture(build(Residual), images(1)).graph == captured("residual").graph


def test_a_tensor_that_is_computed_twice_is_one_layer() -> None:
    graph = formed(lambda m, x: F.relu(m.a(x)) + m.b(F.relu(m.a(x)))).graph
    assert [layer.name for layer in graph.layers] == ["a", "b", "add"]


def test_a_fixed_batch_is_kept() -> None:
    x = images(4)["x"]
    graph = capture(export(build(Residual), (x,)), {}).graph
    assert graph.batch == 4 and graph.symbolic == {"x": {}}


class Positions(nn.Module):
    """A learned position for each of at most 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.up = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x + self.positions[:, : x.shape[1]])


def test_a_program_s_own_symbols_are_kept_with_the_network_s_bounds() -> None:
    program = export(Positions(), (torch.randn(4, 7, 8),), dynamic_shapes=({0: Dim("items"), 1: Dim("length", max=16)},))
    network = capture(program, {})
    assert network.graph.symbolic == {"x": {0: "batch", 1: "axis_1"}}
    assert network.graph.layer("up").output_shape == (0, 16)
    assert network.graph.layer("up").macs == 16 * 8
    assert network.module(torch.randn(3, 11, 8)).shape == (3, 11, 16)
    assert 16 in [limits.upper for limits in network.program.range_constraints.values()]


def test_a_program_with_keyword_inputs() -> None:
    _, inputs = NETWORKS["several"]
    named = inputs()
    program = export(build(Several), (named["picture"],), {"words": named["words"]}, dynamic_shapes=({0: Dim("b")}, {0: Dim("b")}))
    graph = capture(program, {}).graph
    assert graph.inputs == ("picture", "words") and graph.batch is None


def test_graphs_survive_json() -> None:
    for name in NETWORKS:
        graph = captured(name).graph
        assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return x + 1


class Measuring(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x[0, 0, 0, 0].item())]


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy())


class Mismatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Branching(), "`if x.sum() > 0:`"),
        (Measuring(), "x[0, 0, 0, 0].item()"),
        (Leaving(), "x.numpy()"),
        (Mismatched(), "self.head(x)"),
    ],
    ids=["branch on a value", "shape from a value", "leaves torch", "wrong shape"],
)
def test_what_torch_refuses_is_one_line_that_names_the_operation(model: nn.Module, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError) as refusal:
        capture(model, images())
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
    assert named in str(refusal.value) and "test_capture.py" in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_a_batch_that_cannot_vary_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1)

    with pytest.raises(CaptureError, match="batch"):
        capture(Fixed(), images())


@pytest.mark.parametrize("make", [Residual, Mlp], ids=["2-D norm", "1-D norm"])
def test_a_training_export_is_refused(make: Callable[[], nn.Module]) -> None:
    inputs = images(4)["x"] if make is Residual else torch.randn(4, 12)
    program = torch.export.export(build(make).train(), (inputs,))
    with pytest.raises(CaptureError, match=r"training mode.*model\.eval\(\)"):
        capture(program, {})


def test_dropout_in_training_is_refused_and_in_inference_dropped() -> None:
    model = build(lambda: Formed(lambda m, x: m.b(F.dropout(m.a(x), 0.5, m.training))))
    assert [layer.name for layer in capture(model, images()).graph.layers] == ["a", "b"]
    with pytest.raises(CaptureError, match="training mode"):
        capture(torch.export.export(model.train(), (images()["x"],)), {})


REASONS: dict[str, tuple[Callable[[Formed, Tensor], Tensor], str, str]] = {
    **{
        function.__name__: (lambda m, x, function=function: function(x), f"{function.__name__}.default", "no int8 kernel")
        for function in (F.hardswish, F.hardsigmoid, F.gelu, torch.tanh, F.elu, F.mish)
    },
    "layer norm": (lambda m, x: F.layer_norm(x, (10,)), "layer_norm.default", "no int8 kernel"),
    "average of rows": (lambda m, x: x.mean(3), "mean.dim", "no int8 kernel"),
    "transposed": (lambda m, x: F.conv_transpose2d(x, m.c.weight), "convolution.default", "runs in float in ONNX Runtime"),
    "softmax": (lambda m, x: x.softmax(1), "softmax.int", "slower than float"),
    "product with a number": (lambda m, x: x * 1.5, "mul.Tensor", "multiplies by a constant"),
    "product with a parameter": (lambda m, x: x * m.fc.bias[:, None, None], "mul.Tensor", "reads a constant"),
    "product with a mask": (lambda m, x: x * (x > 0), "mul.Tensor", "not a float32 value"),
    "average rounded up": (lambda m, x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "avg_pool2d.default", "rounds its size up"),
    "average by its own divisor": (lambda m, x: F.avg_pool2d(x, 3, 2, 0, True, True, 4), "avg_pool2d.default", "a number of its own"),
    "scalar": (lambda m, x: x + 1.5, "add.Tensor", "adds a constant"),
    "parameter": (lambda m, x: x + m.fc.bias[:, None, None], "add.Tensor", "reads a constant"),
    "scaled": (lambda m, x: torch.add(x, m.b(x), alpha=2), "add.Tensor", "scaled addition"),
    "broadcast": (lambda m, x: x.mean(2, keepdim=True) + x.mean(3, keepdim=True), "add.Tensor", "both spread over the other"),
    "constant joined": (lambda m, x: torch.cat([x, m.b.weight[:1, :, :1, :1].expand_as(x)], 1), "cat.default", "constant"),
    "computed weight": (lambda m, x: F.conv2d(x, m.b.weight * 2), "conv2d.default", "its weight is computed"),
    "computed bias": (lambda m, x: F.conv2d(x, m.b.weight, m.b.bias * 2), "conv2d.default", "its bias is computed"),
    "pads with one": (lambda m, x: F.pad(x, (1, 1), value=1.0), "pad.default", "other than zero"),
    "pads by reflection": (lambda m, x: F.pad(x, (2, 2, 2, 2), mode="reflect"), "pad.default", "other than zero"),
    "negative clip": (lambda m, x: F.hardtanh(m.c(x)), "hardtanh.default", "no 8-bit form"),
    "indices": (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d_with_indices.default", "no 8-bit form"),
    "double": (lambda m, x: F.conv2d(x.double(), m.c.weight.double()).float(), "conv2d.default", "not a float32 value"),
}


@cache
def unsupported() -> tuple[set[tuple[str, str]], set[str]]:
    """(operation, reason) of all that REASONS writes, in one network; and its layers."""
    graph = formed(lambda m, x: (lambda t: tuple(form(m, t) for form, _, _ in REASONS.values()))(m.a(x))).graph
    return {(entry.operation, entry.reason) for entry in graph.unsupported}, {layer.name for layer in graph.layers}


@pytest.mark.parametrize(("operation", "reason"), [(operation, reason) for _, operation, reason in REASONS.values()], ids=REASONS)
def test_what_stays_float_is_listed_with_the_reason(operation: str, reason: str) -> None:
    listed, layers = unsupported()
    assert any(operation == found and reason in why for found, why in listed)
    assert layers == {"a", "b", "c"}


CLIPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    "relu": (F.relu, ("relu",)),
    "relu6": (F.relu6, ("clip:0.0:6.0",)),
    "hardtanh from 0": (lambda x: F.hardtanh(x, 0.0, 2.0), ("clip:0.0:2.0",)),
    "clamp at 0": (lambda x: x.clamp(min=0), ("relu",)),
    "clamp of mixed bounds": (lambda x: x.clamp(0, 0.5), ("clip:0.0:0.5",)),
    "both": (lambda x: F.relu6(F.relu(x)), ("clip:0.0:6.0",)),
    "negative lower bound": (F.hardtanh, ()),
    "positive lower bound": (lambda x: x.clamp(0.1, 0.5), ()),
    "negative upper bound": (lambda x: x.clamp(-0.5, -0.1), ()),
    "upper bound only": (lambda x: x.clamp(max=0.5), ()),
}


@cache
def clipped() -> Graph:
    """One convolution for each of CLIPS, in their order."""
    return formed(lambda m, x: tuple(function(m.a(x * (place + 1))) for place, (function, _) in enumerate(CLIPS.values()))).graph


@pytest.mark.parametrize(("place", "absorbed"), list(enumerate(functions for _, functions in CLIPS.values())), ids=CLIPS)
def test_only_functions_whose_lowest_value_is_zero_are_absorbed(place: int, absorbed: tuple[str, ...]) -> None:
    layer = clipped().layers[place]
    assert layer.activation == absorbed
    assert (layer.output == layer.node) == (not absorbed)


def test_an_activation_is_not_absorbed_where_its_input_is_read_or_goes_out() -> None:
    shared = formed(lambda m, x: (lambda t: F.relu(t) + m.b(t))(m.a(x))).graph
    assert shared.layer("a").activation == ()
    outgoing = formed(lambda m, x: (lambda t: (t, F.relu(t)))(m.a(x))).graph
    assert outgoing.layer("a").activation == ()


def test_an_input_may_be_called_as_a_builtin_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)).eval()  # nn.Sequential calls it `input`
    found = capture(network, {"input": torch.zeros(2, 1, 4, 4)})

    assert found.graph.inputs == ("input",)
    assert "input" in {tensor.name for tensor in found.graph.tensors}


def test_data_under_other_names_is_taken_in_order() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 10)).eval()

    assert capture(network, {"images": torch.zeros(2, 1, 4, 4)}).graph.inputs == ("input",)


def test_a_traced_torchscript_says_the_same_as_the_network_it_was_traced_from() -> None:
    """It spells convolutions in general and holds weights as buffers; batch norms behind them are folded all the same."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(
        stem, nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(2), nn.Conv1d(8, 4, 5, stride=2), nn.Flatten(), nn.Linear(4 * 16, 5)
    )
    stem[1].running_mean = torch.randn(8)
    model.eval()
    example = torch.randn(2, 3, 8, 8)
    script = from_module(torch.jit.trace(model, example))
    program = to_program(script, {"0": example}).program
    assert program is not None
    ours, traced = capture(model, [example]), capture(program, {"input": example})

    def say(graph: Graph) -> list[tuple[object, ...]]:
        return [(layer.kind, layer.weight_shape, layer.output_shape, layer.macs) for layer in graph.layers]

    assert say(traced.graph) == say(ours.graph) and len(ours.graph.layers) == 4 and not traced.graph.unsupported
    torch.testing.assert_close(traced.module(example), model(example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_float_for_a_reason_and_its_first_state_is_not_listed(kind: type[nn.RNNBase]) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    graph = capture(Steps().eval(), {"x": torch.zeros(2, 5, 6)}).graph
    assert [layer.name for layer in graph.layers] == ["head"]
    assert [entry.operation for entry in graph.unsupported] == [{"RNN": "rnn_tanh"}.get(kind.__name__, kind.__name__.lower()) + ".input"]
    assert graph.unsupported[0].reason.startswith("recurrent")
