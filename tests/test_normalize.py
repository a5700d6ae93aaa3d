from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_folding import IMAGE, unlifted, written
from torch import Tensor, fx, nn

from quantkit.network.capture import capture
from quantkit.network.folding import ATEN, bounds
from quantkit.network.normalize import simplify
from quantkit.targets import ort_cpu


def test_what_is_computed_twice_is_merged() -> None:
    model = written(lambda m, x: F.relu(m.c(x)) + F.relu(m.c(x)) + m.c(x * 2), c=nn.Conv2d(3, 4, 3))()
    module = unlifted(model, IMAGE)
    wanted = module(IMAGE)
    simplify(module)
    assert len(module.graph.find_nodes(op="call_function", target=ATEN.conv2d.default)) == 2
    assert torch.equal(module(IMAGE), wanted)


def test_random_values_are_not_merged() -> None:
    module = unlifted(written(lambda m, x: x + torch.rand_like(x) - torch.rand_like(x))(), IMAGE)
    simplify(module)
    assert not torch.equal(module(IMAGE), IMAGE)


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        (lambda x: F.relu6(x), (0.0, 6.0)),
        (lambda x: F.hardtanh(x), (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, 0.0, 2.0), (0.0, 2.0)),
        (lambda x: x.clamp(-1, 2), (-1.0, 2.0)),
        (lambda x: x.clamp(max=2), (None, 2.0)),
        (lambda x: x.clamp(min=-0.5), (-0.5, None)),
    ],
    ids=["relu6", "hardtanh", "hardtanh 0 2", "clamp", "clamp max", "clamp min"],
)
def test_bounds_of_a_clip(form: Callable[[Tensor], Tensor], wanted: tuple[float | None, float | None]) -> None:
    module = unlifted(written(lambda m, x: form(x))(), IMAGE)
    simplify(module)
    (clip,) = module.graph.find_nodes(op="call_function", target=next(n.target for n in module.graph.nodes if n.op == "call_function"))
    assert bounds(clip) == wanted


def test_a_clamp_at_zero_is_a_relu() -> None:
    module = unlifted(written(lambda m, x: x.clamp(min=0))(), IMAGE)
    simplify(module)
    assert module.graph.find_nodes(op="call_function", target=ATEN.relu.default)


CLIPPED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float | None, float | None]]] = {
    "relu, clamp": (lambda x: F.relu(x).clamp(-0.5, 0.7), (0.0, 0.7)),
    "relu6, clamp": (lambda x: F.relu6(x).clamp(0.2, 8.0), (0.2, 6.0)),
    "clamp, relu": (lambda x: F.relu(x.clamp(max=0.4)), (0.0, 0.4)),
    "three": (lambda x: F.hardtanh(F.relu(x).clamp(max=3.0)).clamp(min=0.1), (0.1, 1.0)),
    "above": (lambda x: F.relu(x).clamp(-3.0, -1.0), (-1.0, -1.0)),
    "below": (lambda x: x.clamp(max=0.5).clamp(0.8, 2.0), (0.8, 0.8)),
}


@pytest.mark.parametrize(("form", "wanted"), CLIPPED.values(), ids=CLIPPED)
def test_a_clip_of_a_clip_is_one(form: Callable[[Tensor], Tensor], wanted: tuple[float | None, float | None]) -> None:
    module = unlifted(written(lambda m, x: form(x))(), IMAGE)
    simplify(module)
    (clip,) = (node for node in module.graph.nodes if node.op == "call_function")

    assert bounds(clip) == wanted and torch.equal(module(IMAGE), form(IMAGE))


def test_a_clip_that_something_else_reads_stays() -> None:
    def form(x: Tensor) -> Tensor:
        first = F.relu(x)
        return first + first.clamp(max=0.5)

    module = unlifted(written(lambda m, x: form(x))(), IMAGE)
    simplify(module)
    assert module.graph.find_nodes(op="call_function", target=ATEN.relu.default) and torch.equal(module(IMAGE), form(IMAGE))


