"""Passes through the network that the estimators of sensitivity share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantkit.errors import ContractError, DataError, ModelError, unknown
from quantkit.table import Floats


class Items(Protocol):
    """A batch, as far as this module looks into it."""

    @property
    def size(self) -> int:
        """How many items it holds."""


AnyBatch = TypeVar("AnyBatch", bound=Items)


class Trace(NamedTuple):
    """An estimated trace and the standard error of it that the draw of the probes causes; the items count as given."""

    trace: float
    standard_error: float


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
    if probes < 2:
        raise ValueError(f"{probes} probes; a standard error needs 2")
    generator = torch.Generator().manual_seed(seed)
    sizes: list[int] = []
    means: list[Floats] = []
    variances: list[Floats] = []
    with differentiable(module, weights) as named, sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        parameters = list(dict.fromkeys(named.values()))
        for batch in batches:
            samples = _probed(loss(batch), parameters, probes, tolerance, generator)
            sizes.append(batch.size)
            means.append(samples.mean(axis=0))
            variances.append(samples.var(axis=0, ddof=1) / len(samples))
    if not sizes:
        raise DataError("no batches to estimate the Hessian on", "at least one item")
    share = np.array(sizes)[:, None] / sum(sizes)
    traces, squares = (share * np.array(means)).sum(axis=0), (share**2 * np.array(variances)).sum(axis=0)
    found = {
        parameter: Trace(float(trace), math.sqrt(square)) for parameter, trace, square in zip(parameters, traces, squares, strict=True)
    }
    return {name: found[parameter] for name, parameter in named.items()}


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
    if not torch.isfinite(loss):
        raise DataError(f"the loss is {float(loss)}", "a finite number", "check labels and preprocessing")
    if not loss.requires_grad:
        raise ModelError("no gradient reaches the weights", "a differentiable network", "choose --sensitivity displacement")
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    samples: list[list[float]] = []
    while len(samples) < probes and not _settled(samples, tolerance):
        signs = [_signs(parameter, generator) for parameter in parameters]
        samples.append(_quadratics(gradients, parameters, signs))
    return np.array(samples)


def _quadratics(gradients: Sequence[Tensor], parameters: Sequence[Tensor], signs: Sequence[Tensor]) -> list[float]:
    curved = [(gradient, sign) for gradient, sign in zip(gradients, signs, strict=True) if gradient.requires_grad]
    if not curved:  # the loss is linear in every weight
        return [0.0] * len(parameters)
    outputs, directions = zip(*curved, strict=True)
    products = torch.autograd.grad(outputs, parameters, grad_outputs=directions, retain_graph=True, materialize_grads=True)
    dots = [(sign * product).sum(dtype=torch.float64) for sign, product in zip(signs, products, strict=True)]
    return [float(dot) for dot in torch.stack(dots).cpu()]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Rademacher signs, drawn on the CPU so that every device gets the same."""
    return (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)


def _settled(samples: Sequence[Sequence[float]], tolerance: float) -> bool:
    if len(samples) < 2:
        return False
    before, after = np.mean(samples[:-1], axis=0), np.mean(samples, axis=0)
    return bool(np.abs(after - before).sum() <= tolerance * np.abs(after).sum())
