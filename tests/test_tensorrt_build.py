"""What is written beside a TensorRT file: a command line, and a script that says what is missing where TensorRT is not."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_stored_plan import wide
from test_tensorrt import planned

from quantkit.export import tensorrt_build as script
from quantkit.export.companions import SCRIPT, write_companions
from quantkit.runs.stored_plan import export_plan


def test_the_command_names_the_file_and_no_precision(tmp_path: Path) -> None:
    work = wide(tmp_path)
    exported = export_plan(planned(work, "w8a8"), "tensorrt", tmp_path / "my net.onnx", adapt=True)
    command, copied = exported.beside
    assert (command.name, copied.name) == ("my net.onnx.trtexec.sh", SCRIPT)
    text = command.read_text()
    plain = ["--stronglyTyped", "--shapes=x:1x3x12x12", "--profilingVerbosity=detailed"]
    named = {"onnx": "onnx", "saveEngine": "engine", "exportLayerInfo": "layers.json", "exportProfile": "profile.json"}
    for option in [*plain, *(f"'--{name}=my net.{ending}'" for name, ending in named.items())]:
        assert f"  {option} \\\n" in text
    assert not any(flag in text.replace("no --fp16, --int8 or --best", "") for flag in ("--fp16", "--int8", "--best"))
    assert copied.read_text() == Path(str(script.__file__)).read_text()
    assert write_companions(exported.file, work.graph, "ort-cpu") == ()


def test_the_command_runs_trtexec_in_the_file_s_folder(tmp_path: Path) -> None:
    work = wide(tmp_path)
    command = export_plan(planned(work, "fp16"), "tensorrt", tmp_path / "net.onnx", adapt=True).beside[0]
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "trtexec"
    fake.write_text('#!/bin/sh\npwd\nfor option in "$@"; do echo "$option"; done\n')
    fake.chmod(0o755)
    path = os.pathsep.join([str(fake.parent), "/usr/bin", "/bin"])
    ran = subprocess.run(["sh", str(command), "--verbose"], capture_output=True, text=True, env={"PATH": path}, check=True, cwd="/")
    folder, *options = ran.stdout.splitlines()
    assert Path(folder) == tmp_path.resolve() and options[0] == "--onnx=net.onnx" and options[-1] == "--verbose"
    without = subprocess.run(["sh", str(command)], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert without.returncode == 2 and "install TensorRT" in without.stderr


def test_where_tensorrt_is_missing_the_script_says_what_to_install(tmp_path: Path) -> None:
    copied = tmp_path / SCRIPT
    copied.write_text(Path(str(script.__file__)).read_text())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    hidden = "import sys, runpy; sys.modules['tensorrt'] = None; sys.argv = ['x', 'net.onnx']; "
    code = f"{hidden} runpy.run_path({str(copied)!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert ran.returncode == script.MISSING, ran.stderr
    assert "cannot build net.onnx here" in ran.stdout and "tensorrt: pip install tensorrt" in ran.stdout and ran.stderr == ""


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear FP16 format", "fp16"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("FP8", "fp8"),
        ("Float8", "fp8"),
        ("BFloat16", "bf16"),
        ("Int4", "int4"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_precisions_are_read_as_the_inspector_writes_them(text: str, precision: str) -> None:
    assert script.precision_of(text) == precision


LAYERS = {
    "Layers": [
        {
            "Name": "node_conv2d + node_relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
            "Weights": {"Type": "Int8", "Count": 9},
        },
        {"Name": "cast", "LayerType": "Reformat", "Inputs": [{"Datatype": "Float"}], "Outputs": [{"Datatype": "Half"}]},
        {"Name": "none", "LayerType": "NoOp", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}], "Outputs": []},
        "told by its name",
    ]
}


def test_layers_are_read_with_their_precision() -> None:
    assert script.read_layers(json.dumps(LAYERS)) == [
        ("node_conv2d + node_relu", "CaskConvolution", "int8"),
        ("cast", "Reformat", "fp32"),
        ("none", "NoOp", ""),
        ("told by its name", "", ""),
    ]
    assert script.read_layers("{}") == []


def test_outputs_are_compared_by_their_size() -> None:
    theirs = {"a": np.array([[3.0, 4.0], [0.0, 1.0]])}
    compared = script.compare({"a": np.array([[3.0, 3.0], [0.0, 1.0]])}, theirs)
    assert compared["a"] == {"relative": pytest.approx(1 / np.sqrt(26)), "largest": 1.0, "same_top": 0.5}
    assert script.agrees(compared, 0.2) and not script.agrees(compared, 0.19)
    assert not script.agrees(script.compare({"a": np.full((2, 2), np.nan)}, theirs), 1e9)


def test_inputs_are_random_or_given(tmp_path: Path) -> None:
    shapes = {"x": ([2, 3], "tensor(float)"), "mask": ([2], "tensor(bool)")}
    feeds = script.make_feeds(shapes, None)
    assert feeds["x"].shape == (2, 3) and feeds["x"].dtype == np.float32 and feeds["mask"].dtype == np.bool_
    np.savez(tmp_path / "items.npz", x=np.ones((5, 3), np.float32))
    with pytest.raises(ValueError, match="has no mask, only x"):
        script.make_feeds(shapes, tmp_path / "items.npz")
    assert script.make_feeds({"x": shapes["x"]}, tmp_path / "items.npz")["x"].shape == (5, 3)


class Host:
    """A device whose memory is the host's, and whose clock counts."""

    stream = 7

    def put(self, array: Any) -> Any:
        return array.copy()

    def pointer(self, held: Any) -> int:
        return int(held.ctypes.data)

    def get(self, held: Any) -> Any:
        return held

    def milliseconds(self, run: Callable[[], None]) -> float:
        run()
        return 0.25


