"""`quantkit bench`: files side by side. No test looks at how long anything took."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import bench as network_bench
from onnx import TensorProto, helper

from quantkit.cli import main
from quantkit.cli.bench_command import BAR
from quantkit.core.errors import RequestError
from quantkit.export.renaming import rename
from quantkit.runtimes import ort_cpu
from quantkit.verification import sittings
from quantkit.verification.side_by_side import random_feeds, time_side_by_side


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float file and its int8 file, whose input and output have other names."""
    work = network_bench("residual", tmp_path_factory.mktemp("bench"))
    path, _ = work.emit(work.place(work.uniform("w8a8")))
    rename(path, {"x": "picture"}, ["scores"])
    return work.float_file, path


def run(*arguments: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["bench", *map(str, arguments)])
    return code, *capfd.readouterr()


def test_files_are_compared_with_the_first(files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(*files, "--runs", 7, "--batch", 2, "--json", capfd=capfd)
    told: dict[str, Any] = json.loads(out)
    first, second = told["files"]

    assert code == 0 and told["threads"] == 1 and told["batch"] == 2
    assert first["ratio"] == first["low"] == first["high"] == 1.0
    assert second["low"] <= second["ratio"] <= second["high"] and second["latency_ms"] > 0
    assert [one["bytes"] for one in told["files"]] == [path.stat().st_size for path in files]
    assert "QLinearConv" in second["operators_ms"] and "QLinearConv" not in first["operators_ms"]
    assert all(value >= 0 for one in told["files"] for value in one["operators_ms"].values())


def test_the_table_names_what_differs(files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(*files, "--runs", 5, capfd=capfd)
    assert code == 0
    assert all(word in out for word in (files[0].name, files[1].name, "95 % interval", "QLinearConv"))
    assert run(files[0], "--runs", 5, capfd=capfd)[0] == 0


def test_rounds_and_threads_are_those_that_are_asked_for(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    real = subprocess.run

    def spied(command: list[str], **others: Any) -> Any:
        asked.append(json.loads(Path(command[-1]).read_text()))
        with np.load(asked[-1]["feeds"]) as arrays:
            asked[-1]["shapes"] = [arrays[name].shape for name in arrays.files]
        return real(command, **others)

    monkeypatch.setattr(sittings.subprocess, "run", spied)
    time_side_by_side(files, threads=2, batch=3, runs=sittings.SITTINGS + 1, sides={}, folder=tmp_path, advance=lambda _: None)

    assert [row["rounds"] for row in asked] == [2, *[1] * (sittings.SITTINGS - 1)]
    assert all(row["threads"] == 2 and row["shapes"] == [(3, 3, 10, 10)] for row in asked)
    assert [file["names"] for file in asked[0]["files"]] == [["x"], ["picture"]]


def open_file(path: Path, sides: list[int | str]) -> Path:
    value = helper.make_tensor_value_info("ids", TensorProto.FLOAT, sides)
    graph = helper.make_graph([helper.make_node("Relu", ["ids"], ["y"])], "g", [value], [helper.make_empty_tensor_value_info("y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_sides_that_are_left_open_can_be_given(tmp_path: Path) -> None:
    path = open_file(tmp_path / "open.onnx", ["batch", "tokens", 4])
    assert random_feeds(path)["ids"].shape == (1, 1, 4)
    assert random_feeds(path, batch=3)["ids"].shape == (3, 1, 4)
    assert random_feeds(path, sides={"ids": (2, 7, 4)})["ids"].shape == (2, 7, 4)
    with pytest.raises(RequestError, match=r"shape 2x7x5 for input 'ids'.*\*x\*x4"):
        random_feeds(path, sides={"ids": (2, 7, 5)})


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--shape", "x"], "NAME=SIDES"), (["--shape", "x=1x0x3"], "NAME=SIDES"), (["--runs", "0"], "runs"), (["other.onnx"], "other.onnx")],
)
def test_a_wrong_request_is_one_line(
    files: tuple[Path, Path], more: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(files[0], *more, capfd=capfd)
    assert code == 2 and out == "" and words in err


def test_files_that_take_other_inputs_are_refused(files: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(files[0], open_file(tmp_path / "other.onnx", [1, 4]), capfd=capfd)
    assert code == 2 and "takes 1x4" in err and "1x3x10x10" in err


def test_activations_are_those_that_are_alive_at_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the float file, counted by hand from its optimised graph: no value lives longer than to its last reader."""
    feeds = random_feeds(files[0])
    nodes = ort_cpu.node_times(files[0], feeds, threads=1, options={}, runs=1, folder=tmp_path)
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    by_name, outputs = {node.name: node for node in graph.node}, {value.name for value in graph.output}
    most = 0
    for place, now in enumerate(nodes):
        later = {name for node in nodes[place:] for name in by_name[node.name].input} | outputs
        made = sum(node.output_bytes for node in nodes[:place] if later & set(by_name[node.name].output))
        most = max(most, now.output_bytes + made + sum(array.nbytes for name, array in feeds.items() if name in later))

    assert sorted(node.name for node in nodes) == sorted(by_name)
    assert ort_cpu.peak_activation_bytes(nodes, feeds, outputs) == most > max(node.output_bytes for node in nodes)


def test_a_value_lives_to_its_last_reader() -> None:
    """The input, of 40 bytes, to the second node; the first node's to the third; an output to the end."""
    nodes = [
        ort_cpu.NodeTime("one", "Conv", 1.0, 100, ("x",), ("a",)),
        ort_cpu.NodeTime("two", "Conv", 1.0, 10, ("x", "a"), ("b",)),
        ort_cpu.NodeTime("three", "Add", 1.0, 7, ("a", "b"), ("c",)),
        ort_cpu.NodeTime("four", "Relu", 1.0, 90, ("c",), ("d",)),
    ]
    feeds = {"x": np.zeros(10, np.float32)}

    assert ort_cpu.peak_activation_bytes(nodes, feeds, ["d"]) == 40 + 100 + 10
    assert ort_cpu.peak_activation_bytes(nodes, feeds, ["b", "d"]) == 40 + 100 + 10
    assert ort_cpu.peak_activation_bytes(nodes, feeds, ["a", "d"]) == 100 + 7 + 90
    assert ort_cpu.peak_activation_bytes(nodes[:1], feeds, ["a"]) == 40 + 100


def test_bars_are_as_long_as_the_times(files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(*files, "--runs", 5, "--plot", capfd=capfd)
    drawn = [line for line in out.splitlines() if line.endswith(" ms")]
    lengths, times = [line.count("█") for line in drawn], [float(line.split()[-2]) for line in drawn]

    rounding = 0.5 + 2 * BAR * 0.0005 / max(times)  # of a bar to whole characters, and of both times to three digits
    assert code == 0 and len(drawn) % 2 == 0 and max(lengths) == BAR
    assert all(abs(length - BAR * ms / max(times)) <= rounding for length, ms in zip(lengths, times, strict=True))
