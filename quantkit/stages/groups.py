"""The groups of the network and what each may take."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

from quantkit.core.errors import SchemeError, unknown
from quantkit.core.graph import Graph, Group
from quantkit.core.spec import FLOAT, Scheme, parse_scheme
from quantkit.settings.options import Options
from quantkit.stages.weights import UNIFORM
from quantkit.targets import find_target


def find_groups(graph: Graph, options: Options) -> tuple[Group, ...]:
    """The target's groups under the allowed schemes; a pinned or excluded group has a menu of one.

    Raises SchemeError for a pin or pattern that meets no group or layer, and for a scheme that the group cannot take.
    """
    target = find_target(options.target)
    groups: tuple[Group, ...] = target.groups(graph, target.check_schemes(options.menu))
    if options.schemes is None:
        groups = tuple(map(_without_dearer, groups))
    owner = {name: group.name for group in groups for name in (group.name, *group.layers)}
    floats = {g.name: min((s for s in g.schemes if s.is_float), key=lambda scheme: scheme != FLOAT) for g in groups}  # or fp16
    pinned: dict[str, Scheme] = {}
    for pattern in options.exclude:
        found = fnmatch.filter(owner, pattern)
        if not found:
            raise SchemeError(*unknown("group in --exclude", pattern, owner))
        pinned.update({owner[name]: floats[owner[name]] for name in found})
    for name, scheme in options.fix:
        if name not in owner:
            raise SchemeError(*unknown("group in --fix", name, owner))
        pinned[owner[name]] = parse_scheme(scheme)
    possible = target.groups(graph, target.check_schemes([*options.menu, *pinned.values()]))  # a pin may name what the menu leaves out
    return tuple(
        _pinned(wider, pinned[group.name]) if group.name in pinned else group for group, wider in zip(groups, possible, strict=True)
    )


def _without_dearer(group: Group) -> Group:
    """Without narrow weights between static codes where the same weights may stand behind codes of each call: as many bytes, far less lost.

    Several static codes in a row lose more than the sum of what each loses alone, so that predictions prefer them wrongly.
    """
    in_call = [scheme.weights for scheme in group.schemes if scheme.is_dynamic]
    kept = [scheme for scheme in group.schemes if scheme == UNIFORM or scheme.reads_float or scheme.weights not in in_call]
    return replace(group, schemes=tuple(kept))


def _pinned(group: Group, scheme: Scheme) -> Group:
    if scheme not in group.schemes:
        raise SchemeError(*unknown(f"scheme for group {group.name}", scheme, group.schemes))
    return replace(group, schemes=(scheme,), reason="pinned by the user")


def schemes_of(groups: tuple[Group, ...]) -> tuple[Scheme, ...]:
    """All schemes of all menus, in the order in which they first appear."""
    return tuple(dict.fromkeys(scheme for group in groups for scheme in group.schemes))
