"""What a bar says is left: by which pace, of which end, and the same wherever it is told."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress as Bars
from test_pipeline import allocate as allocate_toy
from test_pipeline import hurry, remember
from test_search import NAMES, Network, hash_noise, make, random_space

from quantkit.allocation import Edge, Plan
from quantkit.allocation.search import MOST_TRIALS, SEARCHES, Outlook, Space
from quantkit.allocation.search.repair import likely_repairs
from quantkit.cli.console import ConsoleProgress, TimeLeft
from quantkit.core.progress import Advance, Pace, Silent, expect
from quantkit.core.spec import parse_scheme
from quantkit.runs.progress_file import ProgressFile, read_progress
from quantkit.stages.search import _Counted
from quantkit.streaming.search import bisect


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless `now` is moved."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: found.now)
    return found


def after(clock: SimpleNamespace, advance: Advance, *took_s: float, steps: int = 1) -> None:
    for seconds in took_s:
        clock.now += seconds
        advance(steps)


def test_the_pace_is_that_of_the_later_half(clock: SimpleNamespace) -> None:
    """A first step of 50 seconds is forgotten once as many were done behind it."""
    pace = Pace(10)
    assert pace.seconds_left is None
    after(clock, pace, 50.0)
    assert pace.seconds_left == pytest.approx(9 * 50)
    after(clock, pace, 2.0)
    assert pace.seconds_left == pytest.approx(8 * 2)
    after(clock, pace, 2.0, 3.0, 3.0, 3.0)
    assert pace.seconds_left == pytest.approx(4 * 3)
    after(clock, pace, 3.0, steps=4)
    assert pace.seconds_left == 0


def test_steps_count_by_their_size(clock: SimpleNamespace) -> None:
    pace = Pace(100)
    after(clock, pace, 10.0, steps=50)
    assert pace.seconds_left == pytest.approx(10)
    after(clock, pace, 4.0, steps=40)
    assert pace.seconds_left == pytest.approx(10 * 14 / 90)  # the first 50 are more than half


def test_between_steps_the_bar_counts_down_and_never_below_nothing(clock: SimpleNamespace) -> None:
    pace = Pace(2)
    after(clock, pace, 10.0)
    clock.now += 4
    assert (pace.seconds_left, pace.seconds_left_now) == (10, 6)
    clock.now += 40
    assert pace.seconds_left_now == 0


def test_what_is_expected_moves_the_end(clock: SimpleNamespace) -> None:
    pace = Pace(None)
    after(clock, pace, 3.0, 3.0)
    assert pace.seconds_left is None
    expect(pace, 5)
    assert (pace.done, pace.total, pace.seconds_left) == (2, 7, 15)


def test_the_file_the_bar_and_a_callers_own_progress_are_told_the_same(tmp_path: Path, clock: SimpleNamespace) -> None:
    bars = Bars(console=Console(file=io.StringIO()))
    with ProgressFile(ConsoleProgress(bars), tmp_path) as progress, progress.stage("search", 40, "candidates") as advance:
        after(clock, advance, 3.0, 3.0)
        expect(advance, 6)
        after(clock, advance, 3.0)
        (task,) = bars.tasks
        doing = read_progress(tmp_path)
        assert doing is not None
        assert (doing.done, doing.total, doing.seconds_left) == (task.completed, task.total, 15) == (3, 8, 15)
        assert TimeLeft().render(task).plain == "0:00:15"
    assert not bars.tasks


def test_a_progress_that_takes_nothing_but_steps_still_does(tmp_path: Path) -> None:
    steps: list[int] = []

    class Plain(Silent):
        @contextmanager
        def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
            yield steps.append

    with ProgressFile(Plain(), tmp_path) as progress, progress.stage("search", 40) as advance:
        advance(1)
        expect(advance, 6)
        advance(2)
    assert steps == [1, 2]


class Heard(Outlook):
    """Moves a pace's end by what a search expects."""

    def __init__(self, pace: Pace, network: Network, passing: Any = ()) -> None:
        self.pace, self.network, self.passing = pace, network, passing

    def expect(self, plans: Sequence[Plan], others: int) -> None:
        self.pace.expect(sum(plan.allocation not in self.network.asked for plan in plans) + others)

    def passes(self, plan: Plan) -> bool | None:
        return True if plan in self.passing else None


def test_where_the_cheapest_plan_is_known_to_pass_nothing_behind_the_walk_is_expected() -> None:
    space = random_space(1)
    network = Network(space, 1e9)
    pace, first = Pace(99), []

    def measure(allocation: Any) -> Any:
        first.append(pace.total)
        pace(1)
        return network(allocation)

    SEARCHES["pareto"](measure, space, repairs=4, outlook=Heard(pace, network, space.front[:1]))
    assert first[0] == pace.done < MOST_TRIALS["pareto"](space, 4) - 4


