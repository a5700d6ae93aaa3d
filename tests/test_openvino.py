"""Our files in OpenVINO, where it is installed: planned int8 runs int8, float stays float, TensorRT's structure too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Bench, Formed, bench, formed, images
from test_stored import stored, wide
from torch import Tensor

from quantkit.errors import RequestError
from quantkit.evaluation import open_session
from quantkit.export.executed import Executed
from quantkit.latency.timing import interleave
from quantkit.openvino import OpenVinoSession, open_openvino, read_openvino
from quantkit.spec import FLOAT
from quantkit.stored import export_plan
from quantkit.targets import openvino as target
from quantkit.targets import ort_cpu

pytest.importorskip("openvino", reason="quantkit[openvino] is not installed")


def opened(work: Bench, name: str, scheme: str, folder: Path, *, floats: tuple[str, ...] = ()) -> tuple[OpenVinoSession, Executed]:
    plan = stored(work, scheme)
    plan = replace(plan, schemes={**plan.schemes, **dict.fromkeys(floats, FLOAT)})
    exported = export_plan(plan, name, folder / f"{name}.onnx")
    session = open_openvino(exported.file, threads=1)
    return session, read_openvino(session, work.graph, exported.placement)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w5a8"])
def test_every_planned_layer_runs_in_int8(scheme: str, tmp_path: Path) -> None:
    work = wide(tmp_path)
    session, ran = opened(work, "openvino", scheme, tmp_path)
    assert ran.mismatches == () and set(ran.precisions.values()) == {"int8"}
    assert set(ran.precisions) == {layer.name for layer in work.graph.layers if layer.weight}
    assert "INT8" in session.capable


@pytest.mark.parametrize("name", ["one", "two", "down", "head"])
def test_a_layer_kept_in_float_runs_in_float_without_a_barrier(name: str, tmp_path: Path) -> None:
    _, ran = opened(wide(tmp_path), "openvino", "w8a8", tmp_path, floats=(name,))
    assert ran.mismatches == () and ran.precisions[name] == "float"


def test_the_int8_layers_of_a_tensorrt_file_run_in_int8(tmp_path: Path) -> None:
    _, ran = opened(wide(tmp_path), "tensorrt", "w8a8", tmp_path)
    assert ran.mismatches == () and ran.precisions["stem"] == "float"


def test_a_plan_that_was_not_kept_is_named(tmp_path: Path) -> None:
    work = wide(tmp_path)
    session, _ = opened(work, "openvino", "w8a8", tmp_path)
    planned = target.place(work.graph, dict.fromkeys([layer.name for layer in work.graph.layers], FLOAT))
    assert "one: planned float, ran int8" in read_openvino(session, work.graph, planned).mismatches


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("tokens", "several")])
def test_outputs_are_near_the_runtime_s(name: str, tmp_path: Path) -> None:
    """It rounds elsewhere, by a step here and there."""
    work = bench(name, tmp_path)
    session, _ = opened(work, "openvino", "w8a8", tmp_path)
    path, _ = work.emit(work.place(work.uniform("w8a8")))
    feeds = {key: value.numpy() for key, value in work.inputs.items()}
    ours, theirs = session.run(feeds)[0], open_session(path, threads=1).run(feeds)[0]
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)


GATED: dict[str, Callable[[Formed, Tensor], Tensor]] = {
    "silu": lambda m, x: m.c(F.silu(m.b(F.silu(m.a(x))))),
    "squeeze and excite": lambda m, x: (lambda t: m.c(t * torch.sigmoid(m.b(t.mean((2, 3), keepdim=True)))))(F.relu(m.a(x))),
    "leaky sum": lambda m, x: m.c(F.leaky_relu(m.a(x) + m.b(m.a(x)), 0.3)),
    "broadcast sum": lambda m, x: (lambda t: m.b(t + m.c(t).mean((2, 3), keepdim=True)))(F.relu(m.a(x))),
    "padded average pool": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 2, 1)),
    "chunks": lambda m, x: (lambda a, b: m.b(torch.cat([a * torch.sigmoid(b), a], 1)))(*m.a(x).chunk(2, 1)),
    "pixel shuffle": lambda m, x: m.two(F.pixel_shuffle(F.relu(m.a(x)), 2)),
}


@pytest.mark.parametrize("form", GATED.values(), ids=GATED)
def test_operations_without_weights_keep_the_layers_beside_them_in_int8(form: Callable[[Formed, Tensor], Tensor], tmp_path: Path) -> None:
    work = Bench(formed(form), images(), tmp_path)
    session, ran = opened(work, "openvino", "w8a8", tmp_path)
    assert ran.mismatches == () and set(ran.precisions.values()) == {"int8"}
    wanted = work.captured.module(*work.inputs.values()).detach().numpy()
    got = session.run({key: value.numpy() for key, value in work.inputs.items()})[0]
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)


def test_average_pools_of_a_plan_become_float_and_are_named(tmp_path: Path) -> None:
    work = Bench(formed(GATED["padded average pool"]), images(), tmp_path)
    exported = export_plan(stored(work), "openvino", tmp_path / "file.onnx")
    assert "avg_pool" not in exported.placement.schemes and exported.placement.barriers == {("avg_pool2d", 0): "max"}
    assert any("avg_pool: w8a8 became fp32" in note for note in exported.notes)


def test_sessions_are_timed_in_turn(tmp_path: Path) -> None:
    work = wide(tmp_path)
    session, _ = opened(work, "openvino", "w8a8", tmp_path)
    times = interleave([session, session], {key: value.numpy() for key, value in work.inputs.items()}, rounds=4)
    assert times.shape == (2, 4) and (times > 0).all()


def test_what_it_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="OpenVINO refuses"):
        open_openvino(tmp_path / "m.onnx", threads=1)


def test_narrow_codes_that_it_would_not_fold_are_stored_as_bytes() -> None:
    assert target.STORAGE[5] == "int8" and target.STORAGE[4] == "int4" and set(target.STORAGE) == set(ort_cpu.STORAGE)
