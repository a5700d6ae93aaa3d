"""How files are opened to be timed, on whatever device they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantkit.runtimes.evaluation import Feeds, Session
from quantkit.runtimes.runtime import Runtime


@dataclass(frozen=True, slots=True, eq=False)
class Timing:
    """By which runtime, with which options of its sessions, and on what."""

    runtime: Runtime
    options: Mapping[str, str]
    threads: int
    feeds: Feeds

    def open(self, path: Path) -> Session:
        """The file, for these feeds alone."""
        return self.runtime.open_file(path, threads=self.threads, options=self.options, example=self.feeds)
