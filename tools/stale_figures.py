"""Say which figures of docs/results are older than the code that they describe, by more than docs/results/admitted.json admits.

    python tools/stale_figures.py                                  # the check: exit 1 where a file is older than is admitted
    python tools/stale_figures.py --admit spine.json --reason "…"  # admit that it is as old as it is; all stale files where none is named
    python tools/stale_figures.py --backfill                       # for files without a fingerprint: that of the commit that wrote them
    python tools/stale_figures.py --counts                            # both counts into docs/results/first-hour.json

Age is the share of today's sources that a file's figures did not see (tools/fingerprints.py). What is admitted is an age, a reason and a
date; code that changes further makes the file stale again. docs/results/structure.json describes the sources themselves and must be exact.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sizes
from fingerprints import FIGURES, RESULTS, Code, code_here, code_of, commit_of, sources_at

from quantkit.core.store import write_atomically

ADMITTED = RESULTS / "admitted.json"
COUNTS = RESULTS / "first-hour.json"
REASON = "Measured before the code changed; not measured again yet, because it takes hours."


@dataclass(frozen=True)
class Age:
    """How old a file of figures is, in percent of the sources that it describes, and how much of that is admitted."""

    file: str
    changed: int
    admitted: int
    why: str = ""

    @property
    def is_stale(self) -> bool:
        """Whether it is older than is admitted."""
        return self.changed > self.admitted

    @property
    def line(self) -> str:
        """For the terminal."""
        if self.why:
            return f"{self.file}: {self.why}"
        return f"{self.file}: {self.changed} % of the code that it describes has changed since, {self.admitted} % admitted"


def ages(files: Mapping[str, Code | None], now: Mapping[str, Code], admitted: Mapping[str, Mapping[str, Any]]) -> list[Age]:
    """The age of each file, given the code that it describes (None: unknown) and today's. An admission counts for one fingerprint only."""
    found = []
    for file, then in sorted(files.items()):
        if then is None:
            found.append(Age(file, 100, 0, "no fingerprint of the code that it describes: --backfill, or measure it"))
            continue
        told = admitted.get(file, {})
        allowed = int(told["changed_percent"]) if told.get("fingerprint") == then.fingerprint else 0
        found.append(Age(file, then.changed_percent(now[file]), allowed))
    return found


def stored(folder: Path = RESULTS) -> dict[str, Code | None]:
    """The code that each file there says it describes."""
    found = {}
    for file in FIGURES:
        if (folder / file).exists():
            data = json.loads((folder / file).read_text()).get("code")
            found[file] = Code.from_json(data) if data else None
    return found


def ages_here() -> list[Age]:
    """Of all files of this checkout."""
    files = stored()
    found = ages(files, {file: code_here(file) for file in files}, admissions())
    exact = not sizes.FIGURES.exists() or json.loads(sizes.FIGURES.read_text())["figures"] == sizes.figures(sizes.modules())
    structure = Age(sizes.FIGURES.name, int(not exact), 0, "" if exact else "not what the sources are: run python tools/sizes.py --figures")
    return [*found, structure]


def admissions() -> dict[str, dict[str, Any]]:
    """What is admitted, by file."""
    return dict(json.loads(ADMITTED.read_text())) if ADMITTED.exists() else {}


def admit(files: Iterable[str], reason: str) -> None:
    """Admit the age that each of these files has today; forget the admissions of files that are not old any more."""
    today = {age.file: age for age in ages_here()}
    kept = {file: entry for file, entry in admissions().items() if file in today and today[file].changed}
    codes = stored()
    for file in files:
        code = codes[file]
        if code is not None and today[file].changed:
            kept[file] = {
                "fingerprint": code.fingerprint, "commit": code.commit, "changed_percent": today[file].changed,
                "reason": reason or kept.get(file, {}).get("reason", REASON), "date": datetime.date.today().isoformat(),
            }  # fmt: skip
    write(ADMITTED, dict(sorted(kept.items())))


def backfill() -> None:
    """Give each file without a fingerprint that of the code at the commit that wrote it, where history has it."""
    for file, code in stored().items():
        path = RESULTS / file
        if code is None:
            commit = commit_of(path)
            try:
                then = code_of(sources_at(commit), FIGURES[file], commit, past=True)
            except subprocess.CalledProcessError:
                print(f"{file}: history does not have the commit that wrote it")
                continue
            write(path, json.loads(path.read_text()) | {"code": then.to_json()})


def write(path: Path, data: Mapping[str, Any]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_counts(found: Iterable[Age], path: Path = COUNTS) -> None:
    """How many figures are older than the code, and how many of them say so."""
    rows = list(found)
    stale, admitted = sum(age.is_stale for age in rows), sum(bool(age.changed) and not age.is_stale for age in rows)
    write_figures({"stale_figures": stale, "admitted_figures": admitted}, path)


def write_figures(figures: Mapping[str, float], path: Path = COUNTS) -> None:
    """Figures of docs/results/first-hour.json, beside what others wrote there."""
    known = json.loads(path.read_text()) if path.exists() else {}
    write(path, known | {"figures": known.get("figures", {}) | figures})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--admit", nargs="*", metavar="FILE", help="admit that these are old; all stale ones where none is named")
    parser.add_argument("--reason", default="", help="why an old file is not measured again")
    parser.add_argument("--backfill", action="store_true", help="fingerprints of files that have none, from the commit that wrote them")
    parser.add_argument("--counts", action="store_true", help="write the counts into docs/results/first-hour.json")
    arguments = parser.parse_args()
    if arguments.backfill:
        backfill()
    if arguments.admit is not None:
        admit(arguments.admit or [age.file for age in ages_here() if age.is_stale and age.file in FIGURES], arguments.reason)
    found = ages_here()
    if arguments.counts:
        write_counts(found)
    for age in found:
        if age.is_stale:
            print(f"stale: {age.line}")
        elif age.changed:
            print(f"admitted: {age.line}")
    return int(any(age.is_stale for age in found))


if __name__ == "__main__":
    raise SystemExit(main())
