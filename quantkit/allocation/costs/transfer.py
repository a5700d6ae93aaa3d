"""A table of latencies for another device, from a few whole files timed there (the idea of HELP, Lee et al., arXiv 2106.08630).

HELP adapts a learned predictor to a device by ten of its measurements. Here the prior is the table that was measured on this machine, and
what differs from device to device is how fast a kind of arithmetic is, not which layer is large:

    T(plan) = o · offset + Σ_k c_k · (the table's sum over layers of kind k) + e · (its boundaries)
            + f · (float's sum over layers in integers) + n · (so many layers in integers)

with kinds float, integers, integers of less than 8 bits, and integers by ranges found in each call. The last two are for devices without
the kernels, where a layer in integers is a float layer and something more. The factors are those of least relative error on the files that
were timed, at or above 0: f and n held to 0, the others to the factor that serves all of their parts alike; how firmly is what predicts
best what is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from quantkit.allocation.plan import Edge, Resource
from quantkit.core.spec import FLOAT, Allocation, Scheme
from quantkit.core.table import Floats

FIRM = (0.0001, 0.001, 0.01, 0.1, 1.0)  # weights of the factors' departures, in shares, beside the relative errors of the files
LEAST_FILES = 3
KINDS = ("float", "integers", "narrow integers", "integers in each call")
PARTS = ("offset", *KINDS, "boundaries", "integers as float", "each layer in integers")
BOUNDARIES, AS_FLOAT, EACH = range(len(KINDS) + 1, len(PARTS))
OWN = BOUNDARIES + 1  # of them are parts of the prior's own sum
INTEGERS = (1, 2)  # of KINDS: those that a device without kernels computes in float
BYTE_BITS = 8
TimedPlan = tuple[Allocation, float]  # a plan, and the milliseconds that its file takes on the device


@dataclass(frozen=True, slots=True, eq=False)
class Transferred:
    """The device's `resource`; by part its factor; and by file the relative error of what the others predict of it."""

    resource: Resource
    factors: dict[str, float]
    errors: tuple[float, ...]

    @property
    def median_error_percent(self) -> float:
        """Of files that were left out."""
        return 100 * float(np.median(np.abs(self.errors)))

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {"resource": self.resource.to_json(), "factors": self.factors, "errors": list(self.errors)}


def transfer(prior: Resource, timed: Sequence[TimedPlan]) -> Transferred:
    """The latency resource of a device where these plans took so many milliseconds; LEAST_FILES at least, all above 0."""
    features = np.array([_parts(prior, plan) for plan, _ in timed])
    measured = np.array([ms for _, ms in timed])
    errors = {firm: _left_out(features, measured, firm) for firm in FIRM}
    firm = min(FIRM, key=lambda one: float(np.square(errors[one]).sum()))
    factors = _factors(features, measured, firm)
    scaled = prior.table.values * np.array([factors[1 + _kind(scheme)] for scheme in prior.table.schemes])
    emulated = factors[AS_FLOAT] * prior.table.values[:, [prior.table.schemes.index(FLOAT)]] + factors[EACH] * _mean_float(prior)
    kinds = [_kind(scheme) for scheme in prior.table.schemes]
    integers = np.array([kind in INTEGERS for kind in kinds])
    table = replace(prior.table, values=scaled + np.where(integers, emulated, 0.0))
    edges = tuple(Edge(edge.producer, edge.consumer, edge.cost * float(factors[BOUNDARIES])) for edge in prior.edges)
    resource = Resource(table, edges, prior.offset * float(factors[0]))
    absent = {name for kind, name in enumerate(KINDS) if kind not in kinds}
    told = {name: factor for name, factor in zip(PARTS, factors.tolist(), strict=True) if name not in absent}
    return Transferred(resource, told, tuple(errors[firm].tolist()))


def _kind(scheme: Scheme) -> int:
    """Of KINDS."""
    if scheme.is_dynamic:
        return 3
    return 0 if scheme.reads_float else 1 if scheme.precision[0] >= BYTE_BITS else 2


def _parts(prior: Resource, plan: Allocation) -> Floats:
    """What of the prior's milliseconds is of each of PARTS."""
    found = np.zeros(len(PARTS))
    found[0] = prior.offset
    for group, scheme in plan.items():
        found[1 + _kind(scheme)] += prior.table.at(group, scheme)
    found[BOUNDARIES] = prior.total(plan) - found.sum()
    integers = [group for group, scheme in plan.items() if _kind(scheme) in INTEGERS]
    found[AS_FLOAT] = sum(prior.table.at(group, FLOAT) for group in integers)
    found[EACH] = len(integers) * _mean_float(prior)
    return found


def _mean_float(prior: Resource) -> float:
    """Milliseconds of a layer in float, a mean: the unit of what each layer in integers takes more."""
    return float(np.nanmean(prior.table.values[:, prior.table.schemes.index(FLOAT)]))


def _factors(features: Floats, measured: Floats, firm: float) -> Floats:
    """Factors of least squared relative error, held to the one factor that serves the prior's sums best, or to 0."""
    shares = features / measured[:, None]
    sums = shares[:, :OWN].sum(axis=1)
    held = np.where(np.arange(len(PARTS)) < OWN, sums.sum() / (sums @ sums), 0.0)
    weight = np.sqrt(firm * len(measured)) * shares.mean(axis=0)
    rows = np.concatenate([shares, np.diag(weight)])
    found, _ = nnls(rows, np.concatenate([np.ones(len(measured)), weight * held]))
    return np.where(features.any(axis=0), found, held)


def _left_out(features: Floats, measured: Floats, firm: float) -> Floats:
    """Of each file, how far it is from what the factors of the others predict, as a share."""
    found = []
    for out in range(len(measured)):
        rest = np.arange(len(measured)) != out
        found.append(features[out] @ _factors(features[rest], measured[rest], firm) / measured[out] - 1)
    return np.array(found)
