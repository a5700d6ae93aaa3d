"""What changed between two plans, layer by layer, and its effect: predicted one change at a time, and measured on the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.allocation.prediction.predictor import Predictor
from quantkit.core.errors import OutputError
from quantkit.core.spec import Allocation
from quantkit.report.format import leaves
from quantkit.report.run_data import MEASURED_ONLY, Evidence

HOST = ("cpu", "isa", "cores", "timed_on")
# Options that say where things lie and not what they are.
PLACES = ("run", "output")


@dataclass(frozen=True, slots=True)
class GroupChange:
    """One group with another scheme: `effect` is what this change alone does to the first plan, as predicted (loss and costs)."""

    group: str
    before: str
    after: str
    effect: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class NumberChange:
    """One number of both plans; `change` None where one of them is missing or no number."""

    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        """By how much it grew."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting of the request or the environment that differs."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """`one` and `other` are the run directories. `cautions` say which numbers cannot be compared, and why."""

    one: str
    other: str
    groups: tuple[GroupChange, ...]
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    same: int
    predicted: tuple[NumberChange, ...]
    measured: tuple[NumberChange, ...]
    asked: tuple[SettingChange, ...]
    cautions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        found = asdict(self)
        for kind in ("predicted", "measured"):
            found[kind] = [{**asdict(row), "change": row.change} for row in getattr(self, kind)]
        return found


def compare(one: Evidence, other: Evidence) -> Comparison:
    """From the plan in force of `one` to that of `other`. Raises OutputError where one of them has none."""
    for evidence in (one, other):
        if not evidence.allocation:
            raise OutputError(f"{evidence.folder} holds no plan", "two runs with a plan each", MEASURED_ONLY)
    shared = [group for group in one.allocation if group in other.allocation]
    changed = [group for group in shared if one.allocation[group] != other.allocation[group]]
    predictor = next((each.predictor for each in (other, one) if each.predictor and _covers(each.predictor, one, other)), None)
    return Comparison(
        str(one.folder),
        str(other.folder),
        tuple(GroupChange(name, one.allocation[name], other.allocation[name], _effect(predictor, one, other, name)) for name in changed),
        tuple(name for name in one.allocation if name not in other.allocation),
        tuple(name for name in other.allocation if name not in one.allocation),
        len(shared) - len(changed),
        _predicted(predictor, one, other),
        _measured(one, other),
        _asked(one, other),
        _cautions(one, other, predictor),
    )


def _covers(predictor: Predictor, one: Evidence, other: Evidence) -> bool:
    """Whether the tables cover both plans."""
    for evidence in (one, other):
        for group, scheme in evidence.allocation.items():
            if (
                group not in predictor.loss.groups
                or scheme not in predictor.loss.schemes
                or predictor.loss.at(group, scheme) != predictor.loss.at(group, scheme)
            ):
                return False
    return one.allocation.keys() == other.allocation.keys()


def _foretold(predictor: Predictor, allocation: Allocation) -> dict[str, float]:
    """The predicted loss and costs of a plan."""
    loss = predictor.loss.total(allocation) if predictor.interactions is None else predictor.interactions.predicted(allocation)
    return {"loss": loss, **predictor.used(allocation)}


def _effect(predictor: Predictor | None, one: Evidence, other: Evidence, group: str) -> dict[str, float] | None:
    """What the first plan gains and loses by this one change."""
    if predictor is None:
        return None
    before = _foretold(predictor, one.allocation)
    after = _foretold(predictor, {**one.allocation, group: other.allocation[group]})
    return {name: after[name] - before[name] for name in before}


def _predicted(predictor: Predictor | None, one: Evidence, other: Evidence) -> tuple[NumberChange, ...]:
    if predictor is None:
        return ()
    before, after = _foretold(predictor, one.allocation), _foretold(predictor, other.allocation)
    return tuple(NumberChange(name, before[name], after[name]) for name in before)


def _measured(one: Evidence, other: Evidence) -> tuple[NumberChange, ...]:
    """What was measured of both files; a picked plan's file is not measured yet."""
    found = []
    for name, *path in (
        ("drop", "verdict", "drop"), ("drop at least", "verdict", "low"), ("drop at most", "verdict", "high"),
        ("float score", "verdict", "float"), ("quantized score", "verdict", "quantized"), ("latency", "latency", "quantized_ms"),
        ("latency, relative to float", "latency", "ratio"), ("bytes", "bytes", "quantized"), ("bytes, relative to float", "bytes", "ratio"),
        ("MACs in int8", "executed", "int8_macs"), ("max drop", "budget", "max_drop"),
    ):  # fmt: skip
        before, after = _at(one, *path), _at(other, *path)
        if before is not None or after is not None:
            found.append(NumberChange(name, before, after))
    return tuple(found)


def _at(evidence: Evidence, part: str, key: str) -> float | None:
    if evidence.result is None or evidence.picked or evidence.result[part] is None:
        return None
    value = evidence.result[part][key]
    return None if value is None else float(value)


def _asked(one: Evidence, other: Evidence) -> tuple[SettingChange, ...]:
    """Options, data, network, machine and versions that differ."""
    before, after = (dict(leaves(_described(evidence))) for evidence in (one, other))
    names = dict.fromkeys([*before, *after])
    return tuple(SettingChange(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name))


def _described(evidence: Evidence) -> dict[str, Any]:
    options = {key: value for key, value in evidence.request["options"].items() if key not in PLACES}
    data = {name: {"items": part["items"], "fingerprint": part["fingerprint"]} for name, part in evidence.request["data"].items()}
    return {
        "model": {"name": evidence.name, "digest": evidence.request["model"]["digest"]},
        "metric": evidence.request["metric"], "budget": evidence.request["budget"], "options": options, "data": data,
        "environment": dict((evidence.result or {}).get("environment", {})),
    }  # fmt: skip


def _cautions(one: Evidence, other: Evidence, predictor: Predictor | None) -> tuple[str, ...]:
    found = []
    if one.request["model"]["digest"] != other.request["model"]["digest"]:
        found.append("The networks differ.")
    if one.request["metric"] != other.request["metric"]:
        found.append("The metrics differ, so drops are not comparable.")
    if one.request["data"]["gate"]["fingerprint"] != other.request["data"]["gate"]["fingerprint"]:
        found.append("The verdicts are on different gate items, so part of the change in drop is due to the items.")
    hosts = [[(each.result or {}).get("environment", {}).get(name) for name in HOST] for each in (one, other)]
    if hosts[0] != hosts[1] and one.result and other.result:
        found.append("They were timed on different machines, so milliseconds are not comparable.")
    found += [
        f"{each.folder} holds a picked plan, which is not measured yet: `quantkit verify` measures it."
        for each in (one, other)
        if each.picked
    ]
    if predictor is None:
        found.append("Neither run's tables cover both plans, so the effect of each change is not predicted.")
    return tuple(found)
