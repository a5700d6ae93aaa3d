"""The user's own ONNX file, which a run was made of, for a stored plan's file to take its place."""

from __future__ import annotations

from pathlib import Path

from quantkit.core.errors import RequestError
from quantkit.loading.from_onnx.comparison import differs
from quantkit.loading.from_onnx.network import read_onnx
from quantkit.loading.from_onnx.rest import OnnxFile
from quantkit.runs.stored_plan import StoredPlan
from quantkit.runtimes.evaluation import open_session
from quantkit.verification.side_by_side import random_feeds


def own_file(plan: StoredPlan, own: Path) -> OnnxFile:
    """The user's file `own`, as `export.joining.write_in_place` takes it.

    Raises RequestError where `own` is not what the plan was made of, as its names or its answers to a random item tell, and ModelError
    where it cannot be read.
    """
    read = read_onnx(own)
    wanted = f"the float file that {plan.folder} was made of"
    if set(read.file.inputs) != set(plan.graph.inputs) or len(read.file.outputs) != len(plan.graph.outputs):
        raise RequestError(f"{own} has other inputs or outputs than the plan's network", wanted, "name that file")
    feeds = random_feeds(plan.float_file)
    network = read.program.module() if read.program else read.module
    if differs(network, [feeds[name] for name in read.file.inputs], open_session(plan.float_file, threads=1).run(feeds)):
        raise RequestError(f"{own} answers otherwise than the plan's float network", wanted, "name that file")
    return read.file
