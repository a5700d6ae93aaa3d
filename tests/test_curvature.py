from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyhessian import hessian
from torch import nn

from quantkit.core.errors import ContractError, DataError, ModelError
from quantkit.sensitivity.passes.curvature import differentiable, hutchinson
from quantkit.sensitivity.passes.trace import Trace
from reference import dense_hessian


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    y: torch.Tensor

    @property
    def size(self):
        return len(self.x)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(27, 4)).eval()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(*self.project(x).chunk(3, dim=-1)).mean(dim=1))


class Shared(nn.Module):
    """One matrix used twice, and known by two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Bowl(nn.Module):
    """Σ a_k w_k² + Σ 3 u² for each item, a the item: the Hessian is diagonal, so a single probe is exact."""

    def __init__(self):
        super().__init__()
        self.w, self.u = nn.Parameter(torch.tensor([1.0, -2.0, 0.5])), nn.Parameter(torch.ones(2, 2))
        self.slope, self.idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(5))

    def forward(self, x):
        return (x * self.w**2).sum(dim=1) + 3 * (self.u**2).sum() + self.slope.sum()


def data(*shape, classes=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(*shape, generator=generator), torch.randint(classes, shape[:1], generator=generator))


def cross_entropy(module):
    return lambda batch: F.cross_entropy(module(batch.x), batch.y)


def mean(module):
    return lambda batch: module(batch.x).mean()


@pytest.mark.parametrize(
    ("module", "batch", "weights"),
    [
        (convolutional(), data(6, 2, 5, 5), ["0.weight", "4.weight"]),
        (Attention(), data(3, 5, 4, classes=3), ["project.weight", "out.weight"]),
        (Shared(), data(6, 3, classes=3), ["first.weight"]),
    ],
    ids=["convolutions", "attention", "a weight used twice"],
)
def test_traces_agree_with_the_dense_hessian_within_their_standard_errors(module, batch, weights):
    found = hutchinson(module, cross_entropy(module), [batch], weights, probes=300, tolerance=0, seed=0)

    assert list(found) == weights
    for name, (trace, error) in found.items():
        block = dense_hessian(module, lambda outputs: F.cross_entropy(outputs, batch.y), batch.x, name)
        assert abs(trace - block.trace().item()) < 4 * error
        assert 0 < error < 0.4 * block.norm().item()


@pytest.mark.parametrize("copies", [1, 4])
def test_the_standard_error_is_that_of_the_theory(copies):
    """Var(v'Hv) = 2 (‖H‖² − Σ H_kk²) for random signs and one block; the same items in several batches share the probes out."""
    module, batch = convolutional(), data(6, 2, 5, 5)
    block = dense_hessian(module, lambda outputs: F.cross_entropy(outputs, batch.y), batch.x, "0.weight")
    variance = 2 * ((block**2).sum() - (block.diagonal() ** 2).sum()).item()

    found = hutchinson(module, cross_entropy(module), [batch] * copies, ["0.weight"], probes=400 // copies, tolerance=0, seed=0)

    assert found["0.weight"].standard_error == pytest.approx((variance / 400) ** 0.5, rel=0.15)


def test_all_signs_together_give_the_exact_trace(monkeypatch):
    module, batch = Shared(), data(6, 3, classes=3)
    every = iter([2.0 * torch.tensor([number >> bit & 1 for bit in range(9)]).reshape(3, 3) - 1 for number in range(512)])
    monkeypatch.setattr("quantkit.sensitivity.passes.curvature._signs", lambda *_: next(every))

    found = hutchinson(module, cross_entropy(module), [batch], ["first.weight"], probes=512, tolerance=0, seed=0)["first.weight"]

    right = dense_hessian(module, lambda outputs: F.cross_entropy(outputs, batch.y), batch.x, "first.weight").trace().item()
    assert found.trace == pytest.approx(right, rel=1e-5)


def test_pyhessian_finds_the_same_sum():
    module, batch = convolutional(), data(16, 2, 5, 5)
    names = [name for name, _ in module.named_parameters()]
    theirs = np.array(hessian(module, F.cross_entropy, data=(batch.x, batch.y), cuda=False).trace(maxIter=200, tol=0))
    module.zero_grad()

    ours = hutchinson(module, cross_entropy(module), [batch], names, probes=200, tolerance=0, seed=0).values()

    errors = [theirs.std(ddof=1) / len(theirs) ** 0.5, *(part.standard_error for part in ours)]
    assert abs(sum(part.trace for part in ours) - theirs.mean()) < 4 * np.linalg.norm(errors)
    assert np.linalg.norm(errors) < 0.1 * theirs.mean()


def test_a_diagonal_hessian_is_exact_and_items_weigh_the_same_in_batches_of_any_size():
    module, whole = Bowl(), data(7, 3)
    parts = [Batch(whole.x[:2], whole.y[:2]), Batch(whole.x[2:], whole.y[2:])]

    found = hutchinson(module, mean(module), parts, ["w", "u", "slope", "idle"], probes=5, tolerance=0, seed=0)

    assert found["w"] == (pytest.approx(2 * whole.x.mean(dim=0).sum().item(), rel=1e-5), pytest.approx(0, abs=1e-6))
    assert found["u"] == (pytest.approx(6 * 4), 0)
    assert (found["slope"], found["idle"]) == (Trace(0, 0), Trace(0, 0))


def test_a_loss_that_is_linear_in_every_weight_has_no_curvature():
    module = Bowl()

    assert hutchinson(module, mean(module), [data(4, 3)], ["slope"], probes=2, tolerance=0, seed=0) == {"slope": (0, 0)}


class Calls:
    """Counts calls of the loss and of autograd."""

    def __init__(self, module, monkeypatch):
        self.losses, self.gradients = 0, 0
        original = torch.autograd.grad

        def grad(*arguments, **options):
            self.gradients += 1
            return original(*arguments, **options)

        monkeypatch.setattr(torch.autograd, "grad", grad)
        self.module = module

    def __call__(self, batch):
        self.losses += 1
        return F.cross_entropy(self.module(batch.x), batch.y)


def test_one_forward_and_one_gradient_a_batch_and_one_product_a_probe_serve_all_weights(monkeypatch):
    module = convolutional()
    loss = Calls(module, monkeypatch)

    hutchinson(module, loss, [data(4, 2, 5, 5), data(4, 2, 5, 5, seed=2)], ["0.weight", "4.weight"], probes=7, tolerance=0, seed=0)

    assert (loss.losses, loss.gradients) == (2, 2 * (1 + 7))


def test_probing_stops_when_one_more_probe_changes_little(monkeypatch):
    module = convolutional()
    made = []
    for tolerance in (1e9, 0.05, 0.0):
        with monkeypatch.context() as patch:
            loss = Calls(module, patch)
            hutchinson(module, loss, [data(4, 2, 5, 5)], ["0.weight", "4.weight"], probes=60, tolerance=tolerance, seed=0)
            made.append(loss.gradients - 1)

    assert made[0] == 2
    assert 2 < made[1] < 60
    assert made[2] == 60


def test_the_same_seed_gives_the_same_traces_and_another_seed_others():
    module, batch = convolutional(), data(4, 2, 5, 5)

    first, second, third = (
        hutchinson(module, cross_entropy(module), [batch], ["0.weight"], probes=4, tolerance=0, seed=seed) for seed in (3, 3, 4)
    )

    assert first == second != third


def test_an_exported_module_gives_the_traces_of_its_source():
    module, batch = convolutional().double(), data(4, 2, 5, 5)
    batch = replace(batch, x=batch.x.double())
    program = torch.export.export(module, (batch.x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    exported = program.run_decompositions({}).module()
    names = [name for name, _ in exported.named_parameters()]

    ours, source = (hutchinson(net, cross_entropy(net), [batch], names, probes=4, tolerance=0, seed=0) for net in (exported, module))

    for name in names:
        assert ours[name] == pytest.approx(source[name], rel=1e-9, abs=1e-12)


def test_a_weight_of_two_names_has_one_trace():
    module = Shared()

    found = hutchinson(
        module, cross_entropy(module), [data(4, 3, classes=3)], ["first.weight", "second.weight"], probes=5, tolerance=0, seed=0
    )

    alone = hutchinson(module, cross_entropy(module), [data(4, 3, classes=3)], ["second.weight"], probes=5, tolerance=0, seed=0)
    assert found["first.weight"] == found["second.weight"] == alone["second.weight"]


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_the_callers_module_is_as_it_was(fails):
    module = convolutional().train()
    module[1].eval()
    module[0].weight.requires_grad_(False)
    module[4].bias.grad = torch.ones(4)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    seen = []

    def loss(batch):
        seen.append([[part.training for part in module.modules()], [parameter.requires_grad for parameter in module.parameters()]])
        if fails:
            raise KeyboardInterrupt
        return F.cross_entropy(module(batch.x), batch.y)

    with torch.no_grad():
        if fails:
            with pytest.raises(KeyboardInterrupt):
                hutchinson(module, loss, [data(4, 2, 5, 5)], ["0.weight"], probes=2, tolerance=0, seed=0)
        else:
            hutchinson(module, loss, [data(4, 2, 5, 5)], ["0.weight"], probes=2, tolerance=0, seed=0)

    assert seen == [[[False] * 6, [True, False, False, False]]]
    assert [part.training for part in module.modules()] == [True, True, False, True, True, True]
    assert [parameter.requires_grad for parameter in module.parameters()] == [False, True, True, True]
    assert [parameter.grad is None for parameter in module.parameters()] == [True, True, True, False]
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_weight_that_is_not_there_is_named_and_nothing_is_changed():
    module = convolutional().train()

    with pytest.raises(ContractError, match=r"unknown weight '0.wight'.*did you mean '0.weight'"), differentiable(module, ["0.wight"]):
        pass

    assert module.training


@pytest.mark.parametrize(
    ("loss", "batches", "kind", "words"),
    [
        (lambda _: torch.tensor(float("nan")), [data(4, 3)], DataError, "the loss is nan"),
        (lambda _: torch.tensor(1.0), [data(4, 3)], ModelError, "no gradient reaches the weights"),
        (lambda _: torch.tensor(1.0), [], DataError, "no batches"),
    ],
    ids=["nan", "no gradient", "nothing"],
)
def test_a_loss_that_cannot_be_used_is_one_line(loss, batches, kind, words):
    with pytest.raises(kind, match=words):
        hutchinson(Bowl(), loss, batches, ["w"], probes=2, tolerance=0, seed=0)


def test_one_probe_has_no_standard_error_and_is_refused():
    with pytest.raises(ValueError, match="needs 2"):
        hutchinson(Bowl(), mean(Bowl()), [], ["w"], probes=1, tolerance=0, seed=0)