@pytest.mark.parametrize("kernel", [3, (5, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_becomes_numbers(kernel: int | tuple[int, int], dilation: int) -> None:
    model = written(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation))()
    module = unlifted(model, IMAGE)
    simplify(module)
    assert module.graph.find_nodes(op="call_function", target=ATEN.conv2d.default)
    assert torch.equal(module(IMAGE), model(IMAGE))


def test_uneven_same_padding_is_left_alone() -> None:
    model = written(lambda m, x: m.c(x), c=nn.Conv2d(3, 4, 2, padding="same"))()
    module = unlifted(model, IMAGE)
    simplify(module)
    assert not module.graph.find_nodes(op="call_function", target=ATEN.conv2d.default)
    assert torch.equal(module(IMAGE), model(IMAGE))


SPELT: dict[str, tuple[Callable[[Tensor], Tensor], list[object]]] = {
    "silu": (F.silu, [ATEN.sigmoid.default, ATEN.mul.Tensor]),
    "chunks": (lambda x: (lambda a, b: b - a)(*x.chunk(2, 2)), [ATEN.slice.Tensor, ATEN.slice.Tensor, ATEN.sub.Tensor]),
    "uneven chunks from behind": (lambda x: x.chunk(3, -1)[2], [ATEN.slice.Tensor]),
    "split by sizes, two parts unread": (lambda x: x.split([1, 4, 3], 3)[1], [ATEN.slice.Tensor]),
    "pixel shuffle": (
        lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
        [ATEN.repeat.default, ATEN.reshape.default, ATEN.permute.default, ATEN.reshape.default],
    ),
    "smaller summand first": (lambda x: x.mean(1, keepdim=True) + x, [ATEN.mean.dim, ATEN.add.Tensor]),
    "average by a divisor": (
        lambda x: F.avg_pool2d(x, [3, 2], 2, divisor_override=5),
        [ATEN.avg_pool2d.default, ATEN.mul.Tensor],
    ),
    "adaptive average over equal windows": (lambda x: torch._adaptive_avg_pool2d(x, [4, 2]), [ATEN.avg_pool2d.default]),
    "adaptive average over others": (lambda x: torch._adaptive_avg_pool2d(x, [3, 2]), [ATEN._adaptive_avg_pool2d.default]),
    "square": (torch.square, [ATEN.mul.Tensor]),
    "mean over the map": (lambda x: x.mean((-1, 2)), [ATEN.mean.dim, ATEN.squeeze.dim, ATEN.squeeze.dim]),
    "mean over the map that keeps its axes": (lambda x: x.mean((2, 3), True), [ATEN.mean.dim]),
    "mean over one axis": (lambda x: x.mean(3), [ATEN.mean.dim]),
    "one joined": (lambda x: torch.cat([x], 1).relu(), [ATEN.relu.default]),
}


@pytest.mark.parametrize(("form", "wanted"), SPELT.values(), ids=SPELT)
def test_one_spelling_computes_the_same(form: Callable[[Tensor], Tensor], wanted: list[object]) -> None:
    module = unlifted(written(lambda m, x: form(x))(), IMAGE)
    simplify(module)
    assert [node.target for node in module.graph.nodes if node.op == "call_function"] == wanted
    torch.testing.assert_close(module(IMAGE), form(IMAGE))


def test_the_larger_summand_comes_first() -> None:
    module = unlifted(written(lambda m, x: x.mean(1, keepdim=True) + x)(), IMAGE)
    simplify(module)
    (addition,) = module.graph.find_nodes(op="call_function", target=ATEN.add.Tensor)
    assert [summand.meta["val"].shape[1] for summand in addition.args if isinstance(summand, fx.Node)] == [3, 1]


def test_a_sigmoid_beside_a_silu_is_computed_once() -> None:
    module = unlifted(written(lambda m, x: F.silu(x) + torch.sigmoid(x))(), IMAGE)
    simplify(module)
    assert len(module.graph.find_nodes(op="call_function", target=ATEN.sigmoid.default)) == 1


class Attention(nn.Module):
    """torch.nn's own, which turns tokens first, and ends in a linear layer over all tokens of all items in a row."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(16, 4, batch_first=batch_first), nn.Linear(16, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        given = x if self.batch_first else x.transpose(0, 1)
        y = self.attend(given, given, given, need_weights=False)[0]
        return self.head(y if self.batch_first else y.transpose(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_over_tokens_have_items_first(batch_first: bool) -> None:
    torch.manual_seed(0)
    model, x = Attention(batch_first).eval(), torch.randn(3, 5, 16)
    captured = capture(model, {"x": x})
    linear = [layer for layer in captured.graph.layers if layer.kind == "linear"]
    assert len(linear) == 3 and all(layer.item_first and layer.output_shape[0] == 5 for layer in linear)
    with torch.no_grad():
        torch.testing.assert_close(captured.module(x), model(x))
    turns = [node for node in captured.module.graph.nodes if node.target is ATEN.transpose.int and sorted(node.args[1:]) == [0, 1]]
    linears = [node for node in captured.module.graph.nodes if node.target is ATEN.linear.default]
    assert sum(node.args[0] in turns for node in linears) <= 1  # what was attended


class Transposed(nn.Module):
    """x · W + b with W lying as GPT-2's layers have it; with `shared`, W is read in another way too."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, 8), self.weight).view(*x.shape[:2], 6)
        return y + self.weight.sum() if self.shared else y


@pytest.mark.parametrize("shared", [False, True])
def test_a_product_with_a_transposed_weight_is_a_linear_layer(shared: bool) -> None:
    torch.manual_seed(0)
    model, x = Transposed(shared).eval(), torch.randn(3, 5, 8)
    before = model.weight.detach().clone()
    captured = capture(model, {"x": x})
    linear = [layer for layer in captured.graph.layers if layer.kind == "linear"]
    if shared:
        assert not linear
    else:
        (layer,) = linear
        assert layer.weight_shape == (6, 8) and layer.output_shape == (5, 6) and layer.item_first and layer.bias is not None
    with torch.no_grad():
        torch.testing.assert_close(captured.module(x), model(x))
    assert torch.equal(model.weight, before)


def test_rows_of_windows_are_not_items() -> None:
    """Several rows an item: then a range for each row is not that of a call, and the layer may not quantize in each call."""
    model = written(lambda m, x: m.layer(x.reshape(-1, 2, 4)).reshape(x.shape[0], -1), layer=nn.Linear(4, 4))()
    captured = capture(model, {"x": torch.randn(2, 4, 2, 4)})
    (layer,) = (layer for layer in captured.graph.layers if layer.kind == "linear")
    assert not layer.item_first
    (group,) = (one for one in ort_cpu.groups(captured.graph, ort_cpu.check_schemes(["w8a8", "w8d8"])) if layer.name in one.layers)
    assert "w8d8" not in group.schemes and "w8a8" in group.schemes
