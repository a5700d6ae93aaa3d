"""A request: what the user asked for, on the command line, in a call, a recipe or a configuration file, resolved once.

The command line and calls win over the configuration file, which holds for networks that come from files. A recipe is complete
in itself: only the command line and calls win over it. Past this line nothing is text, and nothing is checked again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantkit import loading
from quantkit.core.errors import DataError, MetricError, ModelError, OutputError, RequestError
from quantkit.core.machine import read_machine
from quantkit.core.metric import Budget, Metric, check_budget, parse_budget
from quantkit.core.metrics import resolve_metric
from quantkit.data import Batch, Dataset, Distilled, Preprocessing, Rows, Splits, Subset, collect, is_rows, open_dataset, split, whole
from quantkit.data.text import LINES, SEPARATORS, read_lines, read_texts
from quantkit.loading import LoadedModel
from quantkit.runtimes import find_runtime
from quantkit.settings.arguments import Arguments, given
from quantkit.settings.bounds import BOUNDS, parse_bounds, parse_seconds
from quantkit.settings.config import load_config
from quantkit.settings.options import Options, lengths, numbers, pins, size, words
from quantkit.settings.recipe import Recipe, load_recipe
from quantkit.settings.streamed import StreamedRequest, streamed_arguments

Source = str | Path | nn.Module | LoadedModel | Recipe

SPLITS = ("calibration", "search", "gate")
SOURCES = {"data": "data", **{name: f"{name}_data" for name in SPLITS}}
# What is said as one: a share to keep unsays another place's maximal drop, other data its counts.
UNITS = (frozenset({"max_drop", "keep"}), frozenset({*SOURCES.values(), *(f"{name}_items" for name in SPLITS)}))
EVERYTHING = Budget(100.0, "relative")
EXAMPLE_ITEMS = 2  # a batch of one would be taken for a fixed size
NO_NORMS = (
    "no data: neither given nor in a configuration file here, and the network has no batch norm to distill items from",
    "items to calibrate on, to search with and to judge by",
    'pass --data PATH, unlabelled with --metric agreement; or a recipe file, which brings its own; or data = "PATH" in quantkit.toml',
)
# Items that are distilled where there is no data, unless other counts are asked for: for each verdict as many as can tell the budget
# from nothing, and a third more, since one answer of n is worth 1/n.
DISTILLED_CALIBRATION, DISTILLED_LEAST, DISTILLED_MOST, DISTILLED_SPARE = 64, 96, 512, 4 / 3


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """The whole job, checked. `example` holds inputs of two items, and is None where only an archive's own are known."""

    model: LoadedModel
    example: Mapping[str, Tensor] | None
    splits: Splits
    metric: Metric
    budget: Budget
    options: Options
    preprocessing: Preprocessing


def resolve(source: Source, arguments: Arguments, *, promised: bool = True) -> Request:
    """The request to allocate `source` under `arguments`. Raises RequestError for whatever of it is wrong, the cheap things first.

    Where nothing need be `promised`, or the drop is what is made small, a budget that is not given is unlimited.
    """
    network, said = _gather(source, arguments)
    options, preprocessing = _options(said), _preprocessing(said)
    unsaid = said.keys().isdisjoint({"max_drop", "keep"})
    free = unsaid and (options.minimize == "drop" or not promised)
    budget = EVERYTHING if free else parse_budget(said.get("max_drop"), said.get("keep"))
    metric = resolve_metric(said.get("metric") or "top1")
    sources = _sources(said)
    model = _check_variants(_load(network, said), options)
    if not sources:
        return _without_data(model, said, budget, options, preprocessing)
    splits = _open(sources, _reading(network, said, preprocessing), said, options.split_seed)
    _check_labels_exist(metric, splits)
    check_budget(budget.points(100.0), min(len(splits.search), len(splits.gate)), metric.unit)
    model, example = _example(model, said, splits)
    return Request(model, example, splits, metric, budget, options, preprocessing)


