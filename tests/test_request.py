"""What was said, in any place, becomes one checked request; what is wrong becomes one clear error."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quantkit.calibration.ranges import BY_OUTPUT
from quantkit.cli import main
from quantkit.core.errors import DataError, MetricError, ModelError, OutputError, QuantkitError, RequestError, SchemeError
from quantkit.data import Batch, Preprocessing, Splits, collect, cut
from quantkit.settings import options
from quantkit.settings.arguments import Arguments
from quantkit.settings.bounds import Bound, Bounds
from quantkit.settings.options import Options
from quantkit.settings.recipe import Recipe
from quantkit.settings.request import resolve, resolve_model

ITEMS = 300


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a network, `tiny:net`, and labelled data for it, `items.npz`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(6, 3))\n")
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "items.npz", x=generator.normal(size=(ITEMS, 6)).astype(np.float32), labels=generator.integers(0, 3, ITEMS))
    yield tmp_path
    sys.modules.pop("tiny", None)


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3))


def batches(count: int = ITEMS, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [Batch({"x": torch.randn(count, 6, generator=generator)}, torch.randint(0, 3, (count,), generator=generator))]


def said(**values: Any) -> Arguments:
    return Arguments(**{"data": batches(), "max_drop": 1.0, **values})


def test_options_left_out_are_the_defaults_of_options(place: Path) -> None:
    assert resolve(module(), said()).options == Options()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schemes": "w8a8, fp32"}, {"schemes": ("w8a8", "fp32")}),
        ({"schemes": ["w8a8"]}, {"schemes": ("w8a8",)}),
        ({"fix": ["a.b=fp32", "c=w4a8"]}, {"fix": (("a.b", "fp32"), ("c", "w4a8"))}),
        ({"fix": {"c": "w8a8"}}, {"fix": (("c", "w8a8"),)}),
        ({"exclude": ["head*"]}, {"exclude": ("head*",)}),
        ({"output": "x.onnx"}, {"output": Path("x.onnx")}),
        ({"run": "runs/x"}, {"run": Path("runs/x")}),
        ({"minimize": "bytes", "search": "bisection"}, {"minimize": "bytes", "search": "bisection"}),
        ({"sensitivity": "hessian", "observer": "mse"}, {"sensitivity": "hessian", "observer": "mse"}),
        ({"seed": 3, "split_seed": 4, "batch_size": 5, "threads": 6}, {"seed": 3, "split_seed": 4, "batch_size": 5, "threads": 6}),
        ({"memory_mb": 500}, {"memory_mb": 500}),
        ({"max_bytes": "2MB", "max_latency": "0.5x"}, {"bounds": Bounds(bytes=Bound(2e6), latency=Bound(0.5, relative=True))}),
        ({"max_bops": 5e9, "average_bits": 4.5}, {"bounds": Bounds(bops=Bound(5e9), average_bits=Bound(4.5))}),
        ({"time_limit": "10m"}, {"time_limit_s": 600.0}),
        ({"undecided": "fail", "device": "cpu", "target": "ort-cpu"}, {"undecided": "fail"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_is_said_is_parsed_into_options(place: Path, values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resolve(module(), said(**values)).options == replace(Options(), **expected)


@pytest.mark.parametrize(
    ("values", "error", "hint"),
    [
        ({"target": "ort-cpi"}, SchemeError, "did you mean 'ort-cpu'"),
        ({"minimize": "latenzy"}, RequestError, "did you mean 'latency'"),
        ({"sensitivity": "hesian"}, RequestError, "did you mean 'hessian'"),
        ({"search": "pareto2"}, RequestError, "did you mean 'pareto'"),
        ({"observer": "percentil"}, RequestError, "did you mean 'percentile'"),
        ({"undecided": "pas"}, RequestError, "did you mean 'pass'"),
        ({"device": "cuba"}, RequestError, "did you mean 'cuda'"),
        ({"schemes": "w8a9"}, SchemeError, "did you mean 'w8a8'"),
        ({"schemes": ","}, SchemeError, "no scheme"),
        ({"fix": ["head"]}, SchemeError, "GROUP=SCHEME"),
        ({"fix": ["head=w8a7"]}, SchemeError, "did you mean 'w8a8'"),
        ({"threads": 0}, RequestError, "at least 1"),
        ({"batch_size": 0}, RequestError, "at least 1"),
        ({"memory_mb": 0}, RequestError, "--memory-mb 0.*at least 1"),
        ({"seed": -1}, RequestError, "at least 0"),
        ({"metric": "topp1"}, MetricError, "did you mean 'top1'"),
        ({"max_drop": -1.0}, MetricError, "at least 0"),
        ({"max_drop": "much"}, MetricError, "number"),
        ({"max_drop": None}, MetricError, "no budget"),
        ({"keep": "99%"}, MetricError, "both"),
        ({"mean": "red"}, DataError, "one number"),
        ({"crop": "wide"}, DataError, "HEIGHTxWIDTH"),
        ({"arch": "tiny:net"}, ModelError, "drop --arch"),
        ({"input_shape": "6"}, ModelError, "1x3x224x224"),
        ({"output": "missing/x.onnx"}, OutputError, "cannot write"),
        ({"output": "."}, OutputError, "is a folder"),
        ({"run": "items.npz"}, OutputError, "cannot write"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_what_was_wanted(place: Path, values: dict[str, Any], error: type[QuantkitError], hint: str) -> None:
    with pytest.raises(error, match=hint.replace("(", r"\(")):
        resolve(module(), said(**values))


def test_without_data_the_error_says_the_three_ways_to_give_it(place: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve("tiny:net", Arguments(max_drop=1.0))

    for way in ("--data", "recipe", "quantkit.toml"):
        assert way in str(caught.value)


def test_a_full_disk_is_found_before_the_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left") as refused:
        resolve(module(), said(output="x.onnx"))
    assert not refused.value.next_step.startswith("make it"), "the folder is there"
    with pytest.raises(OutputError, match="create it, or choose another"):
        resolve(module(), said(output="missing/x.onnx"))


def test_cuda_that_is_not_there_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="--device cpu"):
        resolve(module(), said(device="cuda"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve(module(), said(device="cuda")).options.device == "cuda"


TENSORS = (torch.randn(ITEMS, 6, generator=torch.Generator().manual_seed(1)), torch.arange(ITEMS) % 3)


@pytest.mark.parametrize(
    "data",
    [
        batches(),
        (batch for batch in batches()),
        batches()[0],
        TENSORS,
        tuple(tensor.numpy() for tensor in TENSORS),
        {"x": TENSORS[0], "labels": TENSORS[1]},
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*TENSORS), batch_size=32),
        collect(batches()),
        cut(collect(batches()), seed=0),
        {"calibration": batches(40, 1), "search": batches(130, 2), "gate": batches(130, 3)},
        {"calibration": batches(40, 1), "data": batches(260, 2)},
        "items.npz",
        Path("items.npz"),
    ],
    ids=[
        "list", "generator", "batch", "tensors", "arrays", "mapping", "loader", "dataset", "splits", "by name", "two sources", "text",
        "path",
    ],
)
def test_data_in_any_form_becomes_three_splits_of_all_items(place: Path, data: Any) -> None:
    splits = resolve(module(), said(data=data)).splits

    assert isinstance(splits, Splits)
    assert len(splits.calibration) + len(splits.search) + len(splits.gate) == ITEMS


@pytest.mark.parametrize("inputs", [TENSORS[0], TENSORS[0].numpy()], ids=["a tensor", "an array"])
def test_inputs_alone_are_items_by_their_first_axis(place: Path, inputs: Any) -> None:
    splits = resolve(module(), said(data=inputs, metric="agreement")).splits
    assert len(splits.calibration) + len(splits.search) + len(splits.gate) == ITEMS
    assert tuple(next(iter(splits.gate.batches(2))).inputs["0"].shape) == (2, 6)


def test_separate_sources_are_the_splits_they_are_given_as(place: Path) -> None:
    given = {"calibration_data": batches(40, 1), "search_data": batches(110, 2), "gate_data": batches(120, 3)}
    splits = resolve(module(), said(data=None, **given)).splits

    assert (len(splits.calibration), len(splits.search), len(splits.gate)) == (40, 110, 120)


def test_separate_sources_that_overlap_are_refused(place: Path) -> None:
    given = {"calibration_data": batches(40, 1), "search_data": batches(120, 2), "gate_data": batches(120, 2)}
    with pytest.raises(DataError, match="share 120 items"):
        resolve(module(), said(data=None, **given))


def test_the_split_seed_cuts_and_the_seed_does_not(place: Path) -> None:
    def gate(**seeds: int) -> tuple[str, ...]:
        return resolve(module(), said(**seeds)).splits.gate.digests()

    assert gate(split_seed=0) != gate(split_seed=1)
    assert gate(seed=0) == gate(seed=1)


def test_data_of_no_known_form_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="int"):
        resolve(module(), said(data=3))


def test_preprocessing_reaches_the_data_and_the_request(place: Path) -> None:
    request = resolve(module(), said(data="items.npz", mean="0.5", std="2", scale="1"))
    plain = resolve(module(), said(data="items.npz"))

    assert request.preprocessing == Preprocessing(mean=(0.5,), std=(2.0,), scale=1.0)
    wanted = (plain.splits.gate.item(0).inputs["x"] - 0.5) / 2
    assert torch.allclose(request.splits.gate.item(0).inputs["x"], wanted)


def test_preprocessing_of_data_in_memory_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="in memory"):
        resolve(module(), said(mean=0.5))


@pytest.mark.parametrize(("text", "value"), [("256", 256), ("224x192", (224, 192)), (256, 256), ((224, 192), (224, 192))], ids=str)
def test_sizes_are_pixels_or_height_by_width(text: Any, value: Any) -> None:
    assert options.size("resize", text) == value


def test_a_split_in_which_one_item_outweighs_the_budget_is_refused(place: Path) -> None:
    with pytest.raises(MetricError, match="items"):
        resolve(module(), said(data=batches(60), max_drop=1.0))


def test_labels_are_wanted_only_by_metrics_that_read_them(place: Path) -> None:
    unlabelled = [torch.randn(ITEMS, 6)]
    with pytest.raises(MetricError, match="agreement"):
        resolve(module(), said(data=unlabelled))

    assert resolve(module(), said(data=unlabelled, metric="agreement")).metric.name == "agreement"


def test_the_budget_is_that_which_was_said(place: Path) -> None:
    assert resolve(module(), said(max_drop="2%")).budget.points(50.0) == pytest.approx(1.0)
    assert resolve(module(), said(max_drop=None, keep="99%")).budget.points(50.0) == pytest.approx(0.5)


def test_the_callers_module_is_left_as_it_was(place: Path) -> None:
    mine = module().train()
    request = resolve(mine, said())

    assert mine.training
    assert request.model.module is not mine
    assert request.model.module is not None
    assert not request.model.module.training


def test_the_example_holds_two_items_of_the_data_or_of_the_shape(place: Path) -> None:
    from_data, from_shape = resolve(module(), said()).example, resolve(module(), said(input_shape=(1, 6))).example

    assert from_data is not None
    assert from_shape is not None
    assert from_data["x"].shape == (2, 6)
    assert from_shape["0"].shape == (2, 6)


def test_a_network_is_inspected_with_a_shape_alone(place: Path) -> None:
    model, example, chosen = resolve_model("tiny:net", Arguments(input_shape="1x6", schemes="fp32,w8a8"))

    assert model.name == "net"
    assert example is not None
    assert example["0"].shape == (2, 6)
    assert chosen.schemes == ("fp32", "w8a8")
    with pytest.raises(ModelError, match="--input-shape"):
        resolve_model("tiny:net", Arguments())
    assert resolve_model("tiny:net", Arguments(data="items.npz"))[1]["x"].shape == (2, 6)  # type: ignore[index]


def test_an_archive_is_inspected_with_its_own_example(place: Path) -> None:
    torch.export.save(torch.export.export(module().eval(), (torch.randn(2, 6),)), "net.pt2")
    model, example, _ = resolve_model("net.pt2", Arguments())

    assert model.program is not None
    assert example is None


CONFIG = """
    data = "items.npz"
    metric = "top1"
    max_drop = 2.0
    minimize = "bytes"
    search_method = "bisection"
    gate = 120
    split_seed = 7
    [preprocessing]
    mean = 0.25
