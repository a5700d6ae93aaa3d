"""Which code a file of figures describes, as a fingerprint: the syntax of every source that the figures' tool reaches by its imports.

A source counts by its syntax tree without comments, docstrings, formatting and imports, and the sources of a figure are a set of such
hashes: a module that is only moved or renamed changes nothing. FIGURES is the one table of all files of figures and of what writes them.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sizes import own_imports

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
FOLDERS = ("quantkit", "tools", "tests", "recipes")
UNCOUNTED = frozenset({"tools/fingerprints.py", "tools/known.py", "tools/sizes.py"})  # they write figures down, and measure nothing
JOB = "quantkit/pipeline.py"
DIGITS = 8  # of a source's hash; the fingerprint has twice as many

Sources = Mapping[str, str]  # path below the repository → text


@dataclass(frozen=True)
class Figures:
    """A file of docs/results: the tool that writes it with its options, and what the tool runs besides what it imports.

    `runs` are files or whole folders. `kind` of processor: "any", "vnni" or "plain", where a file is of one of them only.
    """

    tool: str
    runs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    kind: str = "any"


def recipes(*names: str) -> tuple[str, ...]:
    return tuple(f"recipes/{name}.py" for name in names)


TARGETS = (JOB, *recipes("squeezenet1_1", "mobilenet_v2", "resnet44"), "tests/test_fuzz.py", "tests/test_zoo.py")
FIGURES: dict[str, Figures] = {
    "spine.json": Figures("tools/bench.py", (JOB, *recipes("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2"))),
    "targets.json": Figures("tools/bench_targets.py", TARGETS, kind="plain"),
    "targets-vnni.json": Figures("tools/bench_targets.py", TARGETS, ("--networks", "resnet44"), kind="vnni"),
    "certificates.json": Figures(
        "tools/bench_certificates.py", (JOB, *recipes("squeezenet1_1", "mobilenet_v2", "resnet44", "minilm_sst2"))
    ),
    "transformers.json": Figures("tools/bench_transformers.py", (JOB, *recipes("minilm_sst2", "minilm_stsb")), kind="vnni"),
    "transformers-avx2.json": Figures(
        "tools/bench_transformers.py", (JOB, *recipes("minilm_sst2", "minilm_stsb", "stories260k")), ("--parts", "recipes"), kind="plain"
    ),
    "costs.json": Figures("tools/bench_costs.py", recipes("mobilenet_v2", "resnet44")),  # tools/bench_solvers.py is a part of it
    "gate.json": Figures("tools/bench_gate.py", (JOB, "quantkit/gating", "quantkit/cli/demo.py")),
    "report.json": Figures("tools/bench_report.py", (JOB, "quantkit/report", *recipes("mobilenet_v2"))),
    "accuracy.json": Figures("tools/bench_accuracy.py", (JOB, *recipes("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2"))),
    "bytes.json": Figures("tools/bench_bytes.py", (JOB, *recipes("resnet44", "squeezenet1_1", "mobilenet_v2"))),
    "claims.json": Figures("tools/claims.py", options=("--write",)),
    "data-free.json": Figures("tools/bench_data_free.py", (JOB, *recipes("resnet20", "resnet44"))),
    "onnx.json": Figures("tools/bench_onnx.py", (JOB, *recipes("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2"))),
    "latency.json": Figures("tools/bench_devices.py", (JOB, "quantkit/runtimes/time_files.py", *recipes("resnet44", "squeezenet1_1"))),
    "timing.json": Figures("tools/bench_latency.py", (JOB, *recipes("resnet44", "squeezenet1_1", "mobilenet_v2", "minilm_sst2"))),
    "paper.json": Figures("tools/bench_paper.py", (JOB, *recipes("resnet44", "mobilenet_v2", "minilm_sst2"))),
    "scale.json": Figures("tools/bench_scale.py", recipes("resnet20", "resnet44"), kind="vnni"),
    "scale-avx2.json": Figures("tools/bench_scale.py", recipes("resnet20", "resnet44"), kind="plain"),
    "large.json": Figures("tools/bench_streamed.py", ("quantkit/streaming",)),
    "items.json": Figures("tools/bench_items.py", (JOB, *recipes("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2", "minilm_sst2"))),
    "sensitivity.json": Figures(
        "tools/bench_sensitivity.py", recipes("resnet20", "resnet44", "squeezenet1_1", "mobilenet_v2", "minilm_sst2")
    ),
}


@dataclass(frozen=True)
class Code:
    """The code that a file of figures describes. `commit` is the one that was checked out, or that wrote the file; empty if unknown."""

    commit: str
    hashes: frozenset[str]

    @property
    def fingerprint(self) -> str:
        """Of all hashes together."""
        return hashlib.sha256(" ".join(sorted(self.hashes)).encode()).hexdigest()[: 2 * DIGITS]

    def to_json(self) -> dict[str, str]:
        """As it stands beside the figures."""
        return {"fingerprint": self.fingerprint, "commit": self.commit, "sources": " ".join(sorted(self.hashes))}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Code:
        """The inverse of `to_json`."""
        return cls(data["commit"], frozenset(data["sources"].split()))

    def changed_percent(self, now: Code) -> int:
        """Of the sources of `now`, the share that these figures did not see, rounded up; at least 1 where anything differs."""
        if self.hashes == now.hashes:
            return 0
        return max(1, -(-100 * len(now.hashes - self.hashes) // len(now.hashes)))


@cache
def hash_of(text: str) -> str:
    """The hash of a source's syntax, without comments, docstrings, formatting, imports and names of our own modules in strings."""
    return hashlib.sha256("".join(_spelled(ast.parse(text))).encode()).hexdigest()[:DIGITS]


