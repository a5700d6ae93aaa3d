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
from test_stored_plan import stored, wide
from torch import Tensor

from quantkit.allocation.costs.timing import interleave
from quantkit.core.errors import DataError, ModelError
from quantkit.core.spec import FLOAT, parse_scheme
from quantkit.export.executed_layers import Executed
from quantkit.gating.examine import examine
from quantkit.runs.stored_plan import export_plan
from quantkit.runtimes.evaluation import open_session
from quantkit.runtimes.openvino import OpenVinoSession, layer_ms, open_file, read_executed
from quantkit.targets import find_target, ort_cpu, tensorrt
from quantkit.targets import openvino as target

pytest.importorskip("openvino", reason="quantkit[openvino] is not installed")


def opened(work: Bench, name: str, scheme: str, folder: Path, *, floats: tuple[str, ...] = ()) -> tuple[OpenVinoSession, Executed]:
    plan = stored(work, scheme)
    plan = replace(plan, schemes={**plan.schemes, **dict.fromkeys(floats, FLOAT)})
    exported = export_plan(plan, name, folder / f"{name}.onnx", adapt=True)
    options = find_target(name).SESSION_OPTIONS
    ran = read_executed(exported.file, work.graph, exported.placement, options, folder)
    return open_file(exported.file, threads=1, options=options), ran


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w5a8"])
def test_every_planned_layer_runs_in_int8(scheme: str, tmp_path: Path) -> None:
    work = wide(tmp_path)
    _, ran = opened(work, "openvino", scheme, tmp_path)
    assert ran.mismatches == () and set(ran.precisions.values()) == {"int8"}
    assert set(ran.precisions) == {layer.name for layer in work.graph.layers if layer.weight}


@pytest.mark.parametrize("name", ["one", "two", "down", "head"])
def test_a_layer_kept_in_float_runs_in_float_without_a_barrier(name: str, tmp_path: Path) -> None:
    _, ran = opened(wide(tmp_path), "openvino", "w8a8", tmp_path, floats=(name,))
    assert ran.mismatches == () and ran.precisions[name] == "float"


@pytest.mark.parametrize("scheme", ["w16a32", "w8a32"])
@pytest.mark.parametrize("name", ["one", "two", "head"])
def test_a_float_layer_that_is_stored_narrow_stays_float_and_is_folded(scheme: str, name: str, tmp_path: Path) -> None:
    """Codes times scales would make it int8, so they become half, and the plan says so."""
    work = wide(tmp_path)
    plan = stored(work, "w8a8")
    plan = replace(plan, schemes={**plan.schemes, name: parse_scheme(scheme)})
    exported = export_plan(plan, "openvino", tmp_path / "narrow.onnx", adapt=True)
    ran = read_executed(exported.file, work.graph, exported.placement, {}, tmp_path)
    assert ran.mismatches == () and ran.precisions[name] == "float"
    assert exported.placement.stored[name].name == "w16a32" and len(exported.notes) == 1 + (scheme == "w8a32")  # and the pool


def test_two_levels_and_codebooks_lie_there_as_bytes(tmp_path: Path) -> None:
    work = wide(tmp_path)
    for scheme in ("w4g16a8", "c4a8"):
        _, ran = opened(work, "openvino", scheme, tmp_path)
        assert ran.mismatches == () and set(ran.precisions.values()) == {"int8"}
        layer = work.graph.layer("two")
        assert target.weight_bytes(layer, parse_scheme(scheme)) == target.weight_bytes(layer, parse_scheme("w8a8"))


def test_the_int8_layers_of_a_tensorrt_file_run_in_int8(tmp_path: Path) -> None:
    _, ran = opened(wide(tmp_path), "tensorrt", "w8a8", tmp_path)
    assert ran.mismatches == () and ran.precisions["stem"] == "float"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_int8_layers_of_every_tensorrt_file_run_in_int8(benches: Callable[[str], Bench], name: str, tmp_path: Path) -> None:
    work = benches(name)
    session, ran = opened(work, "tensorrt", "w8a8", tmp_path)
    assert ran.mismatches == ()
    planned = tensorrt.place(work.graph, stored(work).schemes).int8 & set(ran.precisions)  # additions have no node of their own
    assert {name for name, precision in ran.precisions.items() if precision == "int8"} == planned
    assert all(np.isfinite(output).all() for output in session.run({key: value.numpy() for key, value in work.inputs.items()}))