"""


def configured(place: Path) -> None:
    (place / "quantkit.toml").write_text(textwrap.dedent(CONFIG))


def test_the_configuration_says_what_the_command_leaves_out(place: Path) -> None:
    configured(place)
    request = resolve("tiny:net", Arguments())

    assert request.budget.points(90.0) == 2.0
    assert request.preprocessing.mean == (0.25,)
    assert len(request.splits.gate) == 120
    assert request.options == replace(Options(), minimize="bytes", search="bisection", split_seed=7)


def test_the_command_wins_over_the_configuration(place: Path) -> None:
    configured(place)
    request = resolve("tiny:net", Arguments(minimize="latency", keep="99%", mean="0.5"))

    assert request.options.minimize == "latency"
    assert request.budget.kind == "relative"
    assert request.preprocessing.mean == (0.5,)


def test_other_data_comes_without_the_counts_of_the_configuration(place: Path) -> None:
    configured(place)
    np.savez("other.npz", x=np.random.default_rng(5).normal(size=(400, 6)).astype(np.float32), labels=np.zeros(400, np.int64))
    splits = resolve("tiny:net", Arguments(data="other.npz")).splits

    assert len(splits.calibration) + len(splits.search) + len(splits.gate) == 400
    assert len(splits.gate) != 120


def test_the_configuration_is_not_read_for_a_network_in_memory(place: Path) -> None:
    configured(place)

    assert resolve(module(), said()).options == Options()


def test_a_recipe_says_all_and_the_command_wins_over_it(place: Path) -> None:
    configured(place)
    plan = {"schemes": ("fp32", "w8a8"), "search_method": "bisection", "fix": {"0": "fp32"}}
    recipe = Recipe(model=module(), data=batches(), max_drop=1.5, name="mine", gate=110, **plan)
    request = resolve(recipe, Arguments(threads=2))

    assert request.model.name == "mine"
    assert request.budget.points(90.0) == 1.5
    assert len(request.splits.gate) == 110
    assert request.options == replace(Options(), schemes=("fp32", "w8a8"), search="bisection", fix=(("0", "fp32"),), threads=2)
    assert resolve(recipe, Arguments(max_drop="3")).budget.points(90.0) == 3.0
    assert resolve(recipe, Arguments(keep="99%")).budget.kind == "relative"


def test_a_recipe_file_is_run(place: Path) -> None:
    (place / "mine.py").write_text(
        "import quantkit\ndef recipe():\n    return quantkit.Recipe(model='tiny:net', data='items.npz', max_drop=1.0)\n"
    )

    assert resolve("mine.py", Arguments()).model.name == "net"


@pytest.mark.parametrize(
    "command",
    [
        ["missing.pt2", "--data", "items.npz", "--max-drop", "1"],
        ["tiny:nut", "--data", "items.npz", "--max-drop", "1"],
        ["tiny:net", "--max-drop", "1"],
        ["tiny:net", "--data", "items.npz"],
        ["tiny:net", "--data", "nowhere", "--max-drop", "1"],
        ["tiny:net", "--data", "items.npz", "--max-drop", "-1"],
        ["tiny:net", "--data", "items.npz", "--max-drop", "few"],
        ["tiny:net", "--data", "items.npz", "--max-drop", "1", "--schemes", "w8a9"],
        ["tiny:net", "--data", "items.npz", "--max-drop", "1", "--output", "nowhere/x.onnx"],
        ["tiny:net", "--data", "items.npz", "--max-drop", "0.01"],
        ["missing.py", "--max-drop", "1"],
        ["broken.py", "--max-drop", "1"],
    ],
    ids=lambda command: " ".join(command),
)
def test_a_wrong_request_ends_in_2_with_one_line_and_nothing_written(
    place: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (place / "broken.py").write_text("def recipe():\n    return 1 / 0\n")
    before = sorted(os.listdir(place))  # noqa: PTH208
    code = main(["allocate", *command, "--json"])
    out, err = capfd.readouterr()

    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert set(os.listdir(place)) - set(before) <= {"__pycache__"}  # noqa: PTH208


DISPATCHES = {
    "sensitivity": "sensitivity:SENSITIVITIES",
    "search": "allocation.search:SEARCHES",
    "target": "targets:TARGETS",
    "observer": "calibration.observers:OBSERVERS",
}


@pytest.mark.parametrize("option", DISPATCHES)
def test_the_names_that_may_be_said_are_those_that_are_dispatched(option: str) -> None:
    room, _, table = DISPATCHES[option].partition(":")
    known = getattr(importlib.import_module(f"quantkit.{room}"), table)

    assert set(options.CHOICES[option]) == set(known) | ({BY_OUTPUT} if option == "observer" else set())


def test_the_schemes_that_may_be_said_are_those_that_the_target_runs() -> None:
    targets = importlib.import_module("quantkit.targets").TARGETS

    assert {name: tuple(target.SCHEMES) for name, target in targets.items()} == options.SCHEMES
    for name, menus in options.DEFAULT_SCHEMES.items():
        assert set().union(*menus.values()) <= set(options.SCHEMES[name])


def test_the_least_drop_under_a_bound_needs_no_promise_and_may_have_one(place: Path) -> None:
    free = resolve(module(), said(max_drop=None, minimize="drop", max_bytes="0.5x"))
    promised = resolve(module(), said(minimize="drop", max_bytes="0.5x"))

    assert (free.budget.value, free.budget.kind) == (100.0, "relative")
    assert (promised.budget.value, promised.budget.kind) == (1.0, "absolute")


def test_only_what_measures_may_go_without_a_promise(place: Path) -> None:
    assert resolve(module(), said(max_drop=None), promised=False).budget.points(80.0) == 80.0
    with pytest.raises(MetricError, match="no budget"):
        resolve(module(), said(max_drop=None, max_bytes="0.5x"))


def test_latency_is_no_bound_for_a_runtime_that_is_not_here(place: Path) -> None:
    with pytest.raises(RequestError, match="--max-latency for tensorrt"):
        resolve(module(), said(target="tensorrt", max_latency="0.5x"))


def test_bounds_come_from_the_configuration_and_from_recipes_too(place: Path) -> None:
    (place / "quantkit.toml").write_text('data = "items.npz"\nmax_drop = 1.0\nmax_bytes = "2MB"\naverage_bits = 4.5\ntime_limit = "5m"\n')
    found = resolve("tiny:net", Arguments(max_bytes="1MB")).options
    told = Recipe(model=module(), data=batches(), max_drop=1.0, max_latency="5ms", max_bops="1G", time_limit=60)

    assert found.bounds == Bounds(bytes=Bound(1e6), average_bits=Bound(4.5)) and found.time_limit_s == 300
    options = resolve(told, Arguments()).options
    assert options.bounds == Bounds(latency=Bound(5.0), bops=Bound(1e9)) and options.time_limit_s == 60