class Engine:
    """What TensorRT's engine offers as far as the script asks, computed by ONNX Runtime; `told` is what it was built from."""

    def __init__(self, path: Path, told: Mapping[str, Any], error: float) -> None:
        self.session, self.told, self.error = script.open_reference(path), told, error
        self.inputs, self.outputs = ([entry.name for entry in side] for side in (self.session.get_inputs(), self.session.get_outputs()))
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def get_tensor_name(self, number: int) -> str:
        return str([*self.inputs, *self.outputs][number])

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.inputs else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def create_execution_context(self) -> Engine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name) or (self.shapes[self.inputs[0]][0], 10)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def _array(self, name: str) -> Any:
        shape = self.get_tensor_shape(name)
        held = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
        return np.frombuffer(held, np.float32).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        results = self.session.run(None, {name: self._array(name) for name in self.inputs})
        for name, result in zip(self.outputs, results, strict=True):
            self._array(name)[:] = result * (1 + self.error)
        return stream == Host.stream

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda kind: json.dumps(LAYERS))


def fake_tensorrt(told: dict[str, Any], *, flagged: bool = True, refuses: bool = False, error: float = 0.0) -> SimpleNamespace:
    """The parts of the `tensorrt` module that the script uses; they write down what they are told."""
    config, profile = SimpleNamespace(add_optimization_profile=lambda given: told.update(profile=given)), SimpleNamespace()
    profile.set_shape = lambda name, *shapes: told.update({name: shapes})

    class Parser:
        num_errors = 1

        def __init__(self, network: Any, logger: Any) -> None:
            told["network"] = network

        def parse_from_file(self, path: str) -> bool:
            told["path"] = Path(path)
            return not refuses

        def get_error(self, number: int) -> str:
            return f"error {number}"

    builder = SimpleNamespace(
        create_network=lambda flags: flags,
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=lambda network, given: b"plan" if given is config else None,
    )
    return SimpleNamespace(
        Logger=type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None}),
        Builder=lambda logger: builder,
        NetworkDefinitionCreationFlag=SimpleNamespace(**({"STRONGLY_TYPED": 3} if flagged else {})),
        OnnxParser=Parser,
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine(told["path"], told, error)),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        nptype=lambda kind: np.float32,
    )


def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **behaviour: Any) -> tuple[int, dict[str, Any]]:
    told: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(told, **behaviour))
    monkeypatch.setattr(script, "missing", list)
    monkeypatch.setattr(script, "open_device", Host)
    work = wide(tmp_path)
    exported = export_plan(planned(work, "w8a8"), "tensorrt", tmp_path / "net.onnx", adapt=True)
    return script.main([str(exported.file), "--rounds", "3", *options]), told


def test_with_a_stand_in_for_tensorrt_the_whole_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in answers with ONNX Runtime; that the real API takes these calls is not proved by it."""
    code, told = run_script(tmp_path, monkeypatch, "--batch", "4")
    assert code == script.AGREES
    assert told["network"] == 1 << 3 and told["x"] == ((4, 3, 12, 12),) * 3
    assert (tmp_path / "net.engine").read_bytes() == b"plan"
    shown = capsys.readouterr().out
    assert "1 int8" in shown and "median 0.2500 ms" in shown and "agrees with ONNX Runtime" in shown


def test_an_engine_that_answers_otherwise_or_was_not_built_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(tmp_path, monkeypatch, error=0.2)[0] == script.DIFFERS
    assert run_script(tmp_path, monkeypatch, "--tolerance", "0.3", error=0.2, flagged=False)[1]["network"] == 0
    assert run_script(tmp_path, monkeypatch, refuses=True)[0] == script.DIFFERS
    assert "error 0" in capsys.readouterr().out
