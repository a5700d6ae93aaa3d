from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import Formed, captured, formed

from quantkit.core.errors import SchemeError
from quantkit.core.graph import Graph, Group, Layer, Mover, Tensor, Unsupported
from quantkit.core.spec import FLOAT, HALF, PerChannel, PerGroup, QuantSpec, parse_scheme, parse_schemes
from quantkit.settings.options import SCHEMES
from quantkit.targets import TARGETS, find_target, ort_cpu, tensorrt
from quantkit.targets.common import uniform
from quantkit.targets.placement import Placement


def conv(name: str, source: str, **changes: object) -> Layer:
    return Layer(name, "conv", name, name, (source,), (), f"{name}.weight", f"{name}.bias", (8, 8, 3, 3), output_shape=(8, 4, 4), **changes)  # type: ignore[arg-type]


def linear(name: str, source: str, shape: tuple[int, ...] = (8,), activation: tuple[str, ...] = ()) -> Layer:
    return Layer(name, "linear", name, name, (source,), activation, f"{name}.weight", f"{name}.bias", (8, 8), output_shape=shape)


def joined(name: str, kind: str, *sources: str) -> Layer:
    return Layer(name, kind, name, name, sources, output_shape=(8, 4, 4))


def network(*layers: Layer, movers: tuple[Mover, ...] = (), unsupported: tuple[Unsupported, ...] = ()) -> Graph:
    names = ["x", *(layer.output for layer in layers), *(mover.node for mover in movers), *(entry.node for entry in unsupported)]
    outputs = (layers[-1].output,)
    tensors = tuple(Tensor(name, (8, 4, 4), (), name in outputs) for name in names)
    return Graph(layers, movers, unsupported, tensors, ("x",), outputs, {})


def place(graph: Graph, schemes: str) -> Placement:
    """`schemes`: one letter a layer, `8` or `4` for int8, `f` for float."""
    names = {"8": "w8a8", "4": "w4a8", "f": "fp32"}
    return ort_cpu.place(graph, {layer.name: parse_scheme(names[letter]) for layer, letter in zip(graph.layers, schemes, strict=True)})


def test_every_kernel_but_gemm_has_codes_on_both_sides() -> None:
    graph = network(conv("a", "x"), conv("b", "a"), joined("c", "add", "a", "b"), joined("d", "concat", "c", "a", "x"))
    placement = place(graph, "8488")
    assert placement.inputs == {("a", 0), ("b", 0), ("c", 0), ("c", 1), ("d", 0), ("d", 1), ("d", 2)}
    assert placement.outputs == {"a", "b", "c", "d"}
    assert placement.barriers == {} and placement.float_bias == frozenset()
    assert {name: scheme.name for name, scheme in placement.schemes.items()} == {"a": "w8a8", "b": "w4a8", "c": "w8a8", "d": "w8a8"}


def test_codes_leave_an_int8_layer_even_for_float_readers() -> None:
    placement = place(network(conv("a", "x"), conv("b", "a")), "8f")
    assert placement.outputs == {"a"} and placement.inputs == {("a", 0)}


def test_a_plain_gemm_leaves_float_unless_int8_reads_it() -> None:
    graph = network(linear("a", "x"), linear("b", "a"))
    assert place(graph, "8f").outputs == frozenset()
    assert place(graph, "88").outputs == {"a"}
    assert place(network(linear("a", "x", activation=("relu",))), "8").outputs == {"a"}


def test_a_linear_layer_over_tokens_has_a_float_bias_and_codes_behind_it() -> None:
    graph = network(linear("a", "x", shape=(7, 8)), linear("b", "a"))
    placement = place(graph, "88")
    assert placement.float_bias == {"a"} and placement.outputs == {"a"}
    assert ort_cpu.isolate(graph, ["a"], parse_scheme("w8a8")).float_bias == {"a"}
    assert place(graph, "f8").float_bias == frozenset()


BARRIERS: dict[str, tuple[str, Mapping[tuple[str, int], str]]] = {
    "float between int8": ("8f8", {("b", 0): "vector"}),
    "float reads float": ("ff8", {}),
    "no int8 reader": ("8ff", {}),
    "all int8": ("888", {}),
}


@pytest.mark.parametrize(("schemes", "wanted"), BARRIERS.values(), ids=BARRIERS)
def test_a_barrier_stands_where_the_runtime_would_quantize_a_float_layer(schemes: str, wanted: Mapping[tuple[str, int], str]) -> None:
    assert place(network(conv("a", "x"), conv("b", "a"), conv("c", "b")), schemes).barriers == wanted


