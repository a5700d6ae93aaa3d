"""A machine that costs are *modelled* for: how fast its units multiply, what its memory moves, and what starting a layer takes.

A description is TOML. Speeds are of schemes, over that of half; a scheme that is not named takes half's 16 bits over its wider operand's:

    name = "edge unit"
    macs_per_s = 2e12      # multiply-accumulates in half
    bytes_per_s = 30e9     # of the memory that weights and activations come from
    launch_us = 1.5        # each layer, whatever it does; 0 if left out

    [speed]
    w8a8 = 2.0
    w4a4 = 4.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.core.errors import ConfigError, SchemeError, unknown
from quantkit.core.spec import Scheme, parse_schemes
from quantkit.core.toml_file import read_toml

HALF_BITS = 16
KEYS = ("name", "macs_per_s", "bytes_per_s", "launch_us", "speed")
NEEDED = ("macs_per_s", "bytes_per_s")
# What data sheets give for dense tensor cores: half : int8 : fp8 as 1 : 2 : 2, float32 as TF32 at a half.
SPEEDS: Mapping[str, float] = {"fp32": 0.5, "fp16": 1.0, "w4a16": 1.0, "fp8": 2.0}


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of half, a second; `launch_s` is added to each layer; `speeds` of schemes are over half's, beside SPEEDS."""

    name: str
    macs_per_s: float
    bytes_per_s: float
    launch_s: float = 0.0
    speeds: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, macs: float, moved_bytes: float, scheme: Scheme) -> float:
        """A roofline: the longer of computing and moving, and the launch."""
        speed = self.speeds.get(scheme, SPEEDS.get(scheme, HALF_BITS / max(scheme.precision[:2])))
        return max(macs / (self.macs_per_s * speed), moved_bytes / self.bytes_per_s) + self.launch_s


# Near an A100 (156 tera-MAC/s in half over 1.6 TB/s) and a T4, which are alike in this. In units of bytes that memory moves.
TENSOR_CORES = Machine("tensor cores", 100.0, 1.0)


def read_machine(path: Path) -> Machine:
    """The machine that a TOML file describes. Raises ConfigError for a file that cannot be read, a key or a number that is none."""
    table = read_toml(path)
    for key in table:
        if key not in KEYS:
            raise ConfigError(*unknown(f"key of a machine in {path}", key, KEYS))
    missing = [key for key in NEEDED if key not in table]
    if missing:
        raise ConfigError(f"{path} does not say {' nor '.join(missing)}", "the rates of half, a second", f"write {missing[0]} = 2e12")
    speeds = table.get("speed", {})
    if not isinstance(speeds, dict):
        raise ConfigError(f"{path} has speed = {speeds!r}", "a table [speed]", "write schemes below a line [speed]")
    try:
        parse_schemes(speeds)
    except SchemeError as error:
        raise ConfigError(f"{path} gives the speed of what is no scheme: {error}", "schemes such as w8a8", "correct the name") from error
    rates = {key: _positive(path, key, table[key]) for key in NEEDED}
    launch = _positive(path, "launch_us", table.get("launch_us", 0), least=0.0) / 1e6
    name = table.get("name", path.stem)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{path} has name = {name!r}", "a text", 'write name = "edge unit"')
    return Machine(name, **rates, launch_s=launch, speeds={scheme: _positive(path, scheme, value) for scheme, value in speeds.items()})


def _positive(path: Path, key: str, value: Any, least: float = math.ulp(0.0)) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        wanted = "a number of at least 0" if least == 0 else "a number above 0"
        raise ConfigError(f"{path} has {key} = {value!r}", wanted, f"write {key} = 2.0")
    return float(value)
