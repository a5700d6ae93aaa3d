"""Hessian traces by the package PyHessian (arXiv 1912.07145; extra `quantkit[pyhessian]`), times perturbation as in taylor.py.

    Ω_i(b) = ½ · Tr(H_ii) / n_i · ‖Q_b(W_i) − W_i‖²

The package gives the trace over all parameters that require gradients, so it is asked once for each weight, under its own defaults:
MOST_PROBES probes, until one more changes the mean by less than TOLERANCE; by its own rule it also stops as soon as the mean is
negative. What `hessian` does with one product for all layers, as a check and for comparison. Weights only: activations score nothing.
Takes, for each weight and each of ITEMS items, one forward and one backward pass and at most MOST_PROBES products.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.core.errors import RequestError
from quantkit.data.batch import Batch
from quantkit.sensitivity.context import SECOND_ORDER, Context, Cost, Scores
from quantkit.sensitivity.passes.trace import Trace
from quantkit.sensitivity.taylor import second_order

ITEMS = 8
MOST_PROBES, TOLERANCE = 100, 1e-3


def estimate(context: Context) -> Scores:
    """Ω of every (group, scheme); 0 for fp32 and for groups without weights; nan where a group cannot take the scheme.

    Raises RequestError where the package is not installed.
    """
    package, sums, items = _package(), dict.fromkeys(context.weights, 0.0), 0
    for batch in context.batches("PyHessian", context.items.first(ITEMS), context.batch_size(SECOND_ORDER)):
        for number, weight in enumerate(context.weights):
            with context.engine.differentiable([weight], twice=True) as named, _own_source(context.device):
                torch.manual_seed(_seed(context.seed, items, number))  # it draws from torch's global source
                sums[weight] += batch.size * _trace(package, context, batch, named[weight])
        items += batch.size
    return Scores(second_order(context, "pyhessian", {weight: Trace(total / items, float("nan")) for weight, total in sums.items()}))


def cost(context: Context) -> Cost:
    """The passes above."""
    runs = len(context.items.first(ITEMS)) * len(context.weights)
    return Cost(runs, runs, runs * MOST_PROBES)


class _Network(nn.Module):
    """The loss of one batch as a network of one weight: the package asks for modes and gradients that an exported module refuses."""

    def __init__(self, context: Context, batch: Batch, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self._scene, self._batch = context, batch

    def forward(self, _: Tensor) -> Tensor:
        return self._scene.loss(self._batch)


def _trace(package: Any, context: Context, batch: Batch, weight: Tensor) -> float:
    kept, weight.grad = weight.grad, None
    try:
        nothing = torch.zeros(1, device=context.device)
        asked = package.hessian(
            _Network(context, batch, weight), lambda loss, _: loss, data=(nothing, nothing), cuda=context.device.type == "cuda"
        )
        found = asked.trace(maxIter=MOST_PROBES, tol=TOLERANCE)
    finally:
        weight.grad = kept  # the package leaves a graph there that refers to itself
    return float(sum(found) / len(found))


def _own_source(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else [])


def _package() -> Any:
    try:
        import pyhessian
    except ImportError as error:
        next_step = "pip install 'quantkit[pyhessian]', or choose --sensitivity hessian"
        raise RequestError("pyhessian is not installed", "", next_step) from error
    return pyhessian


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