def test_other_kernels_get_a_max_where_all_their_inputs_are_codes() -> None:
    graph = network(conv("a", "x"), conv("b", "x"), joined("c", "add", "a", "b"), conv("d", "c"))
    assert place(graph, "88f8").barriers == {("c", 0): "max"}
    assert place(graph, "f8f8").barriers == {}
    assert place(network(linear("a", "x", activation=("relu",)), linear("b", "a"), linear("c", "b")), "8f8").barriers == {("b", 0): "max"}


def test_movers_are_seen_through() -> None:
    graph = network(conv("a", "x"), conv("b", "pool"), conv("c", "b"), movers=(Mover("pool", "max_pool", "a"),))
    assert place(graph, "8f8").barriers == {("b", 0): "vector"}


POOLED: dict[str, tuple[str, bool, Mapping[tuple[str, int], str]]] = {
    "float convolution in front": ("f8ff8", True, {}),
    "int8 convolutions in front": ("88888", False, {}),
    "nobody reads codes": ("8888f", False, {}),
    "one side of a sum in float": ("8f8f8", True, {("pool", 0): "max"}),
    "a sum in float": ("88f88", True, {("c", 0): "max"}),
}


@pytest.mark.parametrize(("schemes", "held", "barriers"), POOLED.values(), ids=POOLED)
def test_a_pool_is_in_codes_only_behind_int8_convolutions(schemes: str, held: bool, barriers: Mapping[tuple[str, int], str]) -> None:
    layers = conv("a", "x"), conv("b", "x"), joined("c", "add", "a", "b"), conv("d", "x"), conv("e", "pool")
    placement = place(network(*layers, movers=(Mover("pool", "max_pool", "c"),)), schemes)
    assert placement.pools == (frozenset({"pool"}) if held else frozenset()) and placement.barriers == barriers


def test_a_clip_that_the_runtime_may_drop_is_seen_through() -> None:
    clip = Unsupported("clip", "hardtanh.default", ("b",), "")
    graph = network(conv("a", "x"), conv("b", "a"), conv("c", "clip"), unsupported=(clip,))
    assert place(graph, "8f8").barriers == {("b", 0): "vector"}
    other = Unsupported("clip", "silu.default", ("b",), "")
    assert place(network(*graph.layers, unsupported=(other,)), "8f8").barriers == {}


def test_a_weighted_operation_that_is_no_layer_gets_a_barrier() -> None:
    entry = Unsupported("conv3d", "conv3d.default", ("a", "weight"), "")
    assert place(network(conv("a", "x"), conv("b", "conv3d"), unsupported=(entry,)), "88").barriers == {("conv3d", 0): "max"}
    assert place(network(conv("a", "x"), conv("b", "conv3d"), unsupported=(entry,)), "f8").barriers == {}


SILENT: dict[str, tuple[Unsupported, bool]] = {
    "softmax": (Unsupported("op", "softmax.int", ("a",), ""), True),
    "average pool": (Unsupported("op", "avg_pool2d.default", ("a",), ""), True),
    "sum of two": (Unsupported("op", "add.Tensor", ("a", "a"), ""), True),
    "sum with a number": (Unsupported("op", "add.Tensor", ("a",), ""), False),
    "sum with a parameter": (Unsupported("op", "add.Tensor", ("a", "weight"), ""), False),
    "hardswish": (Unsupported("op", "hardswish.default", ("a",), ""), False),
}


@pytest.mark.parametrize(("entry", "guarded"), SILENT.values(), ids=SILENT)
def test_what_the_runtime_would_run_in_int8_unasked_gets_a_barrier(entry: Unsupported, guarded: bool) -> None:
    placement = place(network(conv("a", "x"), conv("b", "op"), unsupported=(entry,)), "88")
    assert placement.barriers == ({("op", 0): "max"} if guarded else {})


@pytest.mark.parametrize("kind", ["mul", "sigmoid", "leaky_relu", "avg_pool"])
def test_operations_without_weights_have_codes_on_both_sides_or_a_barrier(kind: str) -> None:
    graph = network(conv("a", "x"), joined("b", kind, *["a"] * (2 if kind == "mul" else 1)), conv("c", "b"))
    assert place(graph, "888").outputs == {"a", "b", "c"} and place(graph, "888").barriers == {}
    assert {slot for slot in place(graph, "888").inputs if slot[0] == "b"} == {("b", slot) for slot in range(len(graph.layers[1].inputs))}
    assert place(graph, "8f8").barriers == {("b", 0): "max"}
    assert place(graph, "f88").barriers == {}


