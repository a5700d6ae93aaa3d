"""The whole job as one call: `quantkit.allocate`, `quantkit.inspect` and `quantkit.gate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit import gating, pipeline
from quantkit.core.progress import Progress, Silent
from quantkit.runs.result import Result
from quantkit.settings.options import Arguments
from quantkit.settings.request import Source, resolve, resolve_model


def allocate(
    model: Source,
    *,
    data: Any = None, calibration_data: Any = None, search_data: Any = None, gate_data: Any = None,
    metric: Any = None, max_drop: float | str | None = None, keep: str | None = None,
    max_bytes: float | str | None = None, max_latency: float | str | None = None, max_bops: float | str | None = None,
    average_bits: float | str | None = None, time_limit: float | str | None = None,
    undecided: str | None = None, confidence: float | None = None, certificate: int | None = None,
    target: str | None = None, minimize: str | None = None, sensitivity: str | None = None, search: str | None = None,
    schemes: Sequence[str] | str | None = None, fix: Mapping[str, str] | Sequence[str] | None = None,
    exclude: Sequence[str] | None = None, observer: str | None = None, rounding: str | None = None,
    equalization: str | None = None, effort: str | None = None,
    output: str | Path | None = None, run: str | Path | None = None,
    seed: int | None = None, split_seed: int | None = None, batch_size: int | None = None, memory_mb: int | None = None,
    threads: int | None = None, device: str | None = None, arch: str | None = None, trust_pickle: bool | None = None,
    input_shape: Sequence[int] | str | None = None, resize: int | tuple[int, int] | None = None,
    crop: int | tuple[int, int] | None = None, mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None, scale: float | None = None, progress: Progress | None = None,
) -> Result:  # fmt: skip
    """The plan for `model` that keeps the promise, its file, and what was measured on that file.

    `model` is a module, a recipe, or whatever the command line takes; it is left as it was. `data` is a DataLoader, any iterable of
    batches, tensors (inputs, labels), a dataset, a path, or a mapping with `calibration`, `search` and `gate`. What is left out
    comes from the recipe or, for a network from a file, from the configuration file here, else from `quantkit.Options`.
    Raises RequestError for a wrong request; a promise that no plan keeps is not an error: see `Result.kept`.
    """
    arguments = Arguments(
        data=data, calibration_data=calibration_data, search_data=search_data, gate_data=gate_data, metric=metric, max_drop=max_drop,
        keep=keep, max_bytes=max_bytes, max_latency=max_latency, max_bops=max_bops, average_bits=average_bits, time_limit=time_limit,
        undecided=undecided, confidence=confidence, certificate=certificate, target=target, minimize=minimize,
        sensitivity=sensitivity, search=search, schemes=schemes, fix=fix, exclude=exclude,
        observer=observer, rounding=rounding, equalization=equalization, effort=effort,
        output=output, run=run, seed=seed, split_seed=split_seed, batch_size=batch_size,
        memory_mb=memory_mb, threads=threads, device=device, arch=arch, trust_pickle=trust_pickle,
        input_shape=input_shape,
        resize=resize, crop=crop, mean=mean, std=std, scale=scale,
    )  # fmt: skip
    return pipeline.run(resolve(model, arguments), progress or Silent())


def inspect(
    model: Source,
    *,
    data: Any = None, target: str | None = None, schemes: Sequence[str] | str | None = None,
    fix: Mapping[str, str] | Sequence[str] | None = None, exclude: Sequence[str] | None = None, arch: str | None = None,
    trust_pickle: bool | None = None, input_shape: Sequence[int] | str | None = None,
) -> pipeline.Inspection:  # fmt: skip
    """The groups of `model` and what stays float, without a promise and, where the input's shape is known, without data."""
    arguments = Arguments(
        data=data, target=target, schemes=schemes, fix=fix, exclude=exclude, arch=arch, trust_pickle=trust_pickle, input_shape=input_shape
    )
    return pipeline.inspect(*resolve_model(model, arguments))


def gate(
    path: str | Path,
    *,
    float_file: str | Path | None = None, against: str | Path | None = None, lock: str | Path | None = None,
    max_drop: float | str | None = None, keep: str | None = None, max_latency_ratio: float | str | None = None,
    max_bytes: float | str | None = None, require_int8: float | str | None = None, undecided: str | None = None,
    data: Any = None, metric: Any = None, target: str | None = None, threads: int | None = None, batch_size: int | None = None,
    seed: int | None = None, resize: int | tuple[int, int] | None = None, crop: int | tuple[int, int] | None = None,
    mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None, scale: float | None = None,
    progress: Progress | None = None,
) -> gating.Gated:  # fmt: skip
    """Whether a file, or a run directory's, keeps these conditions, or by default those of its lock file: see `Gated.kept`.

    Takes any ONNX file. A broken condition is not an error; raises RequestError for a wrong request.
    """
    conditions = gating.parse_conditions(
        {"max_drop": max_drop, "keep": keep, "max_latency_ratio": max_latency_ratio, "max_bytes": max_bytes, "require_int8": require_int8}
    )
    arguments = Arguments(
        data=data, metric=metric, undecided=undecided, target=target, threads=threads, batch_size=batch_size, seed=seed,
        resize=resize, crop=crop, mean=mean, std=std, scale=scale,
    )  # fmt: skip
    paths = {"float_file": float_file, "against": against, "lock": lock}
    given = {name: None if value is None else Path(value) for name, value in paths.items()}
    return gating.gate(gating.Asked(path=Path(path), conditions=conditions, arguments=arguments, **given), progress or Silent())
