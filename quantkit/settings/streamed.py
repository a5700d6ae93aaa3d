"""What a job that goes block by block (`--streamed`) reads of what was asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import RequestError
from quantkit.core.metric import Budget, Metric
from quantkit.data import Splits
from quantkit.settings.arguments import Arguments
from quantkit.settings.options import Options

SCHEMES = ("w8b32d8", "w4b32d8")
UNREAD = (
    "target", "sensitivity", "observer", "equalization", "effort", "certificate", "machine", "shape", "workers", "latency_workers",
    "search", "device", "max_latency", "max_bops", "batch_size", "arch", "trust_pickle",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class StreamedRequest:
    """A job on a folder whose network is never whole, checked; as `Request`, without the network."""

    folder: Path
    name: str
    splits: Splits
    metric: Metric
    budget: Budget
    options: Options


def streamed_arguments(said: Arguments) -> Arguments:
    """`said` with what holds where it is silent. Raises RequestError for what such a job does not read, or cannot do."""
    refused = sorted({*UNREAD} & said.keys())
    if refused:
        flag = f"--{refused[0].replace('_', '-')}"
        raise RequestError(f"{flag} beside --streamed, which reads none", "it left out", f"drop {flag}, or --streamed")
    wanted: Arguments = {"metric": "perplexity", "minimize": "bytes", "schemes": SCHEMES, **said}
    for option, value, known in (("metric", wanted["metric"], ("perplexity",)), ("minimize", wanted["minimize"], ("bytes", "drop"))):
        if value not in known:
            raise RequestError(f"--{option} {value} beside --streamed", " or ".join(known), f"pass --{option} {known[0]}")
    return wanted
