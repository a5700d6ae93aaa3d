"""Targets: a runtime and its rules, one file each. Adding a target is adding a file and a line in `TARGETS`."""

from __future__ import annotations

from types import ModuleType

from quantkit.core.errors import SchemeError, unknown
from quantkit.targets import openvino, ort_cpu, tensorrt
from quantkit.targets.placement import Placement

__all__ = ["TARGETS", "Placement", "find_target"]

TARGETS: dict[str, ModuleType] = {target.NAME: target for target in (ort_cpu, openvino, tensorrt)}


def find_target(name: str) -> ModuleType:
    """The target of that name. Raises SchemeError with the nearest known name."""
    if name not in TARGETS:
        raise SchemeError(*unknown("target", name, TARGETS))
    return TARGETS[name]
