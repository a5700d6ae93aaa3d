"""The latency model on machines whose every millisecond is known. Nothing here asserts how long anything really takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import toys

from quantkit.allocation.costs import measured, timing
from quantkit.allocation.costs.measured import FIT_PLANS, TEST_PLANS, Boundary, LatencyModel, measure_latency, runs
from quantkit.core.graph import Group
from quantkit.core.spec import parse_allocation, parse_schemes
from quantkit.core.table import Table
from quantkit.core.workers import ThisMachine
from quantkit.runtimes import ort_cpu
from quantkit.runtimes.evaluation import Session
from quantkit.runtimes.timing import Timing

SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8"))
OPTIONS = {"key": "value"}
FEEDS = {"x": np.zeros((1, 1), np.float32)}


class Clock:
    """Time passes only where a session runs."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def session(self, name: str, milliseconds: float) -> Session:
        def run(_: Mapping[str, Any]) -> tuple[()]:
            self.now += milliseconds / 1e3
            self.ran += name
            return ()

        return SimpleNamespace(run=run, threads=2)  # type: ignore[return-value]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", found)
    return found


def test_files_run_in_turn_and_the_order_of_a_round_alternates(clock: Clock) -> None:
    times = timing.interleave([clock.session("a", 1), clock.session("b", 2), clock.session("c", 3)], FEEDS, rounds=3, inner=2)

    assert clock.ran == "aaaaabbbbbccccc" + "aabbcc" + "ccbbaa" + "aabbcc"  # warmed up first
    np.testing.assert_allclose(times, [[1, 1, 1], [2, 2, 2], [3, 3, 3]])


def test_a_session_that_settles_runs_once_untimed_before_each_timed_run(clock: Clock) -> None:
    first = iter([9, 1] * 50)  # after another file its first run is slow
    slow = SimpleNamespace(run=lambda feeds: clock.session("a", next(first)).run(feeds), threads=2)
    for _ in range(timing.WARM_UP % 2):  # so that the first round begins with a slow one
        next(first)
    times = timing.interleave([slow, clock.session("b", 2)], FEEDS, rounds=3, settled=True)

    assert clock.ran[2 * timing.WARM_UP :] == "aabb" + "bbaa" + "aabb"
    np.testing.assert_allclose(times, [[1, 1, 1], [2, 2, 2]])


def test_one_thread_is_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour who takes the core away lengthens the wall's time only."""
    own, wall = iter(range(0, 10**6, 2)), iter(range(0, 10**6, 100))
    monkeypatch.setattr(timing.time, "thread_time", lambda: next(own) / 1e3)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(wall) / 1e3)
    times = {count: timing.interleave([SimpleNamespace(run=lambda _: (), threads=count)], {}, rounds=3) for count in (1, 2)}  # type: ignore[list-item]

    np.testing.assert_allclose(times[1], [[2, 2, 2]])
    np.testing.assert_allclose(times[2], [[100, 100, 100]])


@pytest.mark.parametrize(("milliseconds", "rounds"), [(10, 100), (1, 300), (1000, 15), (0, 300)])
def test_rounds_fill_the_time_between_bounds(clock: Clock, milliseconds: float, rounds: int) -> None:
    assert timing.rounds_within(clock.session("a", milliseconds), FEEDS, seconds=1.001) == rounds


def allocation(text: str) -> dict[str, str]:
    """`"f84"` → group 0 float, group 1 w8a8, group 2 w4a8."""
    names = {"f": "fp32", "8": "w8a8", "4": "w4a8"}
    return parse_allocation({f"g{place}": names[letter] for place, letter in enumerate(text)})


def test_a_boundary_is_charged_where_exactly_one_side_is_float() -> None:
    table = Table("latency", "ms", ("g0", "g1", "g2"), SCHEMES, np.array([[1, 2, 3], [10, 20, 30], [100, 200, np.nan]], dtype=float))
    model = LatencyModel(table, (Boundary("g0", "g1", 0.5), Boundary("g1", "g2", 0.25)), 1000, 0.9, ())

    assert model.predicted_ms(allocation("fff")) == 1111
    assert model.predicted_ms(allocation("884")) != model.predicted_ms(allocation("888"))
    assert model.predicted_ms(allocation("888")) == model.predicted_ms(allocation("488")) - 1 == 1222
    assert model.predicted_ms(allocation("f88")) == 1221.5
    assert model.predicted_ms(allocation("f8f")) == 1000 + 1 + 20 + 100 + 0.75


@pytest.mark.parametrize("correlation", [0.75, math.nan], ids=["known", "nan"])
def test_json_keeps_everything(correlation: float) -> None:
    table = Table("latency", "ms", ("g0",), SCHEMES, np.array([[1.5, 0.5, np.nan]]))
    model = LatencyModel(table, (Boundary("g0", "g1", 0.5),), 0.25, correlation, ((1.0, 1.25),))
    again = LatencyModel.from_json(json.loads(json.dumps(model.to_json(), allow_nan=False)))

    np.testing.assert_array_equal(again.table.values, table.values)
    assert (again.boundaries, again.offset_ms, again.tested) == (model.boundaries, model.offset_ms, model.tested)
    assert again.rank_correlation == pytest.approx(correlation, nan_ok=True)


