"""The fast tests under settings that change the order of sums: threads, instruction set, hash seed, order of the files, another torch.

    python tools/run_matrix.py                  # every setting that has no result for this code: about ten minutes each, resumable
    python tools/run_matrix.py --only avx2-1    # one of them
    python tools/run_matrix.py --tests tests/test_affine.py tests/test_export.py      # these files only, kept apart from whole runs
    python tools/run_matrix.py --again          # of results that are there, the files with failures once more, with the code as it is now
    python tools/run_matrix.py --list

Results lie in build/test-matrix. `matrix.settings` and `matrix.failures` of docs/results/first-hour.json count whole runs, and `matrix`
beside them names each with its failures; runs of older code stay until their setting is run again (`matrix.rows_of_older_code`). A torch
that pip cannot give is reported as not available, and not counted.
Files that name OpenVINO run without oneDNN's limit: OpenVINO's own copy reads the same variable, and crashes where the processor has more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as Xml
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import stale_figures

from quantkit.core.environment import describe

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "test-matrix"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
OLDER_TORCH = "2.11"


@dataclass(frozen=True)
class Setting:
    """How the tests run: `isa` is "default" or "avx2"; `order` seeds the order of the files, None for the usual one."""

    threads: int
    isa: str
    hash_seed: int
    order: int | None = None
    torch: str | None = None

    @property
    def name(self) -> str:
        """Short, for the command line."""
        parts = [self.isa, self.threads, f"hash{self.hash_seed}"] + ([f"order{self.order}"] if self.order is not None else [])
        return "-".join(map(str, [*parts, *([f"torch{self.torch}"] if self.torch else [])]))

    def environment(self, limited: Sequence[str] = tuple(AVX2)) -> dict[str, str]:
        """The variables that make it so, of those of AVX2 the `limited` ones."""
        narrow = {key: AVX2[key] for key in limited} if self.isa == "avx2" else {}
        threads = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        return {**os.environ, **narrow, **threads, "PYTHONHASHSEED": str(self.hash_seed)}


SETTINGS = (
    Setting(1, "default", 0), Setting(2, "default", 0), Setting(1, "avx2", 0), Setting(2, "avx2", 0),
    Setting(1, "default", 1, 1), Setting(2, "avx2", 1, 1), Setting(1, "avx2", 2, 2), Setting(2, "default", 2, 2),
    Setting(1, "default", 0, torch=OLDER_TORCH),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a setting, with the tests and code that `code` stands for.

    `failed` are the ids of tests that failed or broke; `again` those that did, and not when their files ran once more, with `again_code`.
    """

    name: str
    passed: int
    skipped: int
    failed: tuple[str, ...]
    seconds: float
    isa: str
    code: str
    again: tuple[str, ...] = ()
    again_code: str | None = None


