"""The result of a whole job, kept beside its stages: asked again, a job repeats nothing but the capture."""

from __future__ import annotations

import hashlib

from quantkit.environment import describe
from quantkit.result import Result
from quantkit.stages.network import Network
from quantkit.store import Run, fingerprint

STAGE = "result"


def result_key(job: str, network: Network) -> str:
    """Stands for the job, the captured network (and with it this very code) and this machine: a result is repeated for the same of all."""
    host = describe()
    return fingerprint(job, network.key, host["cpu"], host["isa"])


def find_result(store: Run, key: str) -> Result | None:
    """The kept result, if its files lie in the run directory as they were."""
    kept = store.get(STAGE, key)
    if kept is None:
        return None
    result = Result.from_json(kept["result"], tuple(kept["notes"]), kept["items_to_decide"], store.folder)
    return result if _digests(result) == kept["sha256"] else None


def keep_result(store: Run, key: str, result: Result) -> None:
    """Keep the result, with what the JSON leaves out and the digests of its files."""
    more = {"notes": list(result.notes), "items_to_decide": result.verdict.items_to_decide, "sha256": _digests(result)}
    store.put(STAGE, key, {"result": result.to_json(), **more})


def _digests(result: Result) -> list[str | None]:
    paths = [result.files.onnx, result.files.float_onnx, result.files.session]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None for path in paths]