def test_repairs_are_expected_where_a_change_of_one_group_saves_more_than_its_boundaries_cost() -> None:
    costs = [[4.0, 2.0, 3.0]] * 3  # of fp32, w8a8, w4a8
    apart, joined = (make([[0, 1, 2]] * 3, costs, edges=edges) for edges in ([], [Edge("g0", "g1", 9.0), Edge("g1", "g2", 9.0)]))
    floats, least = apart.plan(apart.highest_precision()), apart.plan(dict.fromkeys(("g0", "g1", "g2"), parse_scheme("w8a8")))
    assert [likely_repairs(space, floats, 4) for space in (apart, joined)] == [4, 0]
    assert [likely_repairs(space, least, 4) for space in (apart, joined)] == [0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_search_expects_is_about_what_it_then_measures(name: str) -> None:
    """Over random spaces, at every step: nearer than the bound, and nowhere off by much."""
    guessed, bounded = list[int](), list[int]()
    for seed in range(12):
        space: Space = random_space(seed)
        network, left = Network(space, 4.0, lambda allocation, seed=seed: hash_noise(allocation, seed)), dict[int, int]()
        pace = Pace(MOST_TRIALS[name](space, 4))

        def measure(allocation: Any, pace: Pace = pace, network: Network = network, left: dict[int, int] = left) -> Any:
            left[pace.done] = (pace.total or 0) - pace.done
            pace(1)
            return network(allocation)

        SEARCHES[name](measure, space, repairs=4, outlook=Heard(pace, network))
        guessed += [abs(count - (pace.done - done)) for done, count in left.items()]
        bounded += [abs(MOST_TRIALS[name](space, 4) - pace.done) for _ in left]
    assert np.mean(guessed) < 2
    assert np.mean(guessed) < 0.7 * np.mean(bounded)


def test_of_what_a_search_expects_only_what_the_journal_does_not_hold_counts() -> None:
    known, told = [{"a": "fp32"}], SimpleNamespace(steps=0, left=None)

    class Steps:
        def __call__(self, steps: int) -> None:
            told.steps += steps

        def expect(self, left: int) -> None:
            told.left = left

    judged: Any = lambda allocation: known.append(dict(allocation)) or SimpleNamespace(passes=True)  # noqa: E731
    judge: Any = SimpleNamespace(measured_plans=lambda: [(one, {}) for one in known], knows=lambda one: one in known)
    bench: Any = SimpleNamespace(is_late=lambda: False)
    counted = _Counted(bench, judge, judged, Steps())
    plans: Any = [SimpleNamespace(allocation={"a": scheme}) for scheme in ("fp32", "w8a8", "w4a8")]
    counted.expect(plans, 3)
    assert told.left == 5
    for plan in plans[:2]:
        counted.measure(plan.allocation)
    counted.expect(plans, 3)
    assert (told.steps, told.left) == (1, 4)
    assert [counted.passes(plan) for plan in plans] == [True, True, None]


@pytest.mark.parametrize("holds", range(-1, 8))
def test_a_streamed_search_expects_at_each_step_what_is_left_or_one_more(holds: int) -> None:
    told: list[tuple[int, int]] = []
    pace = Pace(99)
    pace.expect = lambda left: told.append((pace.done, left))  # type: ignore[method-assign]
    bench: Any = SimpleNamespace(
        judge=lambda plan, _: plan, chance_kept=lambda plan: (1.0 if plan <= holds else 0.0, 0.5),
        work=SimpleNamespace(tokens=SimpleNamespace(search_part=None)),
    )  # fmt: skip
    plans: Any = list(range(8))
    found = bisect(bench, plans, lambda: False, pace, smallest=True)
    assert found.sure == (holds >= 0)
    late = [(done, left) for done, left in told if done >= 2]
    assert all(0 <= left - (pace.done - done) <= 1 for done, left in late)


def test_every_stage_comes_to_the_end_that_it_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that weights of unlike steps add up, and nothing that was known is counted."""
    hurry(monkeypatch)
    remember(monkeypatch)
    stages: dict[str, Pace] = {}

    class Paces(Silent):
        @contextmanager
        def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Pace]:
            stages[name] = Pace(total)
            yield stages[name]

    allocate_toy(tmp_path / "run", progress=Paces(), certificate=4)
    assert {"round weights", "measure latency", "search", "accuracy on the gate split", "read the gate split"} <= set(stages)
    for name, pace in stages.items():
        if name != "search":
            assert pace.total in (None, pace.done), name
    assert stages["search"].done <= (stages["search"].total or 0) <= stages["search"].done + 6