def resolve_streamed(source: Source, arguments: Arguments) -> StreamedRequest:
    """The request to allocate the folder `source` block by block. Raises RequestError, also for what is not done so."""
    network, said = _gather(source, arguments)
    folder = Path(network).expanduser() if isinstance(network, (str, Path)) else None
    if folder is None or not loading.is_folder(folder):
        raise ModelError("--streamed for what is no folder of transformers", "a folder with config.json and safetensors", "leave it out")
    wanted = streamed_arguments(said)
    options, metric = _options(wanted), resolve_metric(wanted["metric"])
    free = said.keys().isdisjoint({"max_drop", "keep"}) and options.minimize == "drop"
    budget = EVERYTHING if free else parse_budget(said.get("max_drop"), said.get("keep"))
    sources = _sources(said)
    if not sources:
        raise DataError("--streamed without data", "texts, or tokens", "pass --data stories.txt")
    splits = _open(sources, _reading(network, said, Preprocessing()), said, options.split_seed)
    return StreamedRequest(folder, folder.resolve().name, splits, metric, budget, options)


def _check_variants(model: LoadedModel, options: Options) -> LoadedModel:
    """The model with the variants that these options leave it. Raises RequestError where they do not go together."""
    if model.variants and options.equalization != "none":
        others = {name: variant for name, variant in model.variants.items() if name != loading.ANY_LENGTH}
        if others:
            got = f"--equalization {options.equalization} for a network with other forms ({', '.join(others)}), whose weights it leaves"
            raise RequestError(got, "none", "leave --equalization out, or the variants")
        model = replace(model, variants=others)
    if options.shape:
        variant, asked = model.variants.get(loading.ANY_LENGTH), ",".join(str(length) for length, _ in options.shape)
        if variant is None or not variant.has_one_length:
            do = "pass a transformers folder that reads text, or a recipe with such a variant (quantkit.loading.length_variant)"
            got = f"--shape sequence={asked} for a network without a form of any length"
            raise RequestError(got, f"the variant {loading.ANY_LENGTH}", do)
        if variant.longest is not None and max(length for length, _ in options.shape) > variant.longest:
            got = f"--shape sequence={asked} for a network of {variant.longest} positions"
            raise RequestError(got, f"lengths of at most {variant.longest}", "leave the longer ones out")
    return model


def _without_data(model: LoadedModel, said: Arguments, budget: Budget, options: Options, preprocessing: Preprocessing) -> Request:
    """The request on items that will be distilled from the network; their answers are compared with the float network's."""
    if not loading.has_batch_norm(model):
        raise DataError(*NO_NORMS)
    metric = resolve_metric(said.get("metric") or "agreement")
    if metric.reference == "labels":
        got = f"metric {metric.name} without data: items that are distilled from the network have no labels"
        raise MetricError(got, "labelled data, or a metric that compares with the float network", "pass --data PATH, or --metric agreement")
    model, example = _example(model, said, None)
    inputs = {name: tuple(value.shape[1:]) for name, value in example.items() if value.is_floating_point()} if example else {}
    if model.program is not None:
        inputs = loading.input_shapes(model.program)
    if len(inputs) != 1 or len(example or inputs) != 1:
        got = "no data for a network of other inputs than one of real numbers, of a fixed size but for the batch"
        raise DataError(got, "one such input, for which items can be distilled", "pass --data PATH")
    ((name, shape),) = inputs.items()
    enough = round(DISTILLED_SPARE * 100 / max(budget.points(100.0), 1e-9))
    judged = min(max(enough, DISTILLED_LEAST), DISTILLED_MOST)
    usual = {"calibration": DISTILLED_CALIBRATION, "search": judged, "gate": judged}
    asked: Mapping[str, Any] = said
    counts: dict[str, int] = {name: asked.get(f"{name}_items") or count for name, count in usual.items()}
    items = Distilled(model.digest, name, shape, sum(counts.values()), options.seed)
    splits = split(items, seed=options.split_seed, **counts)
    check_budget(budget.points(100.0), min(counts["search"], counts["gate"]), metric.unit)
    return Request(model, example, splits, metric, budget, options, preprocessing)