def code_here() -> str:
    """Stands for all that the tests run."""
    digest = hashlib.sha256()
    for folder in ("quantkit", "tests", "tools", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def ordered(files: Sequence[Path], seed: int | None) -> list[str]:
    """The files as pytest takes them: in the usual order, or in one that the seed draws."""
    names = sorted(path.relative_to(ROOT).as_posix() for path in files)
    if seed is not None:
        random.Random(seed).shuffle(names)
    return names


def read_junit(path: Path) -> tuple[int, int, tuple[str, ...], float]:
    """Passed, skipped, the failed, and the seconds of a report as pytest writes it."""
    suites = list(Xml.parse(path).getroot().iter("testsuite"))
    failed = [
        f"{case.get('classname', '')}::{case.get('name', '')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    tests, skipped = (sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "skipped"))
    return tests - skipped - len(failed), skipped, tuple(failed), sum(float(suite.get("time", 0)) for suite in suites)


def interpreter(setting: Setting) -> str | None:
    """This one; for another torch that of an environment of its own, made here; None, with pip's last line, where it cannot be had."""
    if setting.torch is None:
        return sys.executable
    folder = ROOT / "build" / f"venv-torch-{setting.torch}"
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[test]", f"torch=={setting.torch}.*", "torchvision"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"{setting.name}: not available: {(made.stderr.strip().splitlines() or ['pip gave no reason'])[-1]}")
            return None
        (folder / ".ready").touch()
    return str(python)


def run_tests(python: str, names: Sequence[str], environment: Mapping[str, str], stem: Path) -> tuple[int, int, tuple[str, ...], float]:
    """What `read_junit` says of a run of these files, whose log and report begin with `stem`."""
    report = stem.with_name(f"{stem.name}.xml")
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not slow", f"--junitxml={report}", *names]
    with stem.with_name(f"{stem.name}.log").open("w") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
    return read_junit(report)


def outcome(setting: Setting, files: Sequence[Path], kept: Path, *, of_any_code: bool = False) -> Outcome | None:
    """The result of this code under the setting, kept from before or made now; None where its torch cannot be had."""
    path, code = kept / f"{setting.name}.json", code_here()
    if path.exists():
        known = json.loads(path.read_text())
        if of_any_code or known["code"] == code:
            return Outcome(**{**known, "failed": tuple(known["failed"]), "again": tuple(known.get("again", ()))})
    python = interpreter(setting)
    if python is None:
        return None
    kept.mkdir(parents=True, exist_ok=True)
    shielded = [file for file in files if setting.isa == "avx2" and "openvino" in file.read_text(encoding="utf-8").lower()]
    parts = [([file for file in files if file not in shielded], setting.environment())]
    parts += [(shielded, setting.environment(["ATEN_CPU_CAPABILITY"]))] if shielded else []
    reports = [run_tests(python, ordered(some, setting.order), env, kept / f"{setting.name}-{n}") for n, (some, env) in enumerate(parts)]
    passed, skipped, failed, seconds = zip(*reports, strict=True)
    found = Outcome(setting.name, sum(passed), sum(skipped), sum(failed, ()), sum(seconds), str(describe()["isa"]), code)
    path.write_text(json.dumps(asdict(found), indent=1))
    return found


def once_more(setting: Setting, before: Outcome, kept: Path) -> Outcome:
    """The same with the files run again in which tests failed: what passes now is mended, or had failed for what is no code."""
    names = sorted({f"tests/{test.split('::')[0].removeprefix('tests.').split('.')[0]}.py" for test in before.failed})
    python = interpreter(setting)
    if not names or python is None:
        return before
    limited = [key for key in AVX2 if key == "ATEN_CPU_CAPABILITY" or "openvino" not in "".join(names)]
    _, _, failed, seconds = run_tests(python, names, setting.environment(limited), kept / f"{setting.name}-again")
    mended = tuple(test for test in before.failed if test not in failed)
    found = replace(
        before, passed=before.passed + len(mended), failed=failed, seconds=before.seconds + seconds, again=(*before.again, *mended),
        again_code=code_here(),
    )  # fmt: skip
    (kept / f"{setting.name}.json").write_text(json.dumps(asdict(found), indent=1))
    return found


def write(found: Mapping[str, Outcome]) -> None:
    """The counts and what they are of, beside what others wrote; rows of other settings stay, and those of older code are counted."""
    rows = {row["name"]: row for row in json.loads(stale_figures.COUNTS.read_text()).get("matrix", [])}
    rows |= {name: asdict(row) for name, row in found.items()}
    counts = {
        "matrix.settings": len(rows),
        "matrix.failures": sum(len(row["failed"]) for row in rows.values()),
        "matrix.rows_of_older_code": sum(row["code"] != code_here() for row in rows.values()),
    }
    stale_figures.write_figures(counts)
    known = json.loads(stale_figures.COUNTS.read_text())
    stale_figures.write(stale_figures.COUNTS, known | {"matrix": list(rows.values())})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", metavar="SETTING", help="these settings")
    parser.add_argument("--tests", nargs="*", type=Path, metavar="FILE", help="these files, kept apart and not written down")
    parser.add_argument("--again", action="store_true", help="run files with failures once more, under the same settings")
    parser.add_argument("--list", action="store_true", help="name the settings")
    arguments = parser.parse_args()
    chosen = [setting for setting in SETTINGS if not arguments.only or setting.name in arguments.only]
    if arguments.list:
        print("\n".join(setting.name for setting in chosen))
        return 0
    files = [path.absolute() for path in arguments.tests or (ROOT / "tests").glob("test_*.py")]
    kept = KEPT / "parts" if arguments.tests else KEPT
    found = {}
    for setting in chosen:
        result = outcome(setting, files, kept, of_any_code=arguments.again)
        if result is not None:
            result = once_more(setting, result, kept) if arguments.again else result
            found[setting.name] = result
            counts = f"{result.passed} passed, {result.skipped} skipped, {len(result.failed)} failed"
            print("\n  ".join([f"{setting.name}: {counts}, {result.seconds:.0f} s", *result.failed]), flush=True)
    if not arguments.tests:
        write(found)
    return int(any(row.failed for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
