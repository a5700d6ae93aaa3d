"""Targets: a runtime and its rules, one file each. Adding a target is adding a file and a line in `TARGETS`."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from quantkit.core.errors import SchemeError, unknown
from quantkit.core.spec import QuantSpec, parse_scheme
from quantkit.targets import nbit, openvino, ort_cpu, tensorrt
from quantkit.targets.placement import Placement

__all__ = ["TARGETS", "Placement", "find_target", "other_widths"]

TARGETS: dict[str, ModuleType] = {target.NAME: target for target in (ort_cpu, openvino, tensorrt, nbit)}


def find_target(name: str) -> ModuleType:
    """The target of that name. Raises SchemeError with the nearest known name."""
    if name not in TARGETS:
        raise SchemeError(*unknown("target", name, TARGETS))
    return TARGETS[name]


def other_widths(target: ModuleType) -> dict[int, QuantSpec]:
    """By bits, the formats of activations that the target's schemes have besides its ACTIVATIONS: each has ranges of its own."""
    specs = [parse_scheme(name).activations for name in target.SCHEMES]
    bits = {spec.bits for spec in specs if isinstance(spec, QuantSpec)} - {target.ACTIVATIONS.bits}
    return {count: replace(target.ACTIVATIONS, bits=count) for count in sorted(bits)}