def resolve_model(source: Source, arguments: Arguments) -> tuple[LoadedModel, Mapping[str, Tensor] | None, Options]:
    """The network, an example of its inputs and the options: what is known without a promise. Raises RequestError."""
    network, said = _gather(source, arguments)
    options, sources = _options(said), _sources(said)
    model = _load(network, said)
    needed = sources and model.program is None and "input_shape" not in said
    splits = _open(sources, _reading(network, said, _preprocessing(said)), said, options.split_seed) if needed else None
    return (*_example(model, said, splits), options)


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """What a file is judged on: all of the data, a metric, and a budget, if a drop was promised."""

    items: Subset
    metric: Metric
    budget: Budget | None


def resolve_check(arguments: Arguments) -> Check | None:
    """What was given for judging an existing file; None without data. Raises RequestError."""
    said = given(arguments)
    promised = not said.keys().isdisjoint({"max_drop", "keep"})
    if "data" not in said:
        if promised:
            raise DataError("an accuracy condition without data", "labelled items to judge it on", "pass --data PATH")
        return None
    budget = parse_budget(said.get("max_drop"), said.get("keep")) if promised else None
    items, metric = whole(_dataset(said["data"], Reading(_preprocessing(said)))), resolve_metric(said.get("metric") or "top1")
    _check_label(metric, items)
    return Check(items, metric, budget)


def resolve_items(
    arguments: Arguments, *, metric: str | None = None, preprocessing: Preprocessing | None = None
) -> tuple[Subset, Metric] | None:
    """The items and the metric that a file is to be gated by; None without data. Raises RequestError.

    What is given wins over `metric` and `preprocessing`, those of a lock, and they over a recipe, which may be named as the data, or the
    configuration file here. Of data that was given in splits it is the gate split.
    """
    mine = given(arguments)
    path = mine.get("data")
    if isinstance(path, (str, Path)) and Path(path).suffix == ".py":
        said = _over(given({**mine, "data": None}), load_recipe(Path(path)).arguments)
    else:
        said = _over(mine, load_config(Path.cwd()))
    source = said.get("gate_data", said.get("data"))
    if isinstance(source, Splits):
        source = source.gate
    elif isinstance(source, Mapping) and set(source) <= {*SPLITS, "data"}:
        source = source.get("gate", source.get("data"))
    if source is None:
        return None
    own = _preprocessing(mine)
    wanted = _preprocessing(said) if own != Preprocessing() or preprocessing is None else preprocessing
    chosen = mine.get("metric") or metric or said.get("metric") or "top1"
    items, resolved = whole(_dataset(source, Reading(wanted))), resolve_metric(chosen)
    _check_label(resolved, items)
    return items, resolved


def _gather(source: Source, arguments: Arguments) -> tuple[Source, Arguments]:
    """The network's source, and what was given in all places together."""
    if isinstance(source, (str, Path)) and Path(source).suffix == ".py":
        source = load_recipe(Path(source))
    if isinstance(source, Recipe):
        return source, _over(arguments, source.arguments)
    if isinstance(source, (str, Path)):
        return source, _over(arguments, load_config(Path.cwd()))
    return source, given(arguments)


def _over(arguments: Arguments, below: Arguments) -> Arguments:
    """`arguments`, and where they are silent what the recipe or configuration `below` says."""
    mine, theirs = given(arguments), dict(below)
    for unit in UNITS:
        if unit & mine.keys():
            theirs = {name: value for name, value in theirs.items() if name not in unit}
    return given({**theirs, **mine})


def _sources(said: Arguments) -> dict[str, Any]:
    return {name: said[option] for name, option in SOURCES.items() if option in said}  # type: ignore[literal-required]


