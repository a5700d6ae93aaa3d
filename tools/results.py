"""Measure again every file of figures in docs/results that is older than the code, then write the pages that show them: `make results`.

    python tools/results.py                        # all: hours on a quiet machine; asked again, it goes on (costs.json starts over)
    python tools/results.py --only spine.json      # some files
    python tools/results.py --list                 # what is up to date and what would be measured, and nothing more
    python tools/results.py --pages                # only the pages, from the files that there are

A file is up to date where its fingerprint is that of this code (tools/fingerprints.py). What is measured is kept in runs/, in a folder for
this code, and takes the old file's place only when its tool has ended; so a file never mixes two states of the code or two processors.
Each file records the machine. targets-vnni.json needs a processor with VNNI, targets.json one without. Needs the data and weights that
the recipes name (QUANTKIT_DATA) and `pip install -e '.[test,bench]'`. A tool that fails stops no other; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import stale_figures
from fingerprints import FIGURES, RESULTS, ROOT, Code, code_here
from known import run_folder

from quantkit.core.environment import VNNI, isa
from quantkit.core.store import write_atomically

PAGES = (("tools/page_figures.py",), ("tools/claims.py", "--count"), ("tools/results_page.py",))  # the last shows what the others write


@dataclass(frozen=True)
class Step:
    """What is to be done about one file: nothing where `why` says so."""

    file: str
    command: tuple[str, ...]
    output: Path
    why: str = ""


def has_vnni() -> bool:
    return bool(VNNI & set(isa()))


def step_of(file: str, folder: Path = RESULTS, *, vnni: bool | None = None) -> Step:
    """The step that makes docs/results/`file` describe this code on this machine."""
    figures, code = FIGURES[file], code_here(file)
    output = run_folder("results", file) / file
    kind = "vnni" if (has_vnni() if vnni is None else vnni) else "plain"
    if figures.kind not in ("any", kind):
        needed = "with VNNI" if figures.kind == "vnni" else "without VNNI"
        return Step(file, (), output, f"needs a processor {needed}")
    if (folder / file).exists():
        stored = json.loads((folder / file).read_text()).get("code")
        if stored and Code.from_json(stored).hashes == code.hashes:
            return Step(file, (), output, "up to date")
    return Step(file, (sys.executable, figures.tool, *figures.options, "--output", str(output)), output)


def measured(step: Step, run: Callable[[Sequence[str]], int], folder: Path = RESULTS) -> bool:
    """Run the step's tool, and put its file in place if it ended well. Whether it did."""
    step.output.parent.mkdir(parents=True, exist_ok=True)
    if run(step.command) != 0 or not step.output.exists():
        return False
    with write_atomically(folder / step.file) as temporary:
        shutil.copyfile(step.output, temporary)
    return True


def call(command: Sequence[str]) -> int:
    """The exit code of a command in the repository's root."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def write_pages() -> bool:
    """The counts, README's and the docs' numbers, and the page of results. Whether all were written."""
    ended = call((sys.executable, "tools/sizes.py", "--figures"))
    stale_figures.admit([], "")  # files that were measured are not old any more
    stale_figures.write_counts(stale_figures.ages_here())
    return not ended and all(call((sys.executable, *page)) == 0 for page in PAGES)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(FIGURES), choices=list(FIGURES))
    parser.add_argument("--list", action="store_true", help="measure and write nothing")
    parser.add_argument("--pages", action="store_true", help="write the pages from the files that there are")
    arguments = parser.parse_args()
    failed = []
    for file in [] if arguments.pages else arguments.only:
        step = step_of(file)
        print(f"{file}: {step.why or ' '.join(step.command[1:])}", flush=True)
        if not step.why and not arguments.list:
            if not measured(step, call):
                failed.append(file)
            elif file == "sensitivity.json" and call((sys.executable, "tools/sensitivity_page.py")):
                failed.append("sensitivity.md")
    if not arguments.list and not write_pages():
        failed.append("the pages")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
