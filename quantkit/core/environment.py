"""This machine and the installed versions: part of every result, and what `quantkit doctor` prints.

Reads metadata and the operating system's own word; imports no package to ask its version.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "onnxruntime", "onnx", "openvino", "quantkit")

# Instruction sets that change which integer kernel runs, the fastest first; each with the names that systems give it.
ISA_NAMES: dict[str, tuple[str, ...]] = {
    "amx_int8": ("amx_int8",),
    "avx512_vnni": ("avx512_vnni", "avx512vnni"),
    "avx_vnni": ("avx_vnni", "avxvnni"),
    "i8mm": ("i8mm", "feat_i8mm"),
    "dotprod": ("asimddp", "feat_dotprod"),
    "avx2": ("avx2",),
}
VNNI = frozenset({"amx_int8", "avx512_vnni", "avx_vnni"})


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    return _cpuinfo().get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def isa() -> tuple[str, ...]:
    """The instruction sets of `ISA_NAMES` that this processor has, the fastest first."""
    info = _cpuinfo()
    told = (info.get("flags", ""), info.get("Features", ""), _sysctl("machdep.cpu.leaf7_features"), _sysctl("hw.optional.arm"))
    flags = {word.removeprefix("hw.optional.arm.") for word in " ".join(told).lower().split()}
    return tuple(name for name, spellings in ISA_NAMES.items() if flags & set(spellings))


def isa_label() -> str:
    """One word for the fastest integer instruction set; the machine's architecture if none of them is there."""
    found = isa()
    return found[0] if found else platform.machine()


def versions() -> dict[str, Any]:
    """Versions of what computes, by name."""
    told = describe()
    return {name: told[name] for name in ("torch", "onnxruntime", "openvino")}


def has_vnni() -> bool:
    """Whether int8 products are summed in 32 bits by one instruction, without the saturation of 16-bit pairs."""
    return bool(VNNI & set(isa()))


def cores() -> int:
    """Cores that this process may use, which a container or `taskset` can make fewer than the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def usable_targets() -> dict[str, str]:
    """For each target, the installed version of what runs its files, or what to install; nothing is imported."""
    packages = {"ort-cpu": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt", "nbit": "onnxruntime"}
    return {target: _version(package) or f"{package} is not installed" for target, package in packages.items()}


def describe() -> dict[str, Any]:
    """A JSON form of the processor, the versions and the system; a package that is not installed is null."""
    versions = {name: _version(name) for name in PACKAGES}
    system = {"python": platform.python_version(), "os": platform.platform(terse=True)}
    return {"cpu": cpu_model(), "isa": isa_label(), "cores": cores(), **versions, **system}


def processor(host: Mapping[str, Any]) -> str:
    """What times belong to, in words, of a machine that `describe` described."""
    return f"{host['cpu']}, {host['isa']}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's list; empty elsewhere."""
    if not CPUINFO.exists():
        return {}
    first = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _sysctl(name: str) -> str:
    """What macOS says of itself, names of switched-on features only where it answers with switches; empty elsewhere."""
    if platform.system() != "Darwin":
        return ""
    answer = subprocess.run(["sysctl", name], capture_output=True, text=True, check=False).stdout
    return " ".join(_switched_on(line) for line in answer.splitlines())


def _switched_on(line: str) -> str:
    key, _, value = line.partition(": ")
    return {"0": "", "1": key}.get(value, value)
