from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import bench
from onnx import numpy_helper
from test_stored_plan import result as result
from test_tensorrt import planned

import quantkit.verification.reference_check
from quantkit.cli import main
from quantkit.runs.result import Result
from quantkit.runs.stored_plan import export_plan
from quantkit.verification.reference_check import check_reference


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "fp8", "w4a16"])
def test_the_runtime_and_the_standard_read_our_files_alike(scheme: str, tmp_path: Path) -> None:
    work = bench("several", tmp_path)
    exported = export_plan(planned(work, scheme), "tensorrt", tmp_path / "trt.onnx", adapt=True)
    checked = check_reference(exported.file, {name: value.numpy() for name, value in work.inputs.items()})
    assert checked.items == 8 and set(checked.differences) == set(work.graph.outputs)
    assert max(checked.differences.values()) < 0.02 and checked.same_top == 1.0


def test_a_file_that_they_read_differently_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = bench("mlp", tmp_path)
    exported = export_plan(planned(work, "fp16"), "tensorrt", tmp_path / "trt.onnx", adapt=True)
    feeds = {name: value.numpy() for name, value in work.inputs.items()}
    real = quantkit.verification.reference_check.ReferenceEvaluator

    def spoiled(path: str) -> object:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("last."):
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return real(model)

    assert max(check_reference(exported.file, feeds).differences.values()) < 1e-3
    monkeypatch.setattr(quantkit.verification.reference_check, "ReferenceEvaluator", spoiled)
    checked = check_reference(exported.file, feeds)
    assert min(checked.differences.values()) > 0.5 and checked.same_top < 1


def test_the_export_tells_what_it_wrote_and_checks_it_if_asked(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "trt.onnx"
    assert main(["export", str(result.run), "--target", "tensorrt", "--output", str(output), "--adapt", "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in told["beside"]] == ["trt.onnx.trtexec.sh", "build_and_check.py"]
    assert told["reference_check"]["same_top"] == 1.0 and all(np.isfinite(list(told["reference_check"]["differences"].values())))
    assert main(["export", str(result.run), "--target", "tensorrt", "--output", str(output), "--adapt", "--check"]) == 0
    shown = capsys.readouterr().out
    assert "build_and_check.py" in shown and "same_top" in shown
