"""`Result`: what a job found, in the fields that other tools read (`--json`, `result.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.allocation.prediction.certificate import Certificate
from quantkit.core.run_files import DROP_IN
from quantkit.core.spec import Scheme, parse_scheme
from quantkit.core.statistics import Verdict
from quantkit.runs.outcome import Gain, Refused
from quantkit.verification.parity import Parity
from quantkit.verification.verify import Latency

SCHEMA = 1
Number = float  # `Execution.float` would hide the type from the field behind it


@dataclass(frozen=True, slots=True)
class Baseline:
    """A uniform answer, measured as the plan was: `drop` in the metric's unit, the others relative to the float file (None: not timed)."""

    name: str
    drop: float
    latency_ratio: float | None
    bytes_ratio: float


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group's line of the plan: `sensitivity` as the chosen estimator scores it, bytes and milliseconds as the tables do."""

    group: str
    layers: tuple[str, ...]
    scheme: Scheme
    sensitivity: float
    bytes: float
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class Execution:
    """What the runtime ran: counts of layers, the share of multiply-accumulates in int8, and what differs from the plan."""

    as_planned: bool
    int8: int
    float: int
    int8_macs: Number
    mismatches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BoundRow:
    """A bound in its unit, what the file was measured to use of it, or the plan counted, and whether that is within."""

    name: str
    at_most: Number
    used: Number
    kept: bool


@dataclass(frozen=True, slots=True)
class Files:
    """Absolute paths; `session` is None when the runtime needs no option, `alternative` unless the float network is the answer.

    `float_onnx` is None where the network was never whole (`--streamed`).
    """

    onnx: Path
    float_onnx: Path | None
    session: Path | None
    alternative: Path | None = None

    @property
    def reference(self) -> Path:
        """The float file of a network that was whole."""
        assert self.float_onnx is not None
        return self.float_onnx


@dataclass(frozen=True, slots=True)
class LengthRow:
    """A variant at one length, which counts by `weight`: times of both files, and how exact the file is there."""

    length: int
    weight: float
    latency: Latency | None
    layers_exact: Number | None
    exact: Number

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LengthRow:
        """The inverse of `asdict`."""
        return cls(**{**data, "latency": None if data["latency"] is None else Latency(**data["latency"])})


