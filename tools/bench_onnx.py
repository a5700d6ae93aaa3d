"""Float ONNX files as a start: do they give what the torch model gives? Writes docs/results/onnx.json.

    python tools/bench_onnx.py                           # about half an hour, nearly all of it allocations
    python tools/bench_onnx.py --plans resnet20          # allocations of some recipes only
    python tools/bench_onnx.py --plans --parts standard kinds

Each network is exported by torch's older exporter (TorchScript) and its newer one (dynamo). `recipes.same_layers`: files of the recipes
that give the layers of the torch model, by name, kind, operations and what is absorbed. `same_plan_as_torch`: whether allocations for
bit operations, from the older exporter's file and from the torch model, choose one plan; near ties are broken by times, so these are
measured once for both. `zoo.served`: files of deployed networks and transformers
with random weights that are translated, held against ONNX Runtime on the way, and captured; `zoo.same_layers` are those whose layers are
the torch model's; `int8_share` is what of a network's products int8 can reach, save of networks with recurrent or transposed layers, whose
products are not counted. `mutated_files` were read after a change to their bytes or to what they say, and `mutated_files.crashes` of them
ended in anything but a translation or one line. `node_tests` are the standard's own, of the operators that are translated. Of each kind of
network (tests/families.py) `as_planned` says whether its allocated file runs so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from known import known_figures, run_folder, write_figures
from torch import Tensor, nn

import quantkit
from quantkit.allocation.costs.overview import overview
from quantkit.core.errors import QuantkitError
from quantkit.loading import load_model
from quantkit.network.capture import capture, quiet
from quantkit.network.captured import Captured
from quantkit.settings.arguments import Arguments
from quantkit.settings.options import Options
from quantkit.settings.recipe import load_recipe
from quantkit.settings.request import resolve
from quantkit.stages import costs
from quantkit.stages.capture import network_of
from quantkit.stages.groups import find_groups
from quantkit.targets import find_target

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import families  # noqa: E402 - networks of other kinds
import test_from_onnx  # noqa: E402 - a file of each operator
import test_zoo  # noqa: E402 - the deployed networks
import transformer_zoo  # noqa: E402
from mutation import mutated  # noqa: E402
from standard_cases import standard_cases  # noqa: E402

RECIPES = ("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2")
EXPORTERS = ("older", "newer")
PARTS = ("recipes", "standard", "kinds", "mutated", "zoo")
SIDE = 64
MUTATED = 5000


def exported(model: nn.Module, inputs: Mapping[str, Tensor], path: Path, exporter: str) -> Path:
    """The network as a float ONNX file of any batch."""
    names = list(inputs)
    with torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "newer":
            shapes = {name: {0: torch.export.Dim("batch")} for name in names}
            options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": shapes, "verbose": False}
            torch.onnx.export(model, (), str(path), kwargs=dict(inputs), input_names=names, **options)
        else:
            axes = {name: {0: "batch"} for name in names}
            options = {"dynamo": False, "output_names": ["scores"], "dynamic_axes": axes, "opset_version": 17}
            torch.onnx.export(model, (dict(inputs),), str(path), input_names=names, **options)
    return path


def layers(captured: Captured) -> list[tuple[Any, ...]]:
    """What must be alike of two networks."""
    return [(layer.name, layer.kind, layer.weight_shape, layer.groups, layer.macs, layer.activation) for layer in captured.graph.layers]


def from_file(path: Path) -> Captured:
    """The network of the file, as an allocation captures it."""
    loaded = load_model(str(path))
    return capture(network_of(loaded), loaded.example or {}, outputs=loaded.outputs)


def recipe_network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A recipe's network, and two of its items under the names of its inputs."""
    request = resolve(ROOT / "recipes" / f"{name}.py", Arguments(), promised=False)
    network, example = network_of(request.model), request.example or {}
    assert isinstance(network, nn.Module)
    items = next(request.splits.calibration.first(2).batches(2)).inputs
    return network, dict(zip(capture(network, example).graph.inputs, items.values(), strict=True))


def same_plan(name: str, folder: Path) -> bool:
    """Whether the allocation from the older exporter's file chooses the plan of the allocation from torch."""
    network, inputs = recipe_network(name)
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py")
    path = exported(network, inputs, folder / f"{name}.onnx", "older")
    arguments: dict[str, Any] = {"minimize": "bops", "max_drop": 1.0, "effort": "fast", "certificate": 0}
    with timed_once():
        found = [
            quantkit.allocate(recipe.changed({"model": model}), run=folder / f"{name}-{kind}", **arguments)
            for kind, model in (("onnx", str(path)), ("torch", network))
        ]
    plans = [{row.group: row.scheme for row in result.allocation} for result in found]
    return plans[0] == plans[1]


@contextmanager
def timed_once() -> Iterator[None]:
    """In the block the table of latencies is that of the first allocation."""
    first, measure = list[Any](), costs.measure_latency

    def measured(*arguments: Any, **options: Any) -> Any:
        if not first:
            first.append(measure(*arguments, **options))
        return first[0]

    with patch.object(costs, "measure_latency", measured):
        yield


