from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import build
from torch import Tensor, fx, nn
from torch.export import Dim, export

from quantkit.network.folding import BATCH_NORM, fold_batch_norm


def unlifted(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    shapes = tuple({0: Dim("batch")} for _ in inputs)
    module = export(model, inputs, dynamic_shapes=shapes).run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def norms(module: fx.GraphModule) -> int:
    return len(module.graph.find_nodes(op="call_function", target=BATCH_NORM))


def written(form: Callable[..., Tensor], **modules: nn.Module) -> Callable[[], nn.Module]:
    """A network of these modules, with `form(network, x)` as its forward pass."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, x: Tensor) -> Tensor:
            return form(self, x)

    return Written


IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
SERIES = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(3))
FOLDABLE = {
    "convolution without bias": (written(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(3, 4, 3, bias=False), n=nn.BatchNorm2d(4)), IMAGE),
    "convolution with bias": (written(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)), IMAGE),
    "grouped convolution": (written(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(3, 6, 3, groups=3), n=nn.BatchNorm2d(6)), IMAGE),
    "one-dimensional": (written(lambda m, x: m.n(m.c(x)), c=nn.Conv1d(3, 4, 3), n=nn.BatchNorm1d(4)), SERIES),
    "linear": (written(lambda m, x: m.n(m.c(x)), c=nn.Linear(5, 4), n=nn.BatchNorm1d(4)), ROWS),
    "without scale and shift": (written(lambda m, x: m.n(m.c(x)), c=nn.Linear(5, 4), n=nn.BatchNorm1d(4, affine=False)), ROWS),
}


@pytest.mark.parametrize(("make", "x"), FOLDABLE.values(), ids=FOLDABLE)
def test_a_folded_network_computes_the_same(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = _seen(make())
    folded = fold_batch_norm(unlifted(model, x))
    assert norms(folded) == 0
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    names = {name for name, _ in folded.named_parameters()}
    assert {"c.weight", "c.bias"} <= names


def test_the_callers_tensors_are_untouched() -> None:
    make, x = FOLDABLE["convolution with bias"]
    model = _seen(make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = unlifted(model, x)
    fold_batch_norm(module)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert norms(module) == 1


UNFOLDABLE = {
    "a convolution used twice": written(
        lambda m, x: m.n(m.c(F.relu(m.c(x)))), c=nn.Conv2d(3, 3, 3, padding=1, bias=False), n=nn.BatchNorm2d(3)
    ),
    "an input with another reader": written(lambda m, x: (lambda t: t + m.n(t))(m.c(x)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)),
    "no layer in front": written(lambda m, x: m.c(m.n(x)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(3)),
    "an activation between": written(lambda m, x: m.n(F.relu(m.c(x))), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)),
    "a computed weight": written(lambda m, x: m.n(F.conv2d(x, m.c.weight * 2)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)),
    "a computed bias": written(lambda m, x: m.n(F.conv2d(x, m.c.weight, m.c.bias * 2)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("make", UNFOLDABLE.values(), ids=UNFOLDABLE)
def test_what_cannot_be_folded_stays(make: Callable[[], nn.Module]) -> None:
    model = _seen(make())
    folded = fold_batch_norm(unlifted(model, IMAGE))
    assert norms(folded) == 1
    torch.testing.assert_close(folded(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)


class Bare(nn.Module):
    """Two weights and a bias side by side in one module: there is only one place called `bias`."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(5, 4, 3, 3))
        self.bias = nn.Parameter(torch.randn(5))
        self.n, self.o = nn.BatchNorm2d(4), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.conv2d(F.relu(self.n(F.conv2d(x, self.one))), self.two, self.bias))


def test_a_new_bias_takes_no_other_layers_place() -> None:
    model = _seen(Bare())
    folded = fold_batch_norm(unlifted(model, IMAGE))
    assert norms(folded) == 0
    torch.testing.assert_close(folded(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)


def test_a_bias_with_other_readers_keeps_its_value_for_them() -> None:
    convolution, other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
    other.bias = convolution.bias
    model = _seen(written(lambda m, x: m.d(m.n(m.c(x))), c=convolution, d=other, n=nn.BatchNorm2d(4))())
    folded = fold_batch_norm(unlifted(model, IMAGE))
    assert norms(folded) == 0
    torch.testing.assert_close(folded(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)


def _seen(model: nn.Module) -> nn.Module:
    return build(lambda: model)
