"""The simulation against ONNX Runtime's own file, bit for bit.

Equality holds on any x86-64 CPU, with or without VNNI: `separate_pairs` keeps every two neighbouring products within int16, so
that no kernel saturates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Bench, Formed, build, formed, images, run
from torch import Tensor, nn
from torch.export import export

from quantkit.core.numerics.affine import dequantize, fake_quantize
from quantkit.core.spec import QuantSpec, parse_scheme, parse_schemes
from quantkit.network.capture import capture
from quantkit.quantization.simulation.program import Simulation
from quantkit.runtimes.evaluation import open_session
from quantkit.targets import ort_cpu
from quantkit.targets.placement import Placement

SCHEMES = parse_schemes(("w8a8", "w4a8"))
FLOAT = Placement({}, frozenset(), frozenset(), {})


def random_allocation(work: Bench, seed: int) -> dict[str, str]:
    """Any scheme for layers with weights, int8 or float for the others."""
    generator = np.random.default_rng(seed)
    menus = {layer.name: ["fp32", "w8a8", "w4a8"] if layer.weight else ["fp32", "w8a8"] for layer in work.graph.layers}
    return {name: str(generator.choice(menu)) for name, menu in menus.items()}


def assert_every_output_equal(work: Bench, placement: Placement) -> None:
    path, _ = work.emit(placement)
    simulated = Simulation(work.captured, placement, work.bank).run(work.inputs)["output"]
    for ours, file in zip(simulated, run(open_session(path, threads=1), work.inputs), strict=True):
        assert torch.equal(ours, file)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_output_of_a_uniform_plan_equals_the_file_s(benches: Callable[[str], Bench], name: str, scheme: str) -> None:
    work = benches(name)
    assert_every_output_equal(work, work.place(work.uniform(scheme)))


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_every_output_equals_the_file_s_where_ranges_are_cut(benches: Callable[[str], Bench], observer: str) -> None:
    """Cut ranges end at a histogram's edges: their scales are simple fractions of one another, and additions meet exact ties."""
    plain = benches("residual")
    inputs = {"x": images(64)["x"]}
    inputs["x"][0, 0, 0, 0] = 40.0
    whole, work = (Bench(plain.captured, inputs, plain.folder, kind) for kind in ("minmax", observer))
    assert work.bank.activations["relu"].scale < whole.bank.activations["relu"].scale
    assert_every_output_equal(work, work.place(work.uniform("w8a8")))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_mixed_plan_equals_the_file_s_given_its_inputs(benches: Callable[[str], Bench], name: str) -> None:
    work = benches(name)
    for seed in range(4):
        placement = work.place(random_allocation(work, seed))
        path, emitted = work.emit(placement)
        assert work.executed(path, placement).mismatches == ()
        assert work.parity(path, placement, emitted).layers_exact == 1.0


