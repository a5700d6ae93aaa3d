"""Bisection guided by an ordering, one precision after the other (2302.01382, 2306.04879).

From the highest precision down: of the groups that were never refused one, in order of sensitivity, as many as the promise allows go down
together. The number is bisected, so a precision costs ⌈log₂(n + 1)⌉ measurements. Groups whose cost would not fall wait for the next one.
"""

from __future__ import annotations

from quantkit.allocation import order
from quantkit.allocation.search.measured import NOBODY, Measure, Outlook, SearchResult, Space, Trials
from quantkit.allocation.search.repair import repair
from quantkit.core.graph import Group
from quantkit.core.spec import Scheme


def bisect_precisions(measure: Measure, space: Space, *, repairs: int, outlook: Outlook = NOBODY) -> SearchResult:
    """The cheapest allocation that passes on the way down, made cheaper by at most `repairs` single-group trials."""
    trials = Trials(measure, space, outlook)
    with trials.while_there_is_time():
        lowered = _lowered(trials, space, repairs)
        trials.of(space.plan(lowered))  # unmeasured only if nothing could be lowered; then it is the answer, or the nearest
        repair(trials, space, repairs)
    return trials.result()


def bisection_trials(space: Space, repairs: int) -> int:
    """How many plans `bisect_precisions` measures, if every group stays in play."""
    menus = [space.menu(group)[1:] for group in space.groups]
    counts = [sum(scheme in menu for menu in menus) for scheme in {scheme for menu in menus for scheme in menu}]
    return sum(count.bit_length() for count in counts) + 1 + repairs


def _lowered(trials: Trials, space: Space, behind: int) -> dict[str, Scheme]:
    """The allocation at the end of the way down. Limits bind on what is answered, not on the way, which begins above them."""
    menus = {group.name: space.menu(group) for group in space.groups}
    standing, refused = space.highest_precision(), set[str]()
    schemes = sorted({scheme for menu in menus.values() for scheme in menu}, key=lambda scheme: scheme.precision, reverse=True)

    def able_at(scheme: Scheme) -> list[Group]:
        return [group for group in space.groups if scheme in menus[group.name][1:] and group.name not in refused]

    for place, scheme in enumerate(schemes):
        able, later = able_at(scheme), sum(len(able_at(scheme)).bit_length() for scheme in schemes[place + 1 :])
        lowered = [group.name for group in able if _can_save(space, group, standing, scheme)]
        standing = _as_many_as_pass(trials, space, standing, lowered, scheme, later + behind)
        refused |= {name for name in lowered if standing[name] != scheme}
    return standing


def _as_many_as_pass(
    trials: Trials, space: Space, standing: dict[str, Scheme], groups: list[str], scheme: Scheme, behind: int
) -> dict[str, Scheme]:
    ordered = order(space.loss, groups, scheme, interactions=space.interactions, start=standing)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        trials.outlook.expect([], (high - low).bit_length() + behind)
        if trials.of(space.plan(standing | dict.fromkeys(ordered[:middle], scheme))).measured.passes:
            low = middle
        else:
            high = middle - 1
    return standing | dict.fromkeys(ordered[:low], scheme)


def _can_save(space: Space, group: Group, standing: dict[str, Scheme], scheme: Scheme) -> bool:
    """Whether the group's own cost falls by more than nothing, at best with all its precision changes saved too."""
    now = standing[group.name]
    changes = sum(edge.cost for edge in space.edges if group.name in (edge.producer, edge.consumer)) if now.reads_float else 0.0
    return space.cost.at(group.name, scheme) < space.cost.at(group.name, now) + changes
