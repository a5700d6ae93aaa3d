"""The Hessian of the loss, by products with vectors: traces of its blocks, and its quadratic forms between chosen directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantkit.core.errors import ContractError, DataError, ModelError, unknown
from quantkit.core.table import Floats
from quantkit.sensitivity.passes.trace import Trace, Trial


class Items(Protocol):
    """A batch, as far as this module looks into it."""

    @property
    def size(self) -> int:
        """How many items it holds."""


AnyBatch = TypeVar("AnyBatch", bound=Items)


def hutchinson(
    module: nn.Module,
    loss: Callable[[AnyBatch], Tensor],
    batches: Iterable[AnyBatch],
    weights: Sequence[str],
    *,
    probes: int,
    tolerance: float,
    seed: int,
) -> dict[str, Trace]:
    """The trace of each weight's block of the Hessian of the mean loss over all items, by parameter name.

    `loss` runs `module` on a batch and returns the mean over its items, a scalar. For each batch the graph of the gradient is built once
    and every probe runs through it: v of random signs over all weights, one product Hv, and v_i · (Hv)_i for every weight i at once,
    whose expectation is tr H_ii (Hutchinson 1990; HAWQ-V2, 1911.03852). A weight used twice is one parameter, and so one block; so is
    one that goes by two names. A batch is done after `probes` of them (at least 2), or when one more changes the traces by no more
    than `tolerance`: Σ|change| ≤ tolerance · Σ|trace|.

    The module runs in evaluation mode; modes, gradients and `requires_grad` are afterwards as they were. The same seed gives the same
    answer. Raises ContractError for a weight that the module lacks, DataError for a loss that is not finite, ModelError for one that no
    gradient reaches.
    """
    with differentiable(module, weights) as named, second_order_kernels():
        return traces((Trial(batch.size, loss(batch), named) for batch in batches), probes=probes, tolerance=tolerance, seed=seed)


def traces(trials: Iterable[Trial], *, probes: int, tolerance: float, seed: int) -> dict[str, Trace]:
    """As `hutchinson`, of any tensors that the losses depend on; names are the same for every batch, and may share a tensor.

    A block of an activation, whose items do not mix, is that of one item, a mean over all of them.
    """
    if probes < 2:
        raise ValueError(f"{probes} probes; a standard error needs 2")
    generator = torch.Generator().manual_seed(seed)
    sizes: list[int] = []
    means: list[Floats] = []
    variances: list[Floats] = []
    names: list[str] = []
    for items, loss, leaves in trials:
        distinct = list(dict.fromkeys(leaves.values()))
        place = {id(leaf): number for number, leaf in enumerate(distinct)}
        places, names = [place[id(leaf)] for leaf in leaves.values()], list(leaves)
        samples = _probed(loss, distinct, probes, tolerance, generator)[:, places]
        sizes.append(items)
        means.append(samples.mean(axis=0))
        variances.append(samples.var(axis=0, ddof=1) / len(samples))
    if not sizes:
        raise DataError("no batches to estimate the Hessian on", "at least one item", "pass more data")
    share = np.array(sizes)[:, None] / sum(sizes)
    found, squares = (share * np.array(means)).sum(axis=0), (share**2 * np.array(variances)).sum(axis=0)
    return {name: Trace(float(trace), math.sqrt(square)) for name, trace, square in zip(names, found, squares, strict=True)}


def quadratic_forms(
    module: nn.Module, loss: Callable[[AnyBatch], Tensor], batches: Iterable[AnyBatch], directions: Sequence[Mapping[str, Tensor]]
) -> Floats:
    """δ_a' H δ_b of every two `directions`, shape [directions, directions], H the Hessian of the mean loss over all items.

    A direction moves some parameters, by name. One product Hδ_a gives the row of a; without directions nothing is run. Raises as
    `hutchinson`.
    """
    if not directions:
        return np.zeros((0, 0))
    names = sorted({name for direction in directions for name in direction})
    total, items = np.zeros((len(directions),) * 2), 0
    with differentiable(module, names) as named, second_order_kernels():
        for batch in batches:
            value = loss(batch)
            gradients = dict(zip(names, _gradients(value, [named[name] for name in names]), strict=True))
            for row, direction in enumerate(directions):
                products = _product([gradients[name] for name in direction], list(named.values()), list(direction.values()))
                curved = dict(zip(named, products, strict=True))
                forms = [sum((curved[name] * change).sum(dtype=torch.float64) for name, change in other.items()) for other in directions]
                total[row] += batch.size * np.array([float(form) for form in forms])
            items += batch.size
    return np.asarray((total + total.T) / (2 * max(items, 1)), np.float64)


@contextmanager
def second_order_kernels() -> Iterator[None]:
    """Second derivatives are wanted: of the kernels of attention only one has them."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def differentiable(module: nn.Module, weights: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yields the named parameters by name, the only ones that require gradients meanwhile, the module being in evaluation mode.

    Modes are set submodule by submodule: `eval()` of an exported module raises. Raises ContractError for a name that is not there.
    """
    named = dict(module.named_parameters(remove_duplicate=False))
    for name in weights:
        if name not in named:
            raise ContractError(*unknown("weight", name, named))
    modes = [(part, part.training) for part in module.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    chosen: dict[str, Tensor] = {name: named[name] for name in weights}
    try:
        for part, _ in modes:
            part.training = False
        for parameter, _ in required:
            parameter.requires_grad_(False)
        for weight in chosen.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield chosen
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def _probed(loss: Tensor, parameters: Sequence[Tensor], probes: int, tolerance: float, generator: torch.Generator) -> Floats:
    """v_i · (Hv)_i; shape [probes made, parameters]."""
    gradients = _gradients(loss, parameters)
    samples: list[list[float]] = []
    while len(samples) < probes and not _settled(samples, tolerance):
        signs = [_signs(parameter, generator) for parameter in parameters]
        products = _product(gradients, parameters, signs)
        dots = [(sign * product).sum(dtype=torch.float64) for sign, product in zip(signs, products, strict=True)]
        samples.append([float(dot) for dot in torch.stack(dots).cpu()])
    return np.array(samples)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not torch.isfinite(loss):
        raise DataError(f"the loss is {float(loss)}", "a finite number", "check labels and preprocessing")
    if not loss.requires_grad:
        raise ModelError("no gradient reaches the weights", "a differentiable network", "choose --sensitivity displacement")
    return torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)


def _product(gradients: Sequence[Tensor], parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> Sequence[Tensor]:
    """H times the directions that belong to the `gradients`; zero where the loss is linear."""
    curved = [(gradient, direction) for gradient, direction in zip(gradients, directions, strict=True) if gradient.requires_grad]
    if not curved:
        return [torch.zeros_like(parameter) for parameter in parameters]
    outputs, along = zip(*curved, strict=True)
    return torch.autograd.grad(outputs, parameters, grad_outputs=along, retain_graph=True, materialize_grads=True)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Rademacher signs, drawn on the CPU so that every device gets the same."""
    return (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)


def _settled(samples: Sequence[Sequence[float]], tolerance: float) -> bool:
    if len(samples) < 2:
        return False
    before, after = np.mean(samples[:-1], axis=0), np.mean(samples, axis=0)
    return bool(np.abs(after - before).sum() <= tolerance * np.abs(after).sum())