FORMS: dict[str, Callable[[Formed, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "max pool, rounded up and padded": lambda m, x: m.b(F.max_pool2d(m.a(x), 3, 2, 1, ceil_mode=True)),
    "convolution in one dimension": lambda m, x: m.one(F.relu(m.one(m.a(x).flatten(2)))),
    "dilated with strides": lambda m, x: F.conv2d(F.relu(m.a(x)), m.b.weight, m.b.bias, stride=(2, 3), padding=(1, 2), dilation=(1, 2)),
    "average pools": lambda m, x: m.b(F.avg_pool2d(F.relu(m.a(x)), 3, 2, 1)) + m.c(F.adaptive_avg_pool2d(m.a(x), 5)),
    "average pools without their padding": lambda m, x: m.b(F.avg_pool2d(m.a(x), (3, 2), 2, 1, ceil_mode=True, count_include_pad=False)),
    "average pools that cannot": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, ceil_mode=True)) + m.c(F.avg_pool2d(m.a(x), 2)),
    "average by a divisor": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, divisor_override=4)),
    "adaptive average": lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), (5, 2))) + m.c(F.adaptive_avg_pool2d(m.a(x), (5, 2))),
    "adaptive averages over unequal windows": lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 3)),
    "softmax between": lambda m, x: m.b(m.a(x).softmax(1)),
    "global pools": lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 1)) + m.c(F.relu(m.a(x)).mean((-1, -2), keepdim=True)),
    "global pool of the network's input": lambda m, x: m.fc(x.repeat(1, 3, 1, 1)[:, :8].mean((2, 3))),
    "global pool through a clip": lambda m, x: m.b(F.relu(m.a(x).mean((2, 3), keepdim=True))),
    "mean of rows": lambda m, x: m.one(m.a(x).mean(2)),
    "average pool in one dimension": lambda m, x: m.one(F.relu(F.avg_pool1d(m.a(x).flatten(2), 3, 2, 1))),
    "average pool of a padded tensor": lambda m, x: m.b(F.avg_pool2d(F.pad(F.relu(m.a(x)), (0, 1, 0, 1)), 2)),
    "negative clip": lambda m, x: m.b(F.hardtanh(m.a(x))),
    "clips with one bound": lambda m, x: m.c(m.b(m.a(x).clamp(max=0.3)).clamp(min=-0.2)),
    "float layer behind a wide clip": lambda m, x: m.c(m.b(F.relu(m.a(x))).clamp(-9, 9)),
    "clip of an addition": lambda m, x: F.relu6(m.a(x) + m.b(m.a(x))),
    "broadcast addition": lambda m, x: (lambda t: m.b(t + m.c(t).mean((2, 3), keepdim=True)))(F.relu(m.a(x))),
    "broadcast addition, smaller first": lambda m, x: (lambda t: m.b(m.c(t).mean((2, 3), keepdim=True) + t))(m.a(x)),
    "broadcast addition of a map": lambda m, x: (lambda t: m.b(t + m.c(t)[:, :1]))(m.a(x)),
    "addition of two spread": lambda m, x: (lambda t: m.b(t.mean(2, keepdim=True) + t.mean(3, keepdim=True)))(F.relu(m.a(x))),
    "addition to itself": lambda m, x: (lambda t: m.b(t + t))(F.relu(m.a(x))),
    "addition of a number": lambda m, x: m.b(m.a(x) + 1.5),
    "one joined": lambda m, x: m.b(torch.cat([F.relu(m.a(x))], 1)),
    "three joined": lambda m, x: (lambda t: torch.cat([t, m.b(t), m.c(t)], 1))(F.relu(m.a(x))),
    "joined with itself along rows": lambda m, x: (lambda t: m.b(torch.cat([t, t], -1)))(F.relu(m.a(x))),
    "joined batches": lambda m, x: m.c(torch.cat([F.relu(m.a(x)), m.b(F.relu(m.a(x)))], 0))[: x.shape[0]],
    "output read inside": lambda m, x: (lambda t: (t, m.b(t)))(F.relu(m.a(x))),
    "output twice": lambda m, x: (lambda t: (t, t))(m.a(x)),
    "input to a float and an int8 layer": lambda m, x: torch.cat([m.a(x), F.gelu(x), x], 1),
    "linear with activation goes out": lambda m, x: F.relu(m.fc(F.relu(m.a(x)).mean((2, 3)))),
    "average goes out and on": lambda m, x: (lambda t: (m.fc(t), t))(F.relu(m.a(x)).mean((2, 3))),
    "average behind a pool": lambda m, x: m.fc(F.max_pool2d(F.relu(m.a(x)), 2).mean((2, 3))),
    "convolution goes out": lambda m, x: m.b(m.a(x)),
    "slices and shuffles": lambda m, x: m.b(m.a(x).view(x.shape[0], 2, 4, 10, 10).transpose(1, 2).reshape(x.shape[0], 8, 10, 10)[:, :, :8]),
    "zero padding": lambda m, x: m.b(F.pad(F.relu(m.a(x)), (0, 1, 0, 1))),
    "zero padding that others read": lambda m, x: (lambda t: m.b(t) + m.c(t))(F.pad(m.a(x), (1, 1, 1, 1))),
    "same padding": lambda m, x: F.conv2d(F.relu(m.a(x)), m.b.weight, m.b.bias, padding="same"),
    "tokens without bias": lambda m, x: m.fd(F.linear(m.a(x).flatten(2).transpose(1, 2), m.fc.weight)),
    "tokens through a norm": lambda m, x: m.fd(F.layer_norm(m.fc(m.a(x).flatten(2).transpose(1, 2)), (8,))),
    "nearest resize": lambda m, x: m.b(F.interpolate(F.relu(m.a(x)), scale_factor=2, mode="nearest")) + F.interpolate(x, (20, 20))[:, :1],
    "leaky": lambda m, x: m.b(F.leaky_relu(m.a(x), 0.1)),
    "leaky of a sum": lambda m, x: m.c(F.leaky_relu(m.a(x) + m.b(m.a(x)), 0.3)),
    "squeeze and excite": lambda m, x: (lambda t: m.c(t * torch.sigmoid(m.b(t.mean((2, 3), keepdim=True)))))(F.relu(m.a(x))),
    "hard squeeze and excite": lambda m, x: (lambda t: m.c(F.hardsigmoid(m.b(t.mean((2, 3), keepdim=True))) * t))(F.relu(m.a(x))),
    "product of maps": lambda m, x: (lambda t: m.c(F.relu(t * m.b(t)) + t[:, :1] * t))(m.a(x)),
    "square": lambda m, x: (lambda t: m.b(t * t))(m.a(x)),
    "product with a number": lambda m, x: m.b(m.a(x) * 1.5),
    "product goes out": lambda m, x: (lambda t: t * m.b(t))(m.a(x)),
    "sigmoid": lambda m, x: m.b(torch.sigmoid(m.a(x))),
    "sigmoid goes out": lambda m, x: torch.sigmoid(m.b(F.relu(m.a(x)))),
    "silu": lambda m, x: m.c(F.silu(m.b(F.silu(m.a(x))))),
    "silu, its sigmoid read elsewhere": lambda m, x: (lambda t: m.c(F.silu(t)) + m.b(torch.sigmoid(t)))(m.a(x)),
    "silu behind linear layers": lambda m, x: m.fd(F.silu(m.fc(m.a(x).mean((2, 3))))) + F.leaky_relu(m.fc(m.a(x).mean((2, 3)))),
    "silu over tokens": lambda m, x: m.fd(F.silu(m.fc(m.a(x).flatten(2).transpose(1, 2)))),
    "inverted residual with gates": lambda m, x: (
        lambda t: t + m.c((lambda u: u * torch.sigmoid(m.b(F.silu(u.mean((2, 3), keepdim=True)))))(F.silu(m.depth(t))))
    )(F.silu(m.a(x))),
    "gated linear unit": lambda m, x: (lambda a, b: m.b(torch.cat([a * torch.sigmoid(b), a], 1)))(*m.a(x).chunk(2, 1)),
    "chunks to a float and an int8 layer": lambda m, x: (lambda a, b: m.b(torch.cat([F.gelu(a), b], 1)))(*F.relu(m.a(x)).split([3, 5], 1)),
    "chunks that go out": lambda m, x: F.relu(m.a(x)).chunk(2, 1),
    "pixel shuffle": lambda m, x: m.two(F.pixel_shuffle(F.relu(m.a(x)), 2)),
    "expanded": lambda m, x: m.b(F.relu(m.a(x))[:, :, :1].expand(-1, -1, 10, -1)),
    "one of many": lambda m, x: m.fc(F.relu(m.a(x)).flatten(2)[:, :, 3]),
    "a weight used twice": lambda m, x: m.c(F.relu(m.b(F.relu(m.b(F.relu(m.a(x))))))),
    "one linear layer used twice, going out": lambda m, x: m.fc(m.fc(F.relu(m.a(x)).mean((2, 3))).abs()),
    "nothing to see": lambda m, x: m.b(F.relu(m.a(x) - 100)),
}