def test_a_float_layer_in_front_of_a_sigmoid_gets_a_barrier() -> None:
    graph = network(conv("a", "x"), conv("b", "a"), joined("c", "sigmoid", "b"), joined("d", "mul", "b", "c"))
    assert place(graph, "8f88").barriers == {("b", 0): "vector"}
    assert place(graph, "8fff").barriers == {}


def test_averages_of_codes_are_unscaled_and_of_floats_are_not() -> None:
    mean = Unsupported("mean", "mean.dim", ("pool",), "")
    graph = network(conv("a", "x"), linear("b", "mean"), movers=(Mover("pool", "max_pool", "a"),), unsupported=(mean,))
    assert place(graph, "8f").unscaled == {"mean"}
    assert place(graph, "f8").unscaled == frozenset()


def test_isolation_quantizes_the_inputs_and_weights_of_a_group_alone() -> None:
    graph = network(conv("a", "x"), conv("b", "a"), joined("c", "add", "a", "b"))
    scheme = parse_scheme("w4a8")
    placement = ort_cpu.isolate(graph, ["b", "c"], scheme)
    assert placement.schemes == {"b": scheme, "c": scheme}
    assert placement.inputs == {("b", 0), ("c", 0), ("c", 1)}
    assert placement.outputs == {"c"} and placement.barriers == {}  # nothing reads c, whose codes would count nowhere
    assert ort_cpu.isolate(graph, ["a"], scheme).outputs == frozenset()


def test_a_float_layer_that_is_stored_narrow_is_float_to_its_neighbours() -> None:
    graph = network(conv("a", "x"), conv("b", "a"), conv("c", "b"), joined("d", "add", "c", "b"))
    schemes = {"a": parse_scheme("w8a8"), "b": parse_scheme("w8a32"), "c": parse_scheme("w4a8"), "d": parse_scheme("w8a8")}
    placement, plain = ort_cpu.place(graph, schemes), ort_cpu.place(graph, schemes | {"b": FLOAT})
    assert placement.stored == {"b": schemes["b"]} and "b" not in placement.schemes
    assert (placement.barriers, placement.inputs, placement.outputs) == (plain.barriers, plain.inputs, plain.outputs)
    assert placement.barriers == {("b", 0): "vector"}


def test_tensorrt_takes_no_float_weights_that_are_stored_narrow_and_says_so() -> None:
    graph = network(conv("a", "x"), conv("b", "a"))
    adapted = tensorrt.adapt(graph, {"a": parse_scheme("w4a32"), "b": parse_scheme("w16a32")})
    assert set(adapted.schemes.values()) == {parse_scheme("fp16")} and adapted.changes == () and "2 of 2" in adapted.notes[0]


@pytest.mark.parametrize(
    ("name", "form", "activations"),
    [
        ("w4a8", QuantSpec(4, True, True, PerChannel(0)), 8),
        ("w3g16a8", QuantSpec(3, True, True, PerGroup(0, 16)), 8),
        ("c5a8", QuantSpec(5, True, True, PerChannel(0), codebook=True), 8),
        ("w8a32", QuantSpec(8, True, True, PerChannel(0)), None),
        ("w16a32", HALF, None),
    ],
)
def test_a_scheme_s_name_says_how_weights_lie_and_what_computes(name: str, form: object, activations: int | None) -> None:
    scheme = parse_scheme(name)
    assert scheme.weights == form and (scheme.activations.bits if scheme.activations else None) == activations
    assert scheme.is_float == scheme.is_stored == (activations is None)