def zoo() -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Deployed networks and transformers in small, random weights."""
    for name, (make, side) in test_zoo.ZOO.items():
        torch.manual_seed(0)
        yield name, make().eval(), {"x": torch.randn(2, 3, side, side)}
    for name in transformer_zoo.MODULES:
        torch.manual_seed(0)
        yield name, transformer_zoo.MODULES[name]().eval(), {key: value[:2] for key, value in transformer_zoo.inputs(name).items()}
    with tempfile.TemporaryDirectory() as folder:
        for name in transformer_zoo.FOLDERS:
            loaded = load_model(str(transformer_zoo.source(name, Path(folder))))
            assert loaded.module is not None
            yield name, loaded.module, {key: value[:2] for key, value in transformer_zoo.inputs(name).items()}


def int8_share(captured: Captured) -> float | None:
    """Of the multiply-accumulates, those of layers that have an int8 form; `tests/test_zoo.py` holds that their files run so.

    None where not all products of the network are counted.
    """
    groups, target = find_groups(captured.graph, Options()), find_target("ort-cpu")
    found = overview(captured.graph, groups, target)
    return None if found.uncounted else found.int8_macs / found.macs


def served(folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Counts over the zoo's files with the share that int8 can reach, and why others are refused."""
    counts, shares = {"files": 0.0, "served": 0.0, "same_layers": 0.0, "not_exported": 0.0}, dict[str, float]()
    refused = {}
    for name, model, inputs in zoo():
        captured = capture(model, inputs)
        own, share = layers(captured), int8_share(captured)
        shares |= {} if share is None else {f"{transformer_zoo.file_name(name)}.int8_share": share}
        for exporter in EXPORTERS:
            path = folder / f"{transformer_zoo.file_name(name)}-{exporter}.onnx"
            try:
                exported(model, inputs, path, exporter)
            except Exception as error:  # noqa: BLE001 - whatever torch's exporters raise
                counts["not_exported"] += 1
                print(f"{name}, {exporter} exporter: not exported: {str(error).splitlines()[0][:120]}", flush=True)
                continue
            counts["files"] += 1
            try:
                found = layers(from_file(path))
            except QuantkitError as error:
                refused[f"{name}, {exporter}"] = str(error)[:200]
                print(f"{name}, {exporter} exporter: {str(error)[:200]}", flush=True)
                continue
            counts["served"] += 1
            counts["same_layers"] += found == own
            print(f"{name}, {exporter} exporter: served{'' if found == own else ', other layers'}", flush=True)
    return {**counts, **shares, "int8_share_min": min(shares.values())}, refused


def same_layers(folder: Path) -> dict[str, float]:
    """Of the recipes' files those that give the layers of the torch model."""
    alike = []
    for name in RECIPES:
        network, inputs = recipe_network(name)
        own = layers(capture(network, inputs))
        alike += [layers(from_file(exported(network, inputs, folder / f"{name}-{kind}.onnx", kind))) == own for kind in EXPORTERS]
    return {"recipes.same_layers": float(sum(alike)), "recipes.files": float(len(alike))}


def mutations(folder: Path) -> dict[str, int]:
    """Files of one operator each, and what became of changed copies."""
    random, path = np.random.default_rng(0), folder / "mutated.onnx"
    originals = [test_from_onnx.written(case, folder).read_bytes() for case in test_from_onnx.CASES.values() if case.shapes]
    crashes = 0
    for turn in range(MUTATED):
        path.write_bytes(mutated(originals[turn % len(originals)], random, turn % 3 != 0, most=1))
        try:
            load_model(str(path))
        except QuantkitError as error:
            crashes += "\n" in str(error)
        except Exception as error:  # noqa: BLE001 - what is counted
            crashes += 1
            print(f"a changed file: {error!r}", flush=True)
    return {"mutated_files": MUTATED, "mutated_files.crashes": crashes}


def node_tests() -> dict[str, float]:
    """The standard's own."""
    cases = standard_cases()
    failed = [f"{case.name}: {reason}" for case in cases if (reason := case.apart())]
    print(*failed, sep="\n", flush=True)
    return {"node_tests": len(cases), "node_tests_passed_percent": 100 * (1 - len(failed) / len(cases))}


def other_kinds(folder: Path) -> dict[str, float]:
    """An allocation of each kind of network."""
    found = {}
    for name, family in families.FAMILIES.items():
        model = families.network(name)
        result = quantkit.allocate(
            model, data=families.data(name, model), metric=family.metric, max_drop=family.max_drop, minimize="bops", certificate=0,
            run=folder / name,
        )  # fmt: skip
        found[f"families.{name}.as_planned"] = float(result.executed.as_planned)
        print(f"{name}: {'as planned' if result.executed.as_planned else 'not as planned'}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", nargs="*", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--runs", type=Path, default=run_folder("onnx", "onnx.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "onnx.json")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    whole = set(arguments.plans) == set(RECIPES) and set(arguments.parts) == set(PARTS)
    figures: dict[str, Any] = {} if whole else known_figures(arguments.output, any_isa=True)
    refused: dict[str, str] = {} if whole else json.loads(arguments.output.read_text()).get("refused", {})
    if "recipes" in arguments.parts:
        figures |= same_layers(arguments.runs)
    if "standard" in arguments.parts:
        figures |= node_tests()
    if "kinds" in arguments.parts:
        figures = {key: value for key, value in figures.items() if not key.startswith("families.")}
        figures |= other_kinds(arguments.runs / "families")
    if "mutated" in arguments.parts:
        figures |= mutations(arguments.runs)
    if "zoo" in arguments.parts:
        counts, refused = served(arguments.runs)
        figures |= {f"zoo.{key}": value for key, value in counts.items()}
    write_figures(arguments.output, "onnx.json", figures, whole=False, refused=refused)
    for name in arguments.plans:
        figures[f"{name}.same_plan_as_torch"] = int(same_plan(name, arguments.runs))
        print(name, "same plan:", bool(figures[f"{name}.same_plan_as_torch"]), flush=True)
    write_figures(arguments.output, "onnx.json", figures, whole=whole, refused=refused)


if __name__ == "__main__":
    main()
