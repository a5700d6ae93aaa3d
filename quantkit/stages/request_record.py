"""What was asked, as the history and request.json keep it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.core.environment import describe, versions
from quantkit.core.run_files import PIPELINE
from quantkit.core.sources import code_of
from quantkit.core.store import fingerprint, write_atomically
from quantkit.runs.history import shortened
from quantkit.settings.request import Request
from quantkit.stages.capture import Network

WHERE = ("output", "run", "workers", "latency_workers")  # options that say where, and not what


def job_fingerprint(request: Request) -> str:
    """Stands for the network, the data and every option that changes the result."""
    options = {key: value for key, value in asdict(request.options).items() if key not in WHERE}
    splits = [subset.fingerprint() for subset in (request.splits.calibration, request.splits.search, request.splits.gate)]
    metric = (request.metric.name, request.metric.source)
    variants = {name: variant.describe() for name, variant in request.model.variants.items()}
    return fingerprint(request.model.digest, splits, metric, asdict(request.budget), options, variants, versions())


def request_inputs(request: Request, network: Network) -> dict[str, str]:
    """Everything that a result hangs on, by name, as the history keeps it."""
    options = {key: value for key, value in asdict(request.options).items() if key not in (*WHERE, "bounds")}
    bounds = {f"max {name}": f"{bound.value:g}{'x' if bound.relative else ''}" for name, bound in request.options.bounds.given().items()}
    host = describe()
    split = {name: getattr(request.splits, name).fingerprint() for name in ("calibration", "search", "gate")}
    inputs: dict[str, Any] = {
        "weights of the network": request.model.digest,
        "code of the network": network.captured.module.code,
        **{f"{name} data": stands_for for name, stands_for in split.items()},
        "metric": [request.metric.name, request.metric.source] if request.metric.source else request.metric.name,
        "max drop": f"{request.budget.value:g}{'%' if request.budget.kind == 'relative' else ''}",
        **bounds, **options,
        "code of quantkit": code_of(PIPELINE), **versions(), "processor": host["cpu"], "integer instructions": host["isa"],
    }  # fmt: skip
    return {name: shortened(value) for name, value in inputs.items()}


def write_request(request: Request, network: Network, folder: Path) -> None:
    """request.json and graph.json in the run directory: what was asked, of which data, and the canonical graph that it is about."""
    splits = {"calibration": request.splits.calibration, "search": request.splits.search, "gate": request.splits.gate}
    options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request.options).items()}
    asked = {
        "model": {"name": request.model.name, "source": request.model.source, "digest": request.model.digest},
        "metric": request.metric.name,
        "budget": asdict(request.budget),
        "options": options,
        "preprocessing": request.preprocessing.to_json(),
        "data": {name: {"items": len(part), "fingerprint": part.fingerprint(), **part.describe()} for name, part in splits.items()},
    }
    for name, content in (("request", asked), ("graph", network.captured.graph.to_json())):
        with write_atomically(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1))
