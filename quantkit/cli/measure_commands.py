"""The commands `measure`, which makes the tables of a run directory, and `pick`, which chooses a plan from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from quantkit.cli import flags, tables
from quantkit.cli.console import ConsoleProgress, print_json, worked
from quantkit.cli.exit_codes import KEPT, NOT_KEPT, exit_code
from quantkit.cli.plot import draw_front
from quantkit.settings.bounds import parse_bounds
from quantkit.settings.options import Arguments, Options

if TYPE_CHECKING:
    from quantkit.pipeline import Measurement


def measure(
    model: flags.Model, metric: flags.Metric = None, confidence: flags.Confidence = None, certificate: flags.Certificate = None,
    data: flags.Data = None, calibration_data: flags.CalibrationData = None,
    search_data: flags.SearchData = None, gate_data: flags.GateData = None,
    resize: flags.Resize = None, crop: flags.Crop = None, mean: flags.Mean = None, std: flags.Std = None, scale: flags.Scale = None,
    target: flags.Target = None, minimize: flags.Minimize = None, max_bytes: flags.MaxBytes = None, max_latency: flags.MaxLatency = None,
    max_bops: flags.MaxBops = None, average_bits: flags.AverageBits = None, sensitivity: flags.Sensitivity = None,
    schemes: flags.Schemes = None, fix: flags.Fix = None, exclude: flags.Exclude = None, observer: flags.Observer = None,
    rounding: flags.Rounding = None, equalization: flags.Equalization = None, effort: flags.Effort = None,
    run: flags.RunFolder = None, seed: flags.Seed = None, split_seed: flags.SplitSeed = None, batch_size: flags.BatchSize = None,
    memory_mb: flags.MemoryMb = None, threads: flags.Threads = None, device: flags.Device = None,
    arch: flags.Arch = None, trust_pickle: flags.TrustPickle = False,
    input_shape: flags.InputShape = None, as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Measure sensitivities and costs into a run directory, without a promise or a search; `pick` and `allocate` continue from there.

    quantkit measure model.pt2 --data images/ --run runs/mine
    """
    arguments = Arguments(
        data=data, calibration_data=calibration_data, search_data=search_data, gate_data=gate_data,
        resize=resize, crop=crop, mean=mean, std=std, scale=scale, metric=metric, confidence=confidence, certificate=certificate,
        max_bytes=max_bytes, max_latency=max_latency, max_bops=max_bops, average_bits=average_bits,
        target=target, minimize=minimize, sensitivity=sensitivity, schemes=schemes, fix=fix, exclude=exclude,
        observer=observer, rounding=rounding, equalization=equalization, effort=effort,
        run=run, seed=seed, split_seed=split_seed, batch_size=batch_size,
        memory_mb=memory_mb, threads=threads, device=device, arch=arch, trust_pickle=trust_pickle or None, input_shape=input_shape,
    )  # fmt: skip

    def job(progress: ConsoleProgress) -> Measurement:
        from quantkit import pipeline
        from quantkit.settings import request

        return pipeline.measure(request.resolve(model, arguments, promised=False), progress)

    def show(measured: Measurement) -> int:
        if as_json:
            print_json({"run": str(measured.run), "front": measured.front, "seconds": measured.seconds})
        else:
            tables.show_front(measured.front, None)
            print(f"run folder  {measured.run}")
        return KEPT

    raise typer.Exit(exit_code(lambda: show(worked(job))))


def pick(
    run: Annotated[Path, Argument(help="The run directory of `measure` or `allocate`.")],
    max_drop: flags.MaxDrop = None, keep: flags.Keep = None, max_bytes: flags.MaxBytes = None, max_latency: flags.MaxLatency = None,
    max_bops: flags.MaxBops = None, average_bits: flags.AverageBits = None,
    minimize: Annotated[str | None, Option(help="What to minimize (default: as measured).")] = None,
    as_json: flags.Json = False,
) -> None:  # fmt: skip
    """Choose another plan from the tables of a run, without the network or data; `export` and `verify` then use it.

    quantkit pick runs/mine --max-drop 0.3 --max-bytes 1MB
    """

    def show() -> int:
        from quantkit.core.metric import parse_budget
        from quantkit.runs.pick import pick as choose

        texts = {"latency": max_latency, "bytes": max_bytes, "bops": max_bops, "average_bits": average_bits}
        bounds = parse_bounds(texts)
        Options(minimize=minimize or "latency", bounds=bounds)  # checks the words
        budget = None if max_drop is None and keep is None else parse_budget(max_drop, keep)
        picked = choose(run, budget, bounds, minimize)
        if as_json:
            print_json(picked.to_json())
        else:
            tables.show_picked(picked.to_json())
            drawn = draw_front(picked.front, picked.plan.allocation, picked.goal)
            if drawn is not None:
                print(f"\n{drawn}")
        return KEPT if picked.kept else NOT_KEPT

    raise typer.Exit(exit_code(show))
