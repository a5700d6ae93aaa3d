"""The one table of what may be asked for: the command line, calls, recipes and `quantkit.toml` are all made of it.

A row is an option: its type in a call, the text of `--help`, and the kind of value that a file may set it to. A new option is a row here
and, where stages read it, a field of `Options`. Recipes and `quantkit.toml` may say what stands in `Shared`; `trust_pickle`, `workers`
and `latency_workers` do not, so that no file can allow itself to run code, nor name a scheduler, whose answers are unpickled.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, cast, get_args, get_type_hints

from quantkit.settings.kinds import (
    AMOUNT,
    COUNT,
    DROP,
    FACTOR,
    NUMBER,
    NUMBERS,
    PATH,
    PATTERNS,
    PINS,
    SEED,
    SHAPE,
    SIZE,
    SPLIT,
    SWITCH,
    TEXT,
    TEXTS,
    WORKERS,
    Kind,
)  # fmt: skip
from quantkit.settings.options import SCHEMES

F = TypeVar("F", bound=Callable[..., Any])
MENUS = "; ".join(f"{target}: {','.join(schemes)}" for target, schemes in SCHEMES.items())


@dataclass(frozen=True, slots=True)
class Row:
    """An option. `default` says in words what holds where it is left out, if `Options` does not; calls may give any object if `free`."""

    help: str
    kind: Kind
    default: str = ""
    free: bool = False


class Promise(TypedDict, total=False):
    """What may be lost."""

    max_drop: Annotated[
        str | float | None, Row("The drop allowed, in the metric's unit (0.5), or relative to the float score (0.5%).", DROP)
    ]
    keep: Annotated[str | None, Row("The share of the float score to keep, such as 99.9%.", TEXT)]


class Limits(TypedDict, total=False):
    """What the plan may use."""

    max_bytes: Annotated[str | float | None, Row("Bytes of the file at most: 2MB, or 0.25x of the float file.", AMOUNT)]
    max_latency: Annotated[str | float | None, Row("Time of one inference at most: 5ms, or 0.5x of the float network's.", AMOUNT)]
    max_bops: Annotated[
        str | float | None, Row("Bit operations at most, MACs · weight bits · activation bits: 2.5G, or 0.1x.", AMOUNT)
    ]
    average_bits: Annotated[str | float | None, Row("Bits of the weights on average at most, such as 4.5.", AMOUNT)]


class Judged(TypedDict, total=False):
    """The items, and how answers to them are scored."""

    data: Annotated[Any, Row("An image folder, .npz, .safetensors, or .tsv of texts, to be cut into three splits.", PATH, free=True)]
    metric: Annotated[
        Any, Row("top1, top5, miou, agreement, mae, mse, psnr, ssim, cosine, spearman, perplexity or module:function.", TEXT, free=True)
    ]


class Pixels(TypedDict, total=False):
    """How pictures become inputs; the table `[preprocessing]` of a configuration file."""

    resize: Annotated[str | int | Sequence[int] | None, Row("Pixels of the short side, or HEIGHTxWIDTH.", SIZE)]
    crop: Annotated[str | int | Sequence[int] | None, Row("Pixels of the central crop, or HEIGHTxWIDTH.", SIZE)]
    mean: Annotated[
        str | float | Sequence[float] | None,
        Row("Mean that is subtracted: one number, or one per channel, separated by commas.", NUMBERS),
    ]
    std: Annotated[
        str | float | Sequence[float] | None,
        Row("Standard deviation to divide by: one number, or one per channel, separated by commas.", NUMBERS),
    ]
    scale: Annotated[str | float | None, Row("Factor that pixels are multiplied by first (default for images: 1/255).", FACTOR)]


class Machine(TypedDict, total=False):
    """What runs the file, and how it is measured there."""

    target: Annotated[str | None, Row("The runtime that the file is for", TEXT)]
    threads: Annotated[int | None, Row("Threads of the runtime for timing", COUNT)]
    batch_size: Annotated[int | None, Row("Items in one batch", COUNT)]
    seed: Annotated[int | None, Row("Seed of probes and resampling", SEED)]


class Layers(TypedDict, total=False):
    """How the network is loaded, and what its groups may take."""

    schemes: Annotated[
        str | Sequence[str] | None,
        Row(f"Schemes to choose from, with commas ({MENUS}).", TEXTS),
    ]
    fix: Annotated[Sequence[str] | Mapping[str, str] | None, Row("GROUP=SCHEME pins a group; may be repeated.", PINS)]
    exclude: Annotated[Sequence[str] | None, Row("A pattern of group names that stay float; may be repeated.", PATTERNS)]
    arch: Annotated[str | None, Row("package.module:function that builds the network of a state dict.", TEXT)]
    input_shape: Annotated[str | Sequence[int] | None, Row("Shape of an example input, such as 1x3x224x224.", SHAPE)]


class Method(TypedDict, total=False):
    """What is made small, and by which methods."""

    minimize: Annotated[str | None, Row("What to minimize", TEXT)]
    sensitivity: Annotated[str | None, Row("The sensitivity: how the effect of quantizing a group is estimated", TEXT)]
    observer: Annotated[str | None, Row("The observer: how activation ranges are read from the calibration data", TEXT)]
    rounding: Annotated[str | None, Row("How weights are rounded", TEXT)]
    equalization: Annotated[str | None, Row("Whether channels between layers are balanced first", TEXT)]
    effort: Annotated[
        str | None,
        Row(
            "For which plans weights are rounded in the plan's own network", TEXT,
            "balanced where weights of less than 8 bits are on the menu, else fast",
        ),
    ]  # fmt: skip
    confidence: Annotated[
        float | None,
        Row(
            "How sure the search must be that the gate will keep the promise", NUMBER,
            "0.85, or less, 0.5 at least, as far as the gate's items are too few to tell",
        ),
    ]  # fmt: skip
    certificate: Annotated[
        int | None,
        Row("On how many unseen plans predictions are tested; 0 measures none", SEED, "40, or 16 where weights are rounded for each plan"),
    ]
    machine: Annotated[
        str | Path | None, Row("A TOML file that describes the machine to model, for a target that does not run here.", PATH)
    ]
    shape: Annotated[
        str | None, Row("Lengths at which the file of any length is compared and timed: sequence=32,128, or sequence=32:3,128:1.", TEXT)
    ]
    split_seed: Annotated[int | None, Row("Seed that cuts --data into splits", SEED)]
    memory_mb: Annotated[int | None, Row("Memory limit in MB for the activations that the passes of a sensitivity hold", COUNT)]


class Shared(Promise, Limits, Judged, Pixels, Machine, Layers, Method, total=False):
    """What a recipe and a configuration file may say too."""

    time_limit: Annotated[str | float | None, Row("Stop the search after this time, with the best plan so far: 10m, 90s, 1h.", AMOUNT)]
    undecided: Annotated[str | None, Row("What decides where the confidence interval does not", TEXT)]
    device: Annotated[str | None, Row("Device on which torch computes", TEXT)]


class Written(TypedDict, total=False):
    """Where results go."""

    output: Annotated[str | Path | None, Row("The ONNX file to write.", PATH)]
    run: Annotated[str | Path | None, Row("The run directory, which keeps the results of all stages.", PATH)]


class Arguments(Shared, Written, total=False):
    """All options of a call and of the command line, as given: text or objects. What is left out, or None, is not given."""

    calibration_data: Annotated[Any, Row("Items for the ranges only.", PATH, free=True)]
    search_data: Annotated[Any, Row("Items that the search may evaluate.", PATH, free=True)]
    gate_data: Annotated[Any, Row("Items for the verdict only.", PATH, free=True)]
    calibration_items: Annotated[int | None, Row("Items of the data for the ranges.", SPLIT)]
    search_items: Annotated[int | None, Row("Items of the data for the search.", SPLIT)]
    gate_items: Annotated[int | None, Row("Items of the data for the verdict.", SPLIT)]
    search: Annotated[str | None, Row("The search algorithm", TEXT)]
    workers: Annotated[
        str | int | None, Row("Processes of this machine to share the work, or tcp://SCHEDULER:PORT of Dask (quantkit[workers]).", WORKERS)
    ]
    latency_workers: Annotated[
        str | None, Row("tcp://SCHEDULER:PORT of Dask whose workers are the device: files are timed there (quantkit[workers]).", TEXT)
    ]
    streamed: Annotated[
        bool | None, Row("Read, round and write a decoder of a transformers folder block by block, as one that does not fit.", SWITCH)
    ]
    trust_pickle: Annotated[bool | None, Row("Allow a pickled file to run code while it loads.", SWITCH)]


class Inspected(Layers, total=False):
    """What decides which groups a network has."""

    data: Annotated[Any, Row("Data whose first item is the example input.", PATH, free=True)]
    resize: Annotated[str | int | Sequence[int] | None, Row("Pixels of the short side, or HEIGHTxWIDTH.", SIZE)]
    crop: Annotated[str | int | Sequence[int] | None, Row("Pixels of the central crop, or HEIGHTxWIDTH.", SIZE)]
    target: Annotated[str | None, Row("The runtime that the file is for", TEXT)]
    trust_pickle: Annotated[bool | None, Row("Allow a pickled file to run code while it loads.", SWITCH)]


class Required(Promise, total=False):
    """What a file must keep."""

    max_latency_ratio: Annotated[
        str | float | None, Row("Time of one inference at most, as a share of the other file's: 0.6.", AMOUNT)
    ]
    max_bytes: Annotated[str | float | None, Row("Bytes of the file at most: 2MB, or 0.3x of the other file.", AMOUNT)]
    require_int8: Annotated[str | float | None, Row("Multiply-accumulates that must run in int8, such as 95%.", AMOUNT)]


class Gating(Required, Judged, Pixels, Machine, total=False):
    """What `quantkit gate` takes: conditions, and how they are checked."""

    undecided: Annotated[str | None, Row("What decides where the confidence interval does not", TEXT)]


def rows(table: Any) -> dict[str, Row]:
    """The options of one of these classes, by name, in order."""
    return {name: get_args(hint)[1] for name, hint in get_type_hints(table, include_extras=True).items()}


def kinds(table: Any) -> dict[str, Kind]:
    """What a file may set the options of one of these classes to."""
    return {name: row.kind for name, row in rows(table).items()}


# In files `search` names a split, as `calibration` and `gate` do, and the algorithm has another name.
FILE_KEYS = {**kinds(Shared), "calibration": SPLIT, "search": SPLIT, "gate": SPLIT, "search_method": TEXT}


def from_file(values: Mapping[str, Any]) -> Arguments:
    """What a recipe or a configuration file says under FILE_KEYS, under the names of `Arguments`."""
    named = dict(values)
    method = named.pop("search_method", None)
    for split in ("calibration", "search", "gate"):
        value = named.pop(split, None)
        named[f"{split}_{'items' if isinstance(value, int) else 'data'}"] = value
    return given({**named, "search": method})


def given(said: Mapping[str, Any]) -> Arguments:
    """What is neither None nor empty."""
    empty = {name for name, value in said.items() if value is None or (isinstance(value, str | tuple | Mapping) and not value)}
    return cast("Arguments", {name: value for name, value in said.items() if name not in empty})


def spelled_out(table: Any) -> Callable[[F], F]:
    """For a function of `**options`: a signature that names those of the table, for `help` and editors, and that refuses any other."""

    def decorate(function: F) -> F:
        hints = get_type_hints(table)
        named = with_options(function, [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]) for name in hints])

        @wraps(function)
        def call(*positional: Any, **options: Any) -> Any:
            named.bind(*positional, **options)
            return function(*positional, **options)

        call.__signature__ = named  # type: ignore[attr-defined]
        return cast("F", call)

    return decorate


def with_options(function: Callable[..., Any], options: Iterable[Parameter], *, evaluated: bool = False) -> Signature:
    """The function's signature with these options in the place of `**options`: after its own parameters, before those by keyword only."""
    own = signature(function, eval_str=evaluated)
    known = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    first = [each for each in known if each.kind is not Parameter.KEYWORD_ONLY]
    return own.replace(parameters=[*first, *options, *(each for each in known if each not in first)])