def _options(said: Arguments) -> Options:
    parsers: dict[str, Callable[[Any], Any]] = {"schemes": words, "exclude": words, "fix": pins, "output": Path, "run": Path}
    parsers |= {"machine": lambda given: read_machine(Path(given)), "shape": lengths, "workers": str, "latency_workers": str}
    known, asked = {field.name for field in fields(Options)}, dict[str, Any](said)
    values = {name: parsers[name](value) if name in parsers else value for name, value in asked.items() if name in known}
    bounds = parse_bounds({name: asked.get(option) for name, option in BOUNDS.items()})
    options = Options(**values, bounds=bounds, time_limit_s=parse_seconds(asked["time_limit"]) if "time_limit" in asked else None)
    if bounds.latency and not find_runtime(options.target).TIMES:
        got = f"--max-latency for {options.target}, which does not run here"
        raise RequestError(got, "a bound that can be checked here", "pass --max-bytes or --max-bops")
    if options.machine and find_runtime(options.target).TIMES:
        got = f"--machine for {options.target}, whose files are timed here"
        raise RequestError(got, "a target that does not run here: tensorrt or nbit", "leave --machine out, or pass --target nbit")
    if options.latency_workers and not find_runtime(options.target).TIMES:
        got = f"--latency-workers for {options.target}, whose files are not timed"
        raise RequestError(got, "a target that runs: ort-cpu or openvino", "leave --latency-workers out")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda, and torch finds no CUDA device", "an available device", "pass --device cpu")
    if options.output is not None:
        if options.output.is_dir():
            raise OutputError(f"--output {options.output} is a folder", "a file name", f"pass {options.output / 'model.onnx'}")
        _check_writable(options.output.absolute().parent)
    if options.run is not None:
        _check_writable(next(folder for folder in (options.run.absolute(), *options.run.absolute().parents) if folder.exists()))
    return options


def _check_writable(folder: Path) -> None:
    """Writes a byte: permissions alone do not tell of a full or read-only disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        got = f"cannot write into {folder}: {error.strerror}"
        do = "allow writing into it, or choose another" if folder.exists() else "create it, or choose another"
        raise OutputError(got, "a writable folder", do) from None


def _preprocessing(said: Arguments) -> Preprocessing:
    asked = dict[str, Any](said)
    resize, crop = (size(name, asked[name]) if name in asked else None for name in ("resize", "crop"))
    mean, std, scale = (numbers(name, asked[name]) if name in asked else None for name in ("mean", "std", "scale"))
    return Preprocessing(resize, crop, mean, std, scale[0] if scale else None)


def _load(network: Source, said: Arguments) -> LoadedModel:
    if isinstance(network, Recipe):
        model = _load(network.model, said)
        return replace(model, name=network.name or model.name, variants={**model.variants, **network.variants})
    if isinstance(network, (str, Path)):
        return loading.load_model(str(network), arch=said.get("arch"), trust_pickle=bool(said.get("trust_pickle")))
    if "arch" in said:
        raise ModelError("--arch beside a network that is complete", "--arch only beside a state dict", "drop --arch")
    return network if isinstance(network, LoadedModel) else loading.from_module(network)


@dataclass(frozen=True, slots=True)
class Reading:
    """How files of data are read: pictures by their preprocessing, texts by the tokenizer of a folder, to so many tokens."""

    preprocessing: Preprocessing
    folder: Path | None = None
    tokens: int | None = None

    def texts(self, path: Path) -> Dataset:
        """The labelled texts in `path`, as the folder's network takes them. Raises DataError where there is no such folder."""
        if self.folder is None:
            got = f"{path} holds texts, and the model has no tokenizer"
            raise DataError(got, "a transformers folder as the model, or .npz of token ids", "pass the folder, or tokenize the texts first")
        if loading.continues_text(self.folder):
            inputs = loading.tokenize_windows(self.folder, read_lines(path), self.tokens)
            return collect([Batch(inputs, loading.next_tokens(inputs))])
        texts, labels = read_texts(path)
        return collect([Batch(loading.tokenize(self.folder, texts, self.tokens), loading.label_numbers(self.folder, labels))])


