"""The rules of the package: layers, ceilings, light imports, an honest public surface, nothing of one machine."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import sizes

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "quantkit").rglob("*.py"))
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "scipy", "numpy")

# Where another's code may raise anything at all, so that a broad except is the honest one. Elsewhere there is none.
BOUNDARIES = {
    "quantkit/cli/exit_codes.py": 1,  # the last line of defence: any error becomes an exit code
    "quantkit/loading/boundary.py": 1,  # torch's readers and the user's own network
    "quantkit/core/metrics.py": 1,  # the user's own metric
    "quantkit/settings/recipe.py": 1,  # the user's own recipe
    "quantkit/data/rows.py": 1,  # the user's own dataset
}


NAMED_BY_OTHERS = {
    ("quantkit/loading/from_onnx/network.py", "forward"),  # a file's inputs have names that only the file knows
    ("quantkit/cli/flags.py", "run"),  # both are given a signature that names the options of a table
    ("quantkit/settings/arguments.py", "call"),
    ("quantkit/streaming/skeleton.py", "forward"),  # transformers calls its blocks by names of its own
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the repository's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def tracked() -> list[Path]:
    """What git holds, or would hold after `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: nothing says which files are the project's")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def broad(node: ast.ExceptHandler) -> bool:
    """Whether a handler takes every error there is, and keeps it: one that tidies up and raises it again does not."""
    last = node.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}) for kind in caught)


def test_the_page_of_rules_is_what_its_tool_writes() -> None:
    assert run(str(ROOT / "tools" / "rules.py"), "--check").returncode == 0, "run python tools/rules.py"


def test_imports_go_down_the_layers_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed beside this interpreter: pip install -e .[test]")
    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


def test_no_file_and_no_function_is_above_its_ceiling() -> None:
    assert sizes.breaches(sizes.modules()) == []


def test_the_ceilings_bite() -> None:
    body = "\n".join("    x = 0" for _ in range(sizes.FUNCTION_CEILING + 1))
    tree = ast.parse(f'def f():\n    """Not counted."""\n{body}\n')
    long_module = sizes.Module("m", Path("m.py"), sizes.FILE_CEILING + 1, tuple(sizes.functions(tree)), frozenset(), 0)

    assert len(sizes.breaches([long_module])) == 2


@pytest.mark.parametrize("arguments", [None, [], ["--help"], ["allocate", "--help"], ["doctor"]], ids=str)
def test_the_command_line_loads_nothing_heavy(arguments: list[str] | None) -> None:
    call = "" if arguments is None else f"from quantkit.cli import main; main({arguments!r}); "
    shown = run("-c", f"import sys, quantkit; {call}print(sorted(set({HEAVY!r}) & set(sys.modules)))")

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "[]"


def test_the_fixture_loads_nothing_into_the_pytest_of_others() -> None:
    """Every pytest of an environment imports it before it measures coverage of anything."""
    loaded = "[name for name in sorted(sys.modules) if name.startswith('quantkit')]"
    shown = run("-c", f"import sys, quantkit.cli.pytest_plugin; print({loaded})")
    assert ast.literal_eval(shown.stdout) == ["quantkit", "quantkit.cli", "quantkit.cli.pytest_plugin"]


def test_the_surface_is_a_sorted_list_of_what_can_be_imported() -> None:
    package = importlib.import_module("quantkit")

    assert list(package.__all__) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_broad_excepts_stand_at_named_boundaries_and_are_counted() -> None:
    found = {}
    for path in SOURCES:
        count = sum(isinstance(node, ast.ExceptHandler) and broad(node) for node in ast.walk(ast.parse(path.read_text())))
        if count:
            found[path.relative_to(ROOT).as_posix()] = count

    assert found == {path: count for path, count in BOUNDARIES.items() if (ROOT / path).exists()}


def named(function: ast.FunctionDef) -> bool:
    """Whether a table names its keywords: by `Unpack`, or by the decorator that spells them out for the command line."""
    annotation = function.args.kwarg.annotation if function.args.kwarg else None
    decorators = [ast.unparse(each).partition("(")[0] for each in function.decorator_list]
    return (annotation is not None and ast.unparse(annotation).startswith("Unpack[")) or bool({"takes", "flags.takes"} & set(decorators))


TAKEN_ALONG = "quantkit/runtimes/time_files.py"  # a script for another device, which imports nothing of the package


def test_nothing_hides_in_keyword_bags_globals_or_prints() -> None:
    offences = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg and (name, node.name) not in NAMED_BY_OTHERS and not named(node):
                offences.append(f"{name}:{node.lineno} **{node.args.kwarg.arg}")
            if isinstance(node, ast.Global):
                offences.append(f"{name}:{node.lineno} global")
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if is_print and "quantkit/cli/" not in name and name != TAKEN_ALONG:
                offences.append(f"{name}:{node.lineno} print")

    assert offences == []


def test_no_file_knows_a_machine_or_a_registry_host() -> None:
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "index-" + "url"]
    pattern = re.compile("|".join([r"(?<![\w.~])/(?:work|home|Users|root|opt)/\w", *map(re.escape, hosts)]))
    offences = []
    for path in tracked():
        if path.suffix in {".py", ".toml", ".md", ".yml", ".txt", ".json", ".csv", ""}:
            lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
            offences += [f"{path.relative_to(ROOT)}:{number}" for number, line in enumerate(lines, 1) if pattern.search(line)]

    assert offences == []


def layout() -> str:
    """The diagram in README."""
    return (ROOT / "README.md").read_text().split("## Layout")[1].split("```")[1]


def test_the_readme_names_only_options_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = ("allocate", "verify", "lint", "export", "doctor", "gate", "report", "profile", "pick")
    helps = [run("-m", "quantkit", command, "--help").stdout for command in commands]
    options = {*re.findall(r"--[a-z][a-z0-9-]+", " ".join(helps))}

    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", readme)) <= options | {"--help"}


def test_the_layout_names_every_package_and_no_other() -> None:
    named = set(re.findall(r"(\w+)(?:/|\.py)", layout())) - {"quantkit"}
    there = {module.name.split(".")[1] for module in sizes.modules() if "." in module.name}

    assert named == there - {"__main__"}