@dataclass(frozen=True, slots=True)
class VariantRow:
    """Another form of the network under the same plan: its file and its float file (absolute paths), and what was measured of both.

    `bytes_ratio` and `latency` are over its own float file, on its own example; `layers_exact` and `exact` as of a `Parity`. `lengths` are
    those that were asked for.
    """

    name: str
    onnx: Path
    float_onnx: Path
    bytes_ratio: float
    latency: Latency | None
    as_planned: bool
    layers_exact: Number | None
    exact: Number
    lengths: tuple[LengthRow, ...] = ()

    @property
    def mixed_ratio(self) -> float | None:
        """The time of calls of all `lengths`, each as often as its weight says, over the float file's; None where none was timed."""
        timed = [(row.weight, row.latency) for row in self.lengths if row.latency is not None]
        mine, theirs = (sum(weight * getattr(latency, key) for weight, latency in timed) for key in ("quantized_ms", "float_ms"))
        return mine / theirs if timed else None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        own = {"onnx": str(self.onnx), "float_onnx": str(self.float_onnx), "mixed_ratio": self.mixed_ratio}
        return {**asdict(self), **own}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], run: Path | None = None) -> VariantRow:
        """The inverse of `to_json`; with `run`, the files are looked for in that folder."""
        paths = {key: run / Path(data[key]).name if run else Path(data[key]) for key in ("onnx", "float_onnx")}
        if data["name"] == DROP_IN:  # the user's own file lies where it lay
            paths["float_onnx"] = Path(data["float_onnx"])
        latency = None if data["latency"] is None else Latency(**data["latency"])
        lengths = tuple(LengthRow.from_json(row) for row in data.get("lengths", ()))
        known = {key: value for key, value in data.items() if key != "mixed_ratio"}
        return cls(**{**known, **paths, "latency": latency, "lengths": lengths})


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Everything that a job found. `kept` is what the exit code says, `gained` what it is worth: None where the float network ships.

    `distilled`: whether there was no data, so that the promise is of items made of the network.
    """

    run: Path
    kept: bool
    max_drop: float
    unit: str
    metric: str
    verdict: Verdict
    latency: Latency | None
    bytes: Mapping[str, float]
    baselines: tuple[Baseline, ...]
    allocation: tuple[GroupRow, ...]
    executed: Execution
    simulation: Parity
    files: Files
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    fingerprint: str
    notes: tuple[str, ...]
    bounds: tuple[BoundRow, ...] = ()
    certificate: Certificate | None = None
    gained: Gain | None = None
    refused: tuple[Refused, ...] = ()
    minimize: str = "latency"
    variants: tuple[VariantRow, ...] = ()
    distilled: bool = False

    @property
    def delivered(self) -> Path:
        """The file for --output: the one in the place of the user's own, where that was ONNX."""
        return next((row.onnx for row in self.variants if row.name == DROP_IN), self.files.onnx)

    def to_json(self) -> dict[str, Any]:
        """The fields of `result.json`, exactly."""
        verdict = {key: value for key, value in self.verdict.to_json().items() if key != "items_to_decide"}
        return {
            "schema": SCHEMA,
            "run": str(self.run),
            "kept": self.kept,
            "minimize": self.minimize,
            "distilled": self.distilled,
            "gained": self.gained and asdict(self.gained),
            "refused": [asdict(row) for row in self.refused],
            "budget": {"max_drop": self.max_drop, "unit": self.unit, "metric": self.metric},
            "bounds": [asdict(row) for row in self.bounds],
            "verdict": verdict,
            "latency": None if self.latency is None else asdict(self.latency),
            "bytes": dict(self.bytes),
            "baselines": [asdict(row) for row in self.baselines],
            "allocation": [asdict(row) for row in self.allocation],
            "certificate": self.certificate and self.certificate.to_json(),
            "executed": asdict(self.executed),
            "simulation": self.simulation.shares(),
            "variants": [row.to_json() for row in self.variants],
            "files": {key: None if path is None else str(path) for key, path in asdict(self.files).items()},
            "seconds": dict(self.seconds),
            "environment": dict(self.environment),
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], items_to_decide: int | None, run: Path) -> Result:
        """The inverse of `to_json`, with what that leaves out; the files are looked for in `run`, wherever the folder lay before."""
        onnx = run / Path(data["files"]["onnx"]).name
        others = ("float_onnx", "session", "alternative")
        float_onnx, session, alternative = (run / Path(name).name if (name := data["files"][kind]) else None for kind in others)
        rows = [{**row, "layers": tuple(row["layers"]), "scheme": parse_scheme(row["scheme"])} for row in data["allocation"]]
        return cls(
            run=run,
            kept=data["kept"],
            max_drop=data["budget"]["max_drop"],
            unit=data["budget"]["unit"],
            metric=data["budget"]["metric"],
            verdict=Verdict(**data["verdict"], items_to_decide=items_to_decide),
            latency=None if data["latency"] is None else Latency(**data["latency"]),
            bytes=data["bytes"],
            baselines=tuple(Baseline(**row) for row in data["baselines"]),
            allocation=tuple(GroupRow(**row) for row in rows),
            executed=Execution(**{**data["executed"], "mismatches": tuple(data["executed"]["mismatches"])}),
            simulation=Parity(**data["simulation"]),
            files=Files(onnx, float_onnx, session, alternative),
            seconds=data["seconds"],
            environment=data["environment"],
            fingerprint=data["fingerprint"],
            notes=tuple(data["notes"]),
            bounds=tuple(BoundRow(**row) for row in data["bounds"]),
            certificate=Certificate.from_json(data["certificate"]) if data["certificate"] else None,
            gained=Gain(**data["gained"]) if data["gained"] else None,
            refused=tuple(Refused(**row) for row in data["refused"]),
            minimize=data["minimize"],
            distilled=data.get("distilled", False),
            variants=tuple(VariantRow.from_json(row, run) for row in data.get("variants", ())),
        )