def _reading(network: Source, said: Arguments, preprocessing: Preprocessing) -> Reading:
    """As the folder of the network says, if it is one, where nothing else was asked for."""
    source = network.model if isinstance(network, Recipe) else network
    folder = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    if folder is None or not loading.is_folder(folder):
        return Reading(preprocessing)
    if loading.reads_text(folder):
        return Reading(preprocessing, folder, None if "input_shape" not in said else _shape(said)[1])
    return Reading(Preprocessing(**loading.image_settings(folder)) if preprocessing == Preprocessing() else preprocessing)


def _shape(said: Arguments) -> tuple[int, ...]:
    shape = said.get("input_shape") or ()
    return loading.parse_input_shape(shape if isinstance(shape, str) else "x".join(map(str, shape)))


def _open(given: Mapping[str, Any], reading: Reading, said: Arguments, seed: int) -> Splits:
    only = given["data"] if set(given) == {"data"} else None
    if isinstance(only, Splits):
        return only
    if isinstance(only, Mapping) and set(only) <= {*SPLITS, "data"}:
        given, only = only, None
    paths = [value for value in given.values() if isinstance(value, (str, Path))]
    if not paths and reading.preprocessing != Preprocessing() and not any(map(is_rows, given.values())):
        raise DataError("preprocessing options beside data in memory", "them beside files", "preprocess what the data yields")
    source = {name: _dataset(value, reading) for name, value in given.items()} if only is None else _dataset(only, reading)
    return split(source, seed=seed, calibration=said.get("calibration_items"), search=said.get("search_items"), gate=said.get("gate_items"))


def _dataset(value: Any, reading: Reading) -> Dataset:
    if isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        return reading.texts(path) if path.suffix in (*SEPARATORS, LINES) else open_dataset(path, reading.preprocessing)
    if all(hasattr(value, name) for name in ("item", "digest", "describe")):
        return value  # type: ignore[no-any-return]
    if is_rows(value):
        return Rows(value, reading.preprocessing)
    if isinstance(value, torch.utils.data.Dataset):
        got = f"a {type(value).__name__}, which has no length and yields single items"
        raise DataError(got, "a dataset with rows by position, or batches", "pass torch.utils.data.DataLoader(dataset, batch_size=32)")
    arrays = (Tensor, np.ndarray)
    if isinstance(value, (Batch, *arrays, Mapping)) or (isinstance(value, tuple) and all(isinstance(part, arrays) for part in value)):
        return collect([value])
    if not isinstance(value, Iterable):
        got = f"data of type {type(value).__name__}"
        raise DataError(got, "a path, batches, or a dataset", "pass a DataLoader, or a list of Batch(inputs, labels)")
    return collect(value)


def _check_labels_exist(metric: Metric, splits: Splits) -> None:
    for subset in (splits.search, splits.gate):
        _check_label(metric, subset)


def _check_label(metric: Metric, items: Subset) -> None:
    if metric.reference == "labels" and items.item(0).label is None:
        raise MetricError(f"no labels for metric {metric.name}", "a label for every item", "pass labelled data, or --metric agreement")


def _example(model: LoadedModel, said: Arguments, splits: Splits | None) -> tuple[LoadedModel, Mapping[str, Tensor] | None]:
    """An example of the inputs, and the model, converted by it where that is needed."""
    example: Mapping[str, Tensor] | None = None
    if splits is not None and (model.example or "input_shape" not in said):
        example = next(iter(splits.calibration.batches(EXAMPLE_ITEMS))).inputs
    elif model.example:
        example = model.example
    elif "input_shape" in said:
        example = {"0": torch.zeros(EXAMPLE_ITEMS, *_shape(said)[1:])}
    if example is None and model.program is None:
        raise ModelError(f"{model.name} needs an example input", "its shape, or data", "pass --input-shape 1x3x224x224, or --data")
    return (model, None) if example is None else (loading.to_program(model, example), example)