@pytest.mark.parametrize("name", ["w9a8", "c8a8", "w8g16a8", "w4g17a8", "w4g16a32", "c8a32", "w16a8", "w1a32", "wa8", "w4a8 "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SchemeError, match="unknown scheme"):
        parse_scheme(name)


def test_schemes_are_sorted_by_what_computes_then_by_bits_then_by_what_they_can_tell_apart() -> None:
    names = ["fp32", "w16a32", "w8a32", "w8a8", "c5a8", "w5a8", "c4a8", "w4g16a8", "w4a8", "c3a8"]
    upside_down = names[::-1]
    assert sorted(upside_down, key=lambda name: parse_scheme(name).precision, reverse=True) == names


@pytest.mark.parametrize(("channels", "width"), [(16, 16), (64, 16), (24, 12), (40, 10), (3, 3), (17, 1), (1, 1)])
def test_groups_are_the_largest_that_divide_the_channels(channels: int, width: int) -> None:
    assert PerGroup(0, 16).width(channels) == width


def test_uniform_in_float_leaves_operations_without_weights_float() -> None:
    menus = {"a": ("fp32", "w8a8", "w8a32"), "b": ("fp32", "w8a8"), "pinned": ("w8a8",)}
    groups = [Group(name, (name,), parse_schemes(menu), "") for name, menu in menus.items()]
    assert uniform(groups, parse_scheme("w8a32")) == {"a": "w8a32", "b": "fp32", "pinned": "w8a8"}
    assert uniform(groups, parse_scheme("w4a8")) == {"a": "w8a8", "b": "w8a8", "pinned": "w8a8"}


def test_groups_are_layers_save_where_a_weight_is_shared() -> None:
    groups = ort_cpu.groups(captured("mlp").graph, ort_cpu.check_schemes(["w8a8", "w4a8"]))
    assert [(group.name, group.layers) for group in groups] == [("one", ("one",)), ("middle", ("middle", "middle.2")), ("last", ("last",))]
    assert "middle.weight" in groups[1].reason


def test_products_over_tokens_that_read_one_tensor_are_one_group() -> None:
    """Through movers, and with what shares a weight with any of them; products of one row, as of two heads, are on their own."""
    wide, moved = (8, 4), Mover("moved", "clone", "x")
    shared = replace(linear("again", "up", wide), weight="up.weight")
    layers = (linear("gate", "x", wide), linear("one", "gate"), linear("two", "gate"), linear("up", "moved", wide), shared)
    groups = {group.name: group.layers for group in ort_cpu.groups(network(*layers, movers=(moved,)), ort_cpu.check_schemes(["w8a8"]))}
    assert groups == {"gate": ("gate", "up", "again"), "one": ("one",), "two": ("two",)}


GATES: dict[str, tuple[Callable[[Formed, torch.Tensor], torch.Tensor], bool]] = {
    "silu": (lambda m, x: m.b(F.silu(m.a(x))), True),
    "written out": (lambda m, x: (lambda t: m.b(torch.sigmoid(t) * t))(m.a(x)), True),
    "its sigmoid read elsewhere": (lambda m, x: (lambda t: m.b(F.silu(t)) + torch.sigmoid(t))(m.a(x)), False),
    "squeeze and excite": (lambda m, x: (lambda t: t * torch.sigmoid(m.b(t)))(m.a(x)), False),
}


@pytest.mark.parametrize(("form", "tied"), GATES.values(), ids=GATES)
def test_the_two_operations_of_a_silu_are_one_group(form: Callable[[Formed, torch.Tensor], torch.Tensor], tied: bool) -> None:
    groups = {group.layers: group.reason for group in ort_cpu.groups(formed(form).graph, ort_cpu.check_schemes(["w8a8"]))}
    assert (("sigmoid", "mul") in groups) == tied == any("SiLU" in reason for reason in groups.values())
    assert (("mul",) in groups) == (not tied)


def test_an_operation_without_weights_takes_the_widest_scheme_only() -> None:
    graph = network(conv("a", "x"), joined("b", "add", "a", "x"))
    menus = {group.name: group.schemes for group in ort_cpu.groups(graph, ort_cpu.check_schemes(["w4a8", "w8a8"]))}
    assert set(menus["a"]) == {"fp32", "w8a8", "w4a8"} and set(menus["b"]) == {"fp32", "w8a8"}
    menus = {group.name: group.schemes for group in ort_cpu.groups(graph, ort_cpu.check_schemes(["w4a8"]))}
    assert set(menus["b"]) == {"fp32", "w4a8"}
    assert {group.schemes for group in ort_cpu.groups(graph, [FLOAT])} == {("fp32",)}


def test_float_is_always_among_the_schemes_and_none_is_there_twice() -> None:
    assert [scheme.name for scheme in ort_cpu.check_schemes(["w8a8", "w8a8"])] == ["w8a8", "fp32"]


@pytest.mark.parametrize("scheme", ["w9a8", "w1a8", "w8a6", "int8"])
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    with pytest.raises(SchemeError, match=f"{scheme}.*w<bits>a8"):
        ort_cpu.check_schemes([scheme])


def test_every_width_has_a_storage() -> None:
    schemes = ort_cpu.check_schemes([name for name in SCHEMES["ort-cpu"] if name != "fp32"])
    assert {scheme.weights.bits for scheme in schemes if isinstance(scheme.weights, QuantSpec)} == set(ort_cpu.STORAGE)


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    assert find_target("ort-cpu") is TARGETS["ort-cpu"]
    with pytest.raises(SchemeError, match="did you mean 'ort-cpu'"):
        find_target("ort_cpu")


def test_bytes_of_a_layer() -> None:
    layer = conv("a", "x")
    count = 8 * 8 * 9
    assert ort_cpu.weight_bytes(layer, FLOAT) == 4 * count + 4 * 8
    assert ort_cpu.weight_bytes(layer, parse_scheme("w8a8")) == count + 4 * 8 + 4 * 8
    assert ort_cpu.weight_bytes(layer, parse_scheme("w4a8")) == count // 2 + 4 * 8 + 4 * 8
    assert ort_cpu.weight_bytes(layer, parse_scheme("w8a32")) == count + 4 * 8 + 4 * 8
    assert ort_cpu.weight_bytes(layer, parse_scheme("w16a32")) == 2 * count + 4 * 8
    assert ort_cpu.weight_bytes(layer, parse_scheme("c4a8")) == count // 2 + 16 + 4 * 8 + 4 * 8
    assert ort_cpu.weight_bytes(layer, parse_scheme("w4g16a8")) == count // 2 + 4 * 8 + 4 * 8  # one group: no multipliers
    wide = replace(layer, weight_shape=(8, 40, 3, 3))  # four groups of ten
    assert ort_cpu.weight_bytes(wide, parse_scheme("w4g16a8")) == 8 * 40 * 9 // 2 + 8 * 4 // 2 + 4 * 8 + 4 * 8
    assert ort_cpu.weight_bytes(joined("b", "add", "a", "a"), parse_scheme("w8a8")) == 0


def test_products_lie_in_the_order_in_which_the_kernel_adds_them() -> None:
    weight = torch.arange(8 * 8 * 9.0).reshape(8, 8, 3, 3)
    rows, paired = ort_cpu.product_rows(conv("a", "x"), weight)
    assert paired and rows[2, :8].tolist() == weight[2, :, 0, 0].tolist()
    assert rows[2, 8:16].tolist() == weight[2, :, 0, 1].tolist()


def test_a_depthwise_kernel_adds_no_pairs() -> None:
    assert not ort_cpu.product_rows(conv("a", "x", groups=8), torch.zeros(8, 1, 3, 3))[1]
    assert ort_cpu.product_rows(conv("a", "x", groups=2), torch.zeros(8, 4, 3, 3))[1]
    assert ort_cpu.product_rows(linear("a", "x"), torch.zeros(8, 8))[1]


def test_tensorrt_runs_gates_and_averages_in_float_without_a_note() -> None:
    graph = formed(lambda m, x: m.b(F.avg_pool2d(F.leaky_relu(F.silu(m.a(x))), 2))).graph
    adapted = tensorrt.adapt(graph, {layer.name: parse_scheme("w8a8") for layer in graph.layers})
    assert {name for name, scheme in adapted.schemes.items() if scheme.is_float} >= {"sigmoid", "mul", "leaky_relu", "avg_pool"}
    assert not [note for note in adapted.notes if note.startswith(("sigmoid", "mul", "leaky_relu", "avg_pool"))]


def test_tensorrt_fuses_no_addition_that_is_spread() -> None:
    def placed(form: Callable[[Formed, torch.Tensor], torch.Tensor]) -> Placement:
        graph = formed(form).graph  # with channels enough for an int8 kernel
        wide = tuple(replace(layer, weight_shape=(32, 32, 3, 3)) if layer.kind == "conv" else layer for layer in graph.layers)
        graph = replace(graph, layers=wide)
        return tensorrt.place(graph, {layer.name: parse_scheme("w8a8") for layer in graph.layers})

    assert "add" in placed(lambda m, x: m.b(x.repeat(1, 3, 1, 1)[:, :8]) + m.a(x)).schemes
    assert "add" not in placed(lambda m, x: m.b(x.repeat(1, 3, 1, 1)[:, :8]) + m.a(x).mean((2, 3), keepdim=True)).schemes
