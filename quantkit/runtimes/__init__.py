"""Runtimes: what opens, runs, times and explains a target's files; one file a target. Adding one is adding a file and a line in `RUNTIMES`.

ort_cpu.py     ONNX Runtime's CPU provider
openvino.py    OpenVINO's CPU plugin
nbit.py        no such machine: ONNX Runtime, optimisations off, for the numbers
tensorrt.py    no TensorRT here: ONNX Runtime, optimisations off, for the numbers; OpenVINO for what runs in int8
"""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.core.errors import SchemeError, unknown
from quantkit.runtimes import nbit, openvino, ort_cpu, tensorrt
from quantkit.runtimes.evaluation import Feeds, Session
from quantkit.runtimes.runtime import Kernel, Rival, Runtime

__all__ = ["RUNTIMES", "Feeds", "Kernel", "Rival", "Runtime", "Session", "find_runtime"]

RUNTIMES: Mapping[str, Runtime] = {"ort-cpu": ort_cpu, "openvino": openvino, "tensorrt": tensorrt, "nbit": nbit}


def find_runtime(target: str) -> Runtime:
    """The runtime of the target of that name. Raises SchemeError with the nearest known name."""
    if target not in RUNTIMES:
        raise SchemeError(*unknown("target", target, RUNTIMES))
    return RUNTIMES[target]