def test_crossings_are_the_tensors_between_groups_seen_through_what_only_moves_them() -> None:
    box = toys.toybox()
    found = measured.crossings(box.captured.graph, box.groups)
    addition = next(group.name for group in box.groups if box.captured.graph.layer(group.layers[0]).kind == "add")

    assert sorted(found) == sorted(
        [
            ("stem", "depthwise", 8 * 64), ("depthwise", "point", 8 * 64), ("point", addition, 8 * 64), ("stem", addition, 8 * 64),
            (addition, "down", 8 * 64), ("down", "global_pool", 16 * 16), ("global_pool", "classifier", 16),
        ]
    )  # fmt: skip


def test_layers_of_one_group_have_no_boundary_between_them() -> None:
    box = toys.unpack(toys.TiedToy().eval())

    assert measured.crossings(box.captured.graph, box.groups) == [("twice", "global_pool", 3 * 64), ("global_pool", "head", 3)]


def machine(plan: Mapping[str, str], table: Table, edges: list[tuple[str, str, int]]) -> float:
    """A fixed cost, seven tenths of what the layers say, and each boundary a call and a price for each element."""
    crossed = [size for a, b, size in edges if (plan[a] == "fp32") != (plan[b] == "fp32")]
    return 0.3 + 0.7 * table.total(plan) + 0.02 * len(crossed) + 1e-5 * sum(crossed)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """`measure_latency` on a machine whose layers, boundaries and overhead are known; `emitted` are the plans it asked for."""
    box = toys.toybox()
    layers = [layer.name for layer in box.captured.graph.layers]
    values = {scheme: {name: (5 - 2 * place) * (1 + n) / 10 for n, name in enumerate(layers)} for place, scheme in enumerate(SCHEMES)}
    edges = measured.crossings(box.captured.graph, box.groups)
    rows = [[values[scheme][group.layers[0]] if scheme in group.schemes else math.nan for scheme in SCHEMES] for group in box.groups]
    table = Table("latency", "ms", tuple(group.name for group in box.groups), SCHEMES, np.array(rows))
    seen = SimpleNamespace(box=box, table=table, edges=edges, emitted=[], threads=[], advanced=0, drift=iter(lambda: 1.0, None))

    def written(plan: Mapping[str, str]) -> AbstractContextManager[Path]:
        seen.emitted.append(dict(plan))
        return nullcontext(tmp_path / str(len(seen.emitted) - 1))

    def opened(path: Path, *, threads: int, options: Any, example: Any) -> SimpleNamespace:
        assert options == OPTIONS and example is FEEDS
        seen.threads.append(threads)
        return SimpleNamespace(milliseconds=machine(seen.emitted[int(path.name)], table, edges))

    def profiled(*_: Any, threads: int, options: Any, runs: int, folder: Path) -> dict[str, float]:
        assert (threads, options, runs) == (3, OPTIONS, measured.PROFILE_RUNS) and folder.parent == tmp_path
        return values[max(set(seen.emitted[-1].values()), key=[*seen.emitted[-1].values()].count)]

    def interleaved(sessions: list[SimpleNamespace], _: Any, *, rounds: int, settled: bool) -> np.ndarray:
        assert settled
        return next(seen.drift) * np.array([[session.milliseconds] * rounds for session in sessions])

    monkeypatch.setattr(measured, "interleave", interleaved)
    runtime: Any = SimpleNamespace(open_file=opened, layer_ms=profiled)

    def advance(count: int) -> None:
        seen.advanced += count

    def measure(seed: int = 0, groups: tuple[Group, ...] = box.groups) -> LatencyModel:
        return measure_latency(
            box.captured.graph, groups, SCHEMES, written, Timing(runtime, OPTIONS, 3, FEEDS),
            device=ThisMachine({}, tmp_path), seed=seed, advance=advance,
        )  # fmt: skip

    seen.measure = measure
    return seen


def test_the_fit_finds_the_machine_again(known: SimpleNamespace) -> None:
    model = known.measure()

    assert model.offset_ms == pytest.approx(0.3, rel=1e-3)
    np.testing.assert_allclose(model.table.values, 0.7 * known.table.values, rtol=1e-3)
    wanted = [0.02 + 1e-5 * size for _, _, size in known.edges]
    assert [edge.latency_ms for edge in model.boundaries] == pytest.approx(wanted, rel=1e-2)
    assert model.rank_correlation == pytest.approx(1)
    for plan in known.emitted:
        assert model.predicted_ms(plan) == pytest.approx(machine(plan, known.table, known.edges), rel=1e-4)


