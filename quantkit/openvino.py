"""A file in OpenVINO (extra `quantkit[openvino]`): run like a session of ONNX Runtime, and asked which of its layers ran in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import RequestError
from quantkit.export.executed import Executed, Precision, owners, plain, taken_in
from quantkit.graph import Graph
from quantkit.metric import Outputs
from quantkit.targets.placement import Placement

INTEGERS = ("u8", "i8")
KINDS: Mapping[str, tuple[str, ...]] = {
    "conv": ("Convolution", "GroupConvolution"),
    "linear": ("FullyConnected", "MatMul"),
}


@dataclass(frozen=True, slots=True, eq=False)
class OpenVinoSession:
    """A compiled file; `capable` names the types in which this CPU computes faster than in float32 (INT8, BF16 …).

    It works in threads of its own, however few, so that only the wall can time it: `threads` is 0.
    """

    path: Path
    compiled: Any
    input_names: tuple[str, ...]
    capable: tuple[str, ...]
    threads: int = 0

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Outputs:
        """The outputs for one batch."""
        found = self.compiled(dict(feeds))
        return tuple(np.asarray(found[output]) for output in self.compiled.outputs)


def open_openvino(path: Path, *, threads: int, precision: str = "f32") -> OpenVinoSession:
    """Compile `path` for the CPU; what stays in floating point computes in `precision` (f32, or bf16 where the CPU has it).

    Raises RequestError where openvino is not installed, or refuses the file.
    """
    try:
        import openvino
    except ImportError as error:
        raise RequestError("openvino is not installed", "", "pip install 'quantkit[openvino]'") from error
    core = openvino.Core()
    settings = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    try:
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise RequestError(f"OpenVINO refuses {path}: {reason}", "a file for openvino", "`quantkit lint` it") from error
    names = tuple(entry.get_any_name() for entry in compiled.inputs)
    return OpenVinoSession(path, compiled, names, tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))


def read_openvino(session: OpenVinoSession, graph: Graph, placement: Placement) -> Executed:
    """The precision of each weighted layer in OpenVINO's own executed model, against the placement.

    What it fuses into them (additions, activations) has no node of its own and is not judged.
    """
    names = owners(graph)
    for name, layer in taken_in(graph).items():  # a float layer, or one with a batch norm behind it, may be named after that
        names.setdefault(f"node_{name}", layer)
    weighted = {layer.name: layer for layer in graph.layers if layer.weight}
    ran: dict[str, Precision] = {}
    for operation in session.compiled.get_runtime_model().get_ops():
        told = {key: str(value.astype(str)) for key, value in operation.get_rt_info().items() if hasattr(value, "astype")}
        originals = [plain(name.split("/")[0]) for name in told.get("originalLayersNames", "").split(",")]
        for owner in dict.fromkeys(names[name] for name in originals if name in names):
            if owner in weighted and told.get("layerType") in KINDS[weighted[owner].kind]:
                integer = told.get("runtimePrecision") in INTEGERS or told.get("primitiveType", "").lower().endswith("_i8")
                ran.setdefault(owner, "int8" if integer else "float")
    mismatches = []
    for name in weighted:
        planned = "int8" if name in placement.int8 else "float"
        if name not in ran:
            mismatches.append(f"{name}: planned {planned}, not found in OpenVINO's executed model")
        elif ran[name] != planned:
            mismatches.append(f"{name}: planned {planned}, ran {ran[name]}")
    return Executed(ran, tuple(mismatches))
