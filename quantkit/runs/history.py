"""What was asked of a run directory, and what each request used: history.jsonl, one event a line, safe on the disk before work goes on.

    {"event": "request", "at", "command", "inputs": {NAME: TEXT}, "files": [NAME]}     what a job depends on, and files that outlive it
    {"event": "stage", "stage", "file", "depends_on": {NAME: TEXT}, "seconds", "made"} a stage's result, made now or found
    {"event": "step", "stage", "seconds"}                                              work that has no file of its own
    {"event": "done", "kept"}

A text that begins with # is a hash: it shows that something changed, and not how. A stage is only found under equal dependencies, so
what changed among them is the whole reason why it was made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from quantkit.core.store import Run, fingerprint

HISTORY = "history.jsonl"
SHORT = 24  # characters of a value that is kept as it is


@dataclass(frozen=True, slots=True)
class StageUse:
    """One stage as a session met it."""

    file: str
    depends_on: Mapping[str, str]
    seconds: float
    made: bool


@dataclass(slots=True)
class Session:
    """One request: what it depended on, and what it came to. `done` is None where it was cut off."""

    at: str
    command: str
    inputs: Mapping[str, str]
    files: tuple[str, ...]
    stages: dict[str, StageUse] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    done: bool | None = None


def shortened(value: Any) -> str:
    """A dependency as the history keeps it: its own text, if that is short, or a hash."""
    text = value if isinstance(value, str) else "" if isinstance(value, (bytes, Mapping)) else repr(value)
    plain = isinstance(value, (str, int, float, bool, tuple, list, type(None))) and 0 < len(text) <= SHORT and not text.startswith("#")
    return text if plain else f"#{fingerprint(value)[:16]}"


def request_event(command: str, inputs: Mapping[str, str], files: Iterable[str]) -> dict[str, Any]:
    """The event that begins a session."""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"event": "request", "at": at, "command": command, "inputs": dict(inputs), "files": list(files)}


def read_sessions(store: Run) -> tuple[Session, ...]:
    """All sessions, oldest first; none for a run of an older version. Raises OutputError where the history is damaged."""
    found: list[Session] = []
    for event in store.records(HISTORY):
        if event["event"] == "request":
            found.append(Session(event["at"], event["command"], event["inputs"], tuple(event["files"])))
        elif found and event["event"] == "stage":
            found[-1].stages[event["stage"]] = StageUse(event["file"], event["depends_on"], event["seconds"], event["made"])
        elif found and event["event"] == "step":
            found[-1].steps[event["stage"]] = event["seconds"]
        elif found:
            found[-1].done = bool(event["kept"])
    return tuple(found)


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, in words: `observer (mse → minmax)`, or only the name where a value is a hash."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    pairs = [(name, before.get(name, "not given"), now.get(name, "not given")) for name in names]
    return [name if "#" in (one[:1], other[:1]) else f"{name} ({one} → {other})" for name, one, other in pairs]