def test_the_plans_it_is_tested_on_are_others_than_those_it_was_fitted_on(known: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model = known.measure()
    plans = known.emitted[len(SCHEMES) :]
    fitted, tested = plans[: -measured.TEST_PLANS], plans[-measured.TEST_PLANS :]

    assert len(model.tested) == len(tested) >= 10
    assert [time for _, time in model.tested] == pytest.approx([machine(plan, known.table, known.edges) for plan in tested])
    assert not [plan for plan in tested if plan in fitted]


def test_a_machine_that_drifts_from_file_to_file_is_found_again_at_its_median_speed(known: SimpleNamespace) -> None:
    """Each file is timed in turn with one that all are."""
    speeds = 1 + np.random.default_rng(0).permutation(2 + FIT_PLANS + TEST_PLANS) / 20
    known.drift = iter(speeds)
    model = known.measure()

    for plan in known.emitted:
        wanted = np.median(speeds) * machine(plan, known.table, known.edges)
        assert model.predicted_ms(plan) == pytest.approx(wanted, rel=1e-4)


def test_every_inference_is_a_step_and_every_session_has_the_threads_that_were_asked_for(known: SimpleNamespace) -> None:
    known.measure()

    assert known.advanced == runs(SCHEMES)
    assert len(known.emitted) == len(SCHEMES) + 2 + FIT_PLANS + TEST_PLANS
    assert set(known.threads) == {3}


def test_the_seed_draws_the_plans(known: SimpleNamespace) -> None:
    for seed in (0, 0, 1):
        known.measure(seed)
    count = len(known.emitted) // 3
    first, again, other = (known.emitted[place * count : (place + 1) * count] for place in range(3))

    assert first == again != other


def test_menus_without_float_stay_without_it_and_all_alike_has_no_rank(known: SimpleNamespace) -> None:
    pinned = tuple(Group(group.name, group.layers, parse_schemes(("w8a8",)), "pinned") for group in known.box.groups)
    model = known.measure(groups=pinned)

    assert {scheme for plan in known.emitted for scheme in plan.values()} == {"w8a8"}
    assert math.isnan(model.rank_correlation)


def test_random_plans_reach_from_nearly_none_to_mostly_float_in_any_order_of_the_menu() -> None:
    groups = [Group(f"g{place}", (), parse_schemes(("w8a8", "w4a8", "fp32")), "") for place in range(200)]
    shares = [[*plan.values()].count("fp32") / 200 for plan in measured.random_plans(groups, 0, 12)]

    assert min(shares) < 0.1 and max(shares) > 0.8


def test_a_layers_time_is_the_median_of_its_own_nodes_without_what_converts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graph = toys.toybox().captured.graph
    stem, down = graph.layer("stem"), graph.layer("down")
    events = [
        *[event(f"node_{stem.node}_nchwc", "Conv", micros) for micros in (1000, 9000, 2000)],
        event(stem.output, "Relu", 500),
        event(down.node, "QLinearConv", 4000),
        event(f"{down.output}_QuantizeLinear", "QuantizeLinear", 7777),
        event("nothing_of_ours", "Transpose", 7777),
        {"cat": "Session", "name": f"{stem.node}_kernel_time", "dur": 7777, "args": {}},
        {"cat": "Node", "name": f"{stem.node}_fence_before", "dur": 7777, "args": {}},
    ]
    report = tmp_path / "profile.json"
    report.write_text(json.dumps(events))
    onnx.save(onnx.ModelProto(), tmp_path / "optimized.onnx")
    handle = SimpleNamespace(end_profiling=lambda: str(report))
    monkeypatch.setattr(ort_cpu, "open_session", lambda *_, **__: SimpleNamespace(run=lambda _: (), handle=handle))

    assert ort_cpu.layer_ms(tmp_path, graph, FEEDS, threads=1, options={}, runs=3, folder=tmp_path) == {"stem": 2.0 + 0.5, "down": 4.0}
    assert not report.exists()


def event(node: str, operation: str, micros: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{node}_kernel_time", "dur": micros, "args": {"op_name": operation}}


def test_in_the_runtime_every_weighted_layer_is_found_in_both_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PROFILE_RUNS", 2)
    monkeypatch.setattr(measured, "FIT_PLANS", 2)
    monkeypatch.setattr(measured, "TEST_PLANS", 3)
    box = toys.toybox()
    candidates = toys.candidates(box, tmp_path)
    feeds = {"x": np.zeros((1, 3, toys.SIDE, toys.SIDE), np.float32)}
    model = measure_latency(
        box.captured.graph, box.groups, SCHEMES, candidates.written, Timing(ort_cpu, {}, 1, feeds),
        device=ThisMachine({}, tmp_path), seed=0, advance=lambda _: None,
    )  # fmt: skip
    for scheme in SCHEMES:
        profile = ort_cpu.layer_ms(
            toys.written(candidates, toys.everything(box.groups, scheme)), box.captured.graph, feeds,
            threads=1, options={}, runs=2, folder=tmp_path,
        )
        assert set(profile) >= {"stem", "depthwise", "point", "down", "classifier"}
    assert np.isfinite(model.predicted_ms(toys.everything(box.groups, "w4a8")))
    assert [path.name for path in tmp_path.iterdir() if "profile" in path.name] == []