def _spelled(node: Any) -> Iterator[str]:
    """The same on every Python: what is empty is left out, as newer versions add empty fields."""
    if isinstance(node, ast.Constant):
        value = node.value
        yield "''" if isinstance(value, str) and re.fullmatch(r"quantkit(\.\w+)*", value) else repr(value)
    elif isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value not in (None, []) and name not in ("kind", "type_comment"):
                yield f" {name}="
                yield from _spelled(_without_words(value) if name == "body" and isinstance(value, list) else value)
        yield ")"
    elif isinstance(node, list):
        for part in node:
            if not isinstance(part, ast.Import | ast.ImportFrom):
                yield from _spelled(part)
                yield ","
    else:
        yield repr(node)


def _without_words(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements without the strings that stand alone: docstrings, of whatever they are."""

    def is_text(part: ast.stmt) -> bool:
        return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)

    return [part for part in body if not is_text(part)]


@cache
def sources_here() -> Sources:
    """The sources of this checkout."""
    found = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in found}


def sources_at(commit: str) -> Sources:
    """The sources as they were at a commit. Raises CalledProcessError where git does not have it."""
    listed = _git("ls-tree", "-r", "--name-only", commit, *FOLDERS).splitlines()
    return {path: _git("show", f"{commit}:{path}") for path in listed if path.endswith(".py")}


def reached(sources: Sources, figures: Figures, *, past: bool = False) -> list[str]:
    """The paths of the tool, of what it runs, and of all that these import. Raises KeyError for what is not there, but of the past."""
    names = {_module(path): path for path in sources}
    names |= {Path(path).stem: path for path in sources if path.startswith(("tools/", "tests/"))}  # siblings import each other so
    queue: list[str] = []
    for start in (figures.tool, *figures.runs):
        there = [path for path in sources if path == start or path.startswith(f"{start}/")]
        if not there and not past:
            raise KeyError(f"{figures.tool} runs {start}, which is not there: give its new path in FIGURES")
        queue += there
    seen: set[str] = set()
    while queue:
        path = queue.pop()
        if path not in seen and path not in UNCOUNTED:
            seen.add(path)
            queue += [names[name] for name in own_imports(ast.parse(sources[path]), set(names) - {"quantkit", _module(path)})]
    return sorted(seen)


def code_of(sources: Sources, figures: Figures, commit: str, *, past: bool = False) -> Code:
    """The code that figures of these sources describe."""
    return Code(commit, frozenset(hash_of(sources[path]) for path in reached(sources, figures, past=past)))


@cache
def code_here(name: str) -> Code:
    """The code of this checkout that the figures in docs/results/`name` would describe, were they measured now."""
    return code_of(sources_here(), FIGURES[name], commit_here())


def commit_here() -> str:
    """The commit that is checked out; empty where there is no git."""
    done = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_of(path: Path) -> str:
    """The commit that last changed a file's figures; empty where history does not say."""
    done = subprocess.run(
        ["git", "log", "--format=%h", "--abbrev=10", "-1", "--", path.relative_to(ROOT).as_posix()],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else ""


def _module(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
