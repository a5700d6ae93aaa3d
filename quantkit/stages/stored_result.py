"""The result of a whole job, kept beside its stages: asked again, a job repeats nothing but the capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quantkit.core.environment import describe
from quantkit.core.run_files import PIPELINE
from quantkit.core.sources import code_of
from quantkit.export.onnx_file import content_digest
from quantkit.runs.result import Result
from quantkit.runs.workbench import Plain, Workbench, stage_key
from quantkit.stages.capture import Network

STAGE = "result"


def keep_result(bench: Workbench, job: str, network: Network, allocate: Callable[[], Result]) -> Result:
    """The kept result, if its files lie in the run directory as they were; else `allocate` makes it.

    It hangs on the job, the captured network, the code of the whole job, this machine and the device: a result is repeated for the same of
    all.
    """
    host = describe()
    depends_on = {
        "request": job, "network": network.key, "code of quantkit": code_of(PIPELINE), "processor": host["cpu"],
        "integer instructions": host["isa"], **bench.elsewhere,
    }  # fmt: skip
    made: list[Result] = []

    def compute() -> Plain:
        made.append(allocate())
        (result,) = made
        more = {"items_to_decide": result.verdict.items_to_decide, "sha256": _digests(result)}
        return Plain({"result": result.to_json(), **more})

    store, key = bench.store, stage_key(STAGE, depends_on, compute)
    kept = store.get(STAGE, key)
    if kept is not None and _digests(_read(kept, bench)) != kept["sha256"]:
        store.forget(STAGE, key)
    found = bench.keep(STAGE, depends_on, compute, Plain)
    return made[0] if made else _read(found.value, bench)


def _read(kept: Mapping[str, Any], bench: Workbench) -> Result:
    return Result.from_json(kept["result"], kept["items_to_decide"], bench.store.folder)


def _digests(result: Result) -> list[str | None]:
    paths = [result.files.onnx, result.files.float_onnx, result.files.session, result.files.alternative]
    paths += [path for row in result.variants for path in (row.onnx, row.float_onnx)]
    return [content_digest(path) if path and path.is_file() else None for path in paths]