@pytest.mark.parametrize("scheme", ["fp16", "fp8", "w4a16"])
def test_other_tensorrt_files_load_and_compute_in_float(scheme: str, tmp_path: Path) -> None:
    work = wide(tmp_path)
    plan = replace(stored(work), target="tensorrt", schemes=dict.fromkeys(stored(work).schemes, parse_scheme(scheme)))
    exported = export_plan(plan, "tensorrt", tmp_path / "trt.onnx", adapt=True)
    session = open_file(exported.file, threads=1, options={})
    ran = read_executed(exported.file, work.graph, exported.placement, {}, tmp_path)
    assert ran.mismatches == () and set(ran.precisions.values()) == {"float"}
    feeds = {key: value.numpy() for key, value in work.inputs.items()}
    ours, theirs = session.run(feeds)[0], open_session(exported.file, threads=1, literal=True).run(feeds)[0]
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def test_a_plan_that_was_not_kept_is_named(tmp_path: Path) -> None:
    work = wide(tmp_path)
    opened(work, "openvino", "w8a8", tmp_path)
    planned = target.place(work.graph, dict.fromkeys([layer.name for layer in work.graph.layers], FLOAT))
    assert "one: planned float, ran int8" in read_executed(tmp_path / "openvino.onnx", work.graph, planned, {}, tmp_path).mismatches


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
    exported = export_plan(stored(work), "openvino", tmp_path / "file.onnx", adapt=True)
    assert "avg_pool" not in exported.placement.schemes and exported.placement.barriers == {("avg_pool2d", 0): "max"}
    assert any("avg_pool: w8a8 became fp32" in note for note in exported.notes)


def test_sessions_are_timed_in_turn(tmp_path: Path) -> None:
    work = wide(tmp_path)
    session, _ = opened(work, "openvino", "w8a8", tmp_path)
    times = interleave([session, session], {key: value.numpy() for key, value in work.inputs.items()}, rounds=4)
    assert times.shape == (2, 4) and (times > 0).all()


def test_what_it_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="OpenVINO refuses"):
        open_file(tmp_path / "m.onnx", threads=1, options={})


def test_narrow_codes_that_it_would_not_fold_are_stored_as_bytes() -> None:
    assert target.STORAGE[5] == "int8" and target.STORAGE[4] == "int4" and set(target.STORAGE) == set(ort_cpu.STORAGE)


def test_every_weighted_layer_has_a_time_in_both_precisions(tmp_path: Path) -> None:
    work = wide(tmp_path)
    weighted = {layer.name for layer in work.graph.layers if layer.weight}
    feeds = {key: value.numpy()[:1] for key, value in work.inputs.items()}
    for scheme in ("fp32", "w8a8"):
        opened(work, "openvino", scheme, tmp_path)
        found = layer_ms(tmp_path / "openvino.onnx", work.graph, feeds, threads=1, options={}, runs=3, folder=tmp_path)
        assert weighted <= set(found) and all(value >= 0 for value in found.values())


def test_the_kernels_of_any_file_are_told_by_the_names_of_its_nodes(tmp_path: Path) -> None:
    work = wide(tmp_path)
    opened(work, "openvino", "w8a8", tmp_path, floats=("two",))
    found = examine(tmp_path / "openvino.onnx", target="openvino", float_file=None, check=None, threads=1, batch_size=1, seed=0)
    floats = {node.name for node in found.nodes if not node.in_int8}
    assert len(found.nodes) == sum(layer.weight is not None for layer in work.graph.layers)
    assert floats == {f"node_{work.graph.layer('two').node}"} and all(node.kernel for node in found.nodes)


def test_a_fixed_batch_is_filled_and_cut_again(tmp_path: Path) -> None:
    work = wide(tmp_path)
    session, _ = opened(work, "openvino", "w8a8", tmp_path)
    feeds = {key: value.numpy()[:3] for key, value in work.inputs.items()}
    four = {key: np.concatenate([value, value[:1]]) for key, value in feeds.items()}
    fixed = open_file(session.path, threads=1, options={}, example=four)
    assert (session.batch, fixed.batch) == (None, 4)
    assert fixed.run(feeds)[0].shape == session.run(feeds)[0].shape
    np.testing.assert_array_equal(fixed.run(feeds)[0], fixed.run(four)[0][:3])  # a fixed shape may get kernels that add in another order
    with pytest.raises(DataError, match="fixed batch 4"):
        fixed.run({key: np.concatenate([value] * 2) for key, value in feeds.items()})
