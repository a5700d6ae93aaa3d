"""Every error that a user can see, as one tree.

QuantkitError                 what was given; what is expected; what to do next
├── RequestError              the request is wrong (exit 2)
│   ├── ModelError            the network, its file, or its architecture
│   ├── CaptureError          torch.export refuses the network
│   ├── DataError             items, labels, preprocessing, splits
│   ├── MetricError           the metric or the budget in its units
│   ├── SchemeError           schemes, targets, pins, patterns
│   ├── ConfigError           recipe and configuration files
│   ├── ClusterError          workers that are not there, are lost, or would compute otherwise
│   └── OutputError           a folder or file that cannot be written, a run that is locked
└── ContractError             an internal contract is broken (exit 3): a name lost in export, a plan that cannot be placed

Only `cli` turns these into exit codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class QuantkitError(Exception):
    """One line: what was given, what is expected, what to do next. Empty parts are left out; a RequestError always has the last."""

    def __init__(self, got: str, wanted: str = "", next_step: str = "") -> None:
        self.got, self.wanted, self.next_step = got, wanted, next_step
        parts = [got, f"wanted {wanted}" if wanted else "", f"next: {next_step}" if next_step else ""]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))


class RequestError(QuantkitError):
    """The request is wrong; the user can fix it."""


class ModelError(RequestError):
    """The network, its file, or its architecture."""


class CaptureError(RequestError):
    """torch.export refuses the network."""


class DataError(RequestError):
    """Items, labels, preprocessing, splits."""


class MetricError(RequestError):
    """The metric, or the budget in its units."""


class SchemeError(RequestError):
    """Schemes, targets, pins and patterns."""


class ConfigError(RequestError):
    """Recipe and configuration files."""


class ClusterError(RequestError):
    """Workers that are not there, are lost, or would compute otherwise."""


class OutputError(RequestError):
    """A folder or file that cannot be written, or a run that another process holds."""


class ContractError(QuantkitError):
    """An internal contract is broken; never the user's fault."""


def unknown(kind: str, name: str, known: Iterable[str]) -> tuple[str, str, str]:
    """The three parts of an error about `name`, which is not among `known`: names the nearest one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    return f"unknown {kind} {name!r}", f"one of {', '.join(names)}", f"did you mean {near[0]!r}?" if near else "pick one of these"