# Variations on the others, for `make test-all`.
SLOW = {
    "clips with one bound",
    "addition of a number",
    "joined with itself along rows",
    "joined batches",
    "output twice",
    "slices and shuffles",
    "tokens through a norm",
    "nothing to see",
    "average by a divisor",
    "adaptive average",
    "broadcast addition of a map",
    "addition of two spread",
    "leaky of a sum",
    "hard squeeze and excite",
    "square",
    "product with a number",
    "product goes out",
    "sigmoid goes out",
    "silu over tokens",
    "chunks that go out",
    "one of many",
}


@pytest.mark.parametrize("form", [pytest.param(form, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, form in FORMS.items()])
def test_every_form_loads_runs_as_planned_and_is_simulated(
    form: Callable[[Formed, Tensor], Tensor | tuple[Tensor, ...]], tmp_path: Path
) -> None:
    work = Bench(formed(form), images(), tmp_path)
    uniform = work.uniform("w8a8")
    for allocation in [uniform, *(random_allocation(work, seed) for seed in range(2))]:
        placement = work.place(allocation)
        path, emitted = work.emit(placement)
        assert work.executed(path, placement).mismatches == ()
        parity = work.parity(path, placement, emitted)
        assert parity.layers_exact == 1.0
        assert parity.exact == 1.0 or allocation != uniform


@pytest.mark.parametrize("name", ["tokens", "mlp", "several"])
def test_a_fixed_batch_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """All shapes known, the runtime fuses more: MatMul and Add would become a Gemm with other arithmetic."""
    make, inputs = NETWORKS[name]
    work = Bench(capture(export(build(make), (), inputs()), {}), inputs(), tmp_path)
    for scheme in SCHEMES:
        placement = work.place(work.uniform(scheme))
        assert work.executed(work.emit(placement)[0], placement).mismatches == ()
        assert_every_output_equal(work, placement)


def test_a_batch_norm_that_could_not_be_folded_hides_no_float_layer(tmp_path: Path) -> None:
    """The runtime folds it into the convolution, which then stands between Q and DQ (random network 42)."""

    def form(m: Formed, x: Tensor) -> Tensor:
        def norm(t: Tensor) -> Tensor:
            return F.batch_norm(t, torch.full((8,), 0.1), torch.full((8,), 1.5))

        return m.c(F.relu(norm(m.b(F.relu(norm(m.b(F.relu(m.a(x)))))))))

    work = Bench(formed(form), images(), tmp_path)
    names = [layer.name for layer in work.graph.layers]
    assert len(names) == 4
    for kept in names:
        placement = work.place({**work.uniform("w8a8"), kept: "fp32"})
        path, emitted = work.emit(placement)
        assert work.executed(path, placement).mismatches == ()
        assert work.parity(path, placement, emitted).layers_exact == 1.0


JOINED: dict[str, tuple[Callable[[Formed, Tensor], Tensor], int]] = {
    "behind ReLU": (lambda m, x: torch.cat([F.relu(m.b(m.a(x))), F.relu(m.c(m.a(x)))], 1), 2),
    "nested, through a pool": (
        lambda m, x: (lambda t: torch.cat([t, F.max_pool2d(torch.cat([F.relu(m.b(t)), F.relu(m.c(t))], 1), 3, 1, 1)], 1))(F.relu(m.a(x))),
        3,
    ),
    "not what others read": (lambda m, x: (lambda t: torch.cat([F.relu(m.b(t)), t], 1))(F.relu(m.a(x))), 1),
    "not what ReLU would cut": (lambda m, x: torch.cat([F.relu(m.b(m.a(x))), m.c(m.a(x))], 1), 1),
    "not what a clip would cut": (lambda m, x: torch.cat([F.hardtanh(m.b(m.a(x)), 0, 0.1), F.relu(m.c(m.a(x)))], 1), 1),
}


@pytest.mark.parametrize(("form", "shared"), JOINED.values(), ids=JOINED)
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_what_only_a_concatenation_reads_takes_its_grid(
    form: Callable[[Formed, Tensor], Tensor], shared: int, observer: str, tmp_path: Path
) -> None:
    """Codes are then copied. The file runs as planned, bit for bit as simulated, with any one layer kept in float too."""
    work = Bench(formed(form), images(), tmp_path, observer)
    joined = [layer for layer in work.graph.layers if layer.kind == "concat"]
    sources = {work.graph.source(name) for layer in joined for name in layer.inputs}
    grids = [work.bank.activations[layer.output] for layer in joined]
    assert sum(any(work.bank.activations[name] is grid for grid in grids) for name in sources) == shared
    uniform = work.uniform("w8a8")
    for allocation in [uniform, *({**uniform, layer.name: "fp32"} for layer in work.graph.layers)]:
        placement = work.place(allocation)
        path, emitted = work.emit(placement)
        assert work.executed(path, placement).mismatches == ()
        parity = work.parity(path, placement, emitted)
        assert parity.layers_exact == 1.0 and (parity.exact == 1.0 or allocation != uniform)


POOLED: dict[str, Callable[[Formed, Tensor], Tensor]] = {
    "of a convolution": lambda m, x: m.b(F.max_pool2d(F.relu(m.a(x)), 3, 2)),
    "of a concatenation": lambda m, x: m.wide(F.max_pool2d(torch.cat([F.relu(m.b(m.a(x))), F.relu(m.c(m.a(x)))], 1), 3, 2)),
    "of a sum, twice": lambda m, x: m.b(F.max_pool2d(F.max_pool2d(F.relu(m.c(F.relu(m.a(x))) + m.a(x)), 2, 1), 2)),
}


@pytest.mark.parametrize("form", POOLED.values(), ids=POOLED)
def test_no_pool_takes_codes_that_are_not_channels_last(form: Callable[[Formed, Tensor], Tensor], tmp_path: Path) -> None:
    """Whichever layer stays float: ONNX Runtime's plain MaxPool is far slower on codes. The bits are the simulation's."""
    work = Bench(formed(form), images(), tmp_path)
    uniform, held = work.uniform("w8a8"), 0
    for allocation in [uniform, *({**uniform, layer.name: "fp32"} for layer in work.graph.layers)]:
        placement = work.place(allocation)
        path, emitted = work.emit(placement)
        assert work.executed(path, placement).mismatches == () and work.parity(path, placement, emitted).layers_exact == 1.0
        graph = onnx.load(path.with_suffix(".optimized.onnx")).graph
        coded = {name for node in graph.node if node.op_type.startswith(("QLinear", "Quantize")) for name in node.output}
        assert not [node.name for node in graph.node if node.op_type == "MaxPool" and node.input[0] in coded]
        held += bool(placement.pools)
    assert held > 0


def test_weights_that_would_saturate_do_not(tmp_path: Path) -> None:
    """All weights as large as can be and of one sign, all inputs at their highest code: the worst for an int16 sum of two products."""
    model = build(lambda: Formed(lambda m, x: m.fc(F.relu(m.b(F.relu(m.a(x)))).flatten(2).transpose(1, 2).mean(1))))
    for parameter in model.parameters():
        parameter.data = torch.ones_like(parameter)
    inputs = {"x": torch.full((8, 3, 10, 10), 3.0)}
    work = Bench(capture(model, inputs), inputs, tmp_path)
    b = work.graph.layer("b")
    codes = ort_cpu.product_rows(b, work.bank.weight(b, _weights("w8a8")).codes)[0]
    assert codes[:, 0::2].add(codes[:, 1::2]).abs().max() <= 128 and codes.abs().max() >= 63
    assert_every_output_equal(work, work.place(work.uniform("w8a8")))


def test_sums_beyond_float32_are_exact(tmp_path: Path) -> None:
    """4,096 products of up to 255 · 127 pass 2^24, where float32 loses the last bits."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4096, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.head(x))

    model = build(Wide)
    assert isinstance(model, Wide)
    model.head.weight.data = model.head.weight.data.abs() + 0.2
    inputs = {"x": torch.rand(8, 4096, generator=torch.Generator().manual_seed(0)) + 1}
    work = Bench(capture(model, inputs), inputs, tmp_path)
    placement = work.place(work.uniform("w4a8"))
    assert 255 * work.bank.weight(work.graph.layer("head"), _weights("w8a8")).codes.abs().sum(1).max() > 1 << 24
    assert_every_output_equal(work, placement)
    assert_every_output_equal(work, work.place(work.uniform("w8a8")))


@pytest.mark.parametrize("name", NETWORKS)
def test_rerunning_behind_a_change_equals_a_whole_pass(benches: Callable[[str], Bench], name: str) -> None:
    work = benches(name)
    base = Simulation(work.captured, FLOAT, work.bank).run(work.inputs)
    kept = {key: value.clone() for key, value in base.items() if isinstance(value, Tensor)}
    for layer in work.graph.layers:
        simulation = Simulation(work.captured, ort_cpu.isolate(work.graph, [layer.name], parse_scheme("w8a8")), work.bank)
        again, whole = simulation.rerun(base, [layer.node])["output"], simulation.run(work.inputs)["output"]
        assert all(torch.equal(one, other) for one, other in zip(again, whole, strict=True))
        assert not all(torch.equal(one, other) for one, other in zip(again, base["output"], strict=True))
    assert all(torch.equal(base[key], value) for key, value in kept.items())


def test_an_isolated_layer_is_quantized_alone(benches: Callable[[str], Bench]) -> None:
    work = benches("residual")
    layer = work.graph.layer("two")
    values = Simulation(work.captured, ort_cpu.isolate(work.graph, ["two"], parse_scheme("w4a8")), work.bank).run(work.inputs)
    plain = Simulation(work.captured, FLOAT, work.bank).run(work.inputs)
    assert torch.equal(values[layer.inputs[0]], plain[layer.inputs[0]])
    assert layer.weight is not None and layer.bias is not None
    weight = work.bank.weight(layer, _weights("w4a8"))
    x = fake_quantize(plain[layer.inputs[0]], work.bank.input_qparams(layer, 0))
    wanted = F.conv2d(x, dequantize(weight.codes, weight.qparams), work.bank.parameter(layer.bias), padding=1)
    torch.testing.assert_close(values[layer.node], wanted, rtol=1e-4, atol=1e-4)
    assert len(values[layer.node].unique()) > 256  # its output is left to its readers


def test_without_a_plan_the_simulation_is_the_network(benches: Callable[[str], Bench]) -> None:
    work = benches("inception")
    values = Simulation(work.captured, FLOAT, work.bank).run(work.inputs)
    assert torch.equal(values["output"][0], work.captured.module(*work.inputs.values()))


def test_averages_of_codes_are_taken_in_steps(benches: Callable[[str], Bench]) -> None:
    work = benches("residual")
    placement = work.place({**work.uniform("w8a8"), "global_pool": "fp32"})
    assert placement.unscaled == {"mean"}
    values = Simulation(work.captured, placement, work.bank).run(work.inputs)
    source, qparams = work.graph.layer("add").output, work.bank.output_qparams(work.graph.layer("add"))
    steps = (values[source].double() / qparams.scale.double()).round()
    assert torch.equal(values["mean"], (steps.sum((2, 3), keepdim=True) / 25).float() * qparams.scale)


def test_the_captured_module_is_left_as_it_was(benches: Callable[[str], Bench]) -> None:
    work = benches("mlp")
    before = {name: value.clone() for name, value in work.captured.module.state_dict().items()}
    nodes = [node.format_node() for node in work.captured.module.graph.nodes]
    Simulation(work.captured, work.place(work.uniform("w4a8")), work.bank).run(work.inputs)
    assert all(torch.equal(value, before[name]) for name, value in work.captured.module.state_dict().items())
    assert nodes == [node.format_node() for node in work.captured.module.graph.nodes]


def test_a_layer_that_differs_is_seen(benches: Callable[[str], Bench]) -> None:
    work = benches("chain")
    placement = work.place(work.uniform("w8a8"))
    path, emitted = work.emit(placement)
    wrong = Bench(work.captured, work.inputs, work.folder)
    wrong.bank.weight(wrong.graph.layer("b"), _weights("w8a8")).codes[0, 0, 0, 0] += 20
    assert wrong.parity(path, placement, emitted).layers_exact == pytest.approx(2 / 3)


def _weights(scheme: str) -> QuantSpec:
    spec = parse_scheme(scheme).weights
    assert spec is not None
    return spec
