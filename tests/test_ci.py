"""Continuous integration: the action's own steps, the snippets of the page, and the pytest fixture, each run as far as can be here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_gating import check_junit, check_sarif, write_shard
from test_pipeline import allocate, hurry, remember

from quantkit.cli import main

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PAGE = (ROOT / "docs" / "ci-gate.md").read_text()
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository as the page's snippets see it."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        remember(patch)
        folder = tmp_path_factory.mktemp("project")
        result = allocate(folder / "run")
        for name in ("deploy", "data"):
            (folder / name).mkdir()
        shutil.copy(result.files.onnx, folder / "deploy" / "model.int8.onnx")
        shutil.copy(result.files.float_onnx, folder / "deploy" / "model.onnx")
        write_shard(folder / "data" / "gate.npz")
        yield folder


@pytest.fixture
def home(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(project, tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


# The composite action.


def step(name: str) -> Mapping[str, Any]:
    return next(row for row in ACTION["runs"]["steps"] if row["name"] == name)


def environment(**given: str) -> dict[str, str]:
    """The step's variables as the runner fills them: each is one input, or its default."""
    filled = {}
    for variable, text in step("Gate")["env"].items():
        (name,) = re.fullmatch(r"\$\{\{ inputs\.([a-z0-9-]+) \}\}", text).groups()
        filled[variable] = given.get(name.replace("-", "_"), ACTION["inputs"][name].get("default", ""))
    return filled


def run_step(folder: Path, interpreter: str, **given: str) -> tuple[int, str, dict[str, str]]:
    """The exit code, the job's summary and the outputs of the action's gate step, run as the runner runs it."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    python = bin_folder / "python"
    python.write_text(f"#!/bin/bash\n{interpreter}\n")
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    files = {name: folder / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    variables = {
        **os.environ, **environment(**given), **{name: str(path) for name, path in files.items()}, "PYTHONPATH": str(ROOT),
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
    }  # fmt: skip
    script = folder / "step.sh"
    script.write_text(step("Gate")["run"])
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    ran = subprocess.run(bash, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return ran.returncode, files["GITHUB_STEP_SUMMARY"].read_text(), outputs


def test_the_action_is_a_composite_one_whose_parts_fit_together() -> None:
    ids = {row.get("id") for row in ACTION["runs"]["steps"]}
    used = set(re.findall(r"inputs\.([a-z0-9-]+)", str(ACTION["runs"])))

    assert ACTION["runs"]["using"] == "composite" and ACTION["name"] and ACTION["description"]
    assert used == set(ACTION["inputs"]) and all(row["description"] for row in ACTION["inputs"].values())
    assert all(row["shell"] == "bash" for row in ACTION["runs"]["steps"])  # composite steps must name theirs
    for output in ACTION["outputs"].values():
        (owner,) = re.findall(r"steps\.(\w+)\.outputs", output["value"])
        assert owner in ids
    assert "${{" not in step("Gate")["run"]  # text of inputs is never run


@pytest.mark.slow
def test_the_action_s_step_gates_a_file_and_writes_the_summary(home: Path) -> None:
    given = {"file": "deploy/model.int8.onnx", "float": "deploy/model.onnx", "data": "data/gate.npz", "max_drop": "50"}
    code, summary, outputs = run_step(home, f'exec {shlex.quote(sys.executable)} "$@"', **given)

    assert (code, outputs) == (0, {"kept": "true", "exit-code": "0"})
    assert summary.startswith("### ✅ Kept: `deploy/model.int8.onnx`\n") and "| max-drop |" in summary
    check_junit((home / "quantkit-gate.xml").read_text(), tests=1, failures=[])


@pytest.mark.parametrize(("code", "kept"), [(0, "true"), (1, "false"), (2, ""), (3, "")])
def test_the_action_s_step_hands_on_exit_code_arguments_and_summary(home: Path, code: int, kept: str) -> None:
    """With an interpreter that keeps its arguments, writes a report where there is an answer, and exits as told."""
    loop = 'for word in "$@"; do case "$word" in --markdown=*) echo "the report" > "${word#--markdown=}";; esac; done\n'
    writes = loop if code < 2 else ""
    stub = f'printf "%s\\n" "$@" > asked\n{writes}exit {code}'
    given = {"file": "-odd $(touch broken) name.onnx", "max_latency_ratio": "0.6", "require_int8": "95%", "undecided": "fail; false"}
    answer, summary, outputs = run_step(home, stub, **given)
    asked = (home / "asked").read_text().splitlines()

    assert (answer, outputs) == (code, {"kept": kept, "exit-code": str(code)})
    assert ("the report" in summary) == (code < 2) and (f"exit code {code}" in summary) == (code >= 2)
    assert asked[:3] == ["-m", "quantkit", "gate"] and asked[-2:] == ["--", given["file"]]
    wanted = {"--max-latency-ratio=0.6", "--require-int8=95%", "--undecided=fail; false", "--junit=quantkit-gate.xml"}
    assert wanted < set(asked) and not any(word.startswith("--float") for word in asked) and not (home / "broken").exists()


def test_every_option_that_the_action_passes_is_one_of_the_gate_s(capsys: pytest.CaptureFixture[str]) -> None:
    main(["gate", "--help"])
    known = set(re.findall(r"--([a-z0-9-]+)", capsys.readouterr().out))
    (passed,) = re.findall(r"for option in (.*?); do", step("Gate")["run"])

    assert set(passed.split()) <= known
    assert {name for name in ACTION["inputs"] if name not in ("file", "install")} == set(passed.split())


# The page's snippets.


def test_the_github_snippet_gives_the_action_what_it_takes() -> None:
    (job,) = SNIPPETS[0]["jobs"].values()
    (used,) = [row for row in job["steps"] if "quantkit@" in row.get("uses", "")]

    assert set(used["with"]) <= set(ACTION["inputs"]) and all(isinstance(value, str) for value in used["with"].values())
    (upload,) = [row for row in job["steps"] if "upload-sarif" in row.get("uses", "")]
    assert upload["with"]["sarif_file"] == ACTION["inputs"]["sarif"]["default"] and upload["if"] == "always()"


def test_the_gitlab_snippet_runs_and_leaves_the_reports_that_it_names(home: Path) -> None:
    job = SNIPPETS[1]["gate"]
    (line,) = job["script"]
    name, *arguments = shlex.split(line)

    code = main(arguments)
    assert name == "quantkit" and code in (0, 1)
    check_junit((home / job["artifacts"]["reports"]["junit"]).read_text(), tests=1, failures=["max-drop"] * code)
    assert all((home / path).is_file() for path in job["artifacts"]["paths"])


def test_the_pre_commit_snippet_names_a_hook_that_there_is_and_runs(home: Path) -> None:
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    (wanted,) = SNIPPETS[2]["repos"][0]["hooks"]
    hook = hooks[wanted["id"]]

    assert hook["language"] == "python" and hook["pass_filenames"] is False
    for name, meant in {"deploy/model.int8.onnx": True, "deploy/quantkit.lock.json": True, "README.md": False}.items():
        assert bool(re.search(hook["files"], name)) == meant
    assert main([*hook["entry"].split()[1:], *wanted["args"]]) in (0, 1)


def test_the_commands_of_the_page_are_commands(home: Path) -> None:
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    quantkit gate")]
    for line in lines[:1]:
        assert main(shlex.split(line)[1:]) in (0, 1)
    shutil.copy(home / "run" / "quantkit.lock.json", home / "deploy")

    assert len(lines) == 2 and main(shlex.split(f"{lines[1]} --lock deploy/quantkit.lock.json")[1:]) == 0


def test_a_sarif_file_of_the_command_is_what_code_scanning_takes(home: Path) -> None:
    arguments = ["gate", "deploy/model.int8.onnx", "--max-bytes", "10", "--sarif", "gate.sarif"]
    assert main(arguments) == 1
    sarif = json.loads((home / "gate.sarif").read_text())
    check_sarif(sarif, {"max-bytes": "error"})
    assert sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "deploy/model.int8.onnx"


# pytest.


def test_the_fixture_passes_what_is_kept_and_names_what_is_not(home: Path, pytester: pytest.Pytester) -> None:
    (block,) = re.findall(r"```python\n(def test.*?)```", PAGE, re.DOTALL)
    pytester.makepyfile(
        block.replace('"deploy', f'"{home}/deploy').replace('"data', f'"{home}/data').replace("max_drop=0.5", "max_drop=50")
        + f"""
def test_broken(assert_keeps):
    assert_keeps("{home}/deploy/model.int8.onnx", max_bytes=10)

def test_answer(assert_keeps):
    assert assert_keeps("{home}/deploy/model.int8.onnx", max_bytes="1GB").kept
"""
    )
    installed = entry_points(group="pytest11", name="quantkit")  # is loaded by itself; not so in an older installation of this folder
    ran = pytester.runpytest_inprocess(*([] if installed else ["-p", "quantkit.cli.pytest_plugin"]), "-p", "no:cacheprovider")

    ran.assert_outcomes(passed=2, failed=1)
    ran.stdout.fnmatch_lines(["*does not meet its conditions*", "*max-bytes: broken: *at most 10 B allowed*"])
    ran.stdout.no_fnmatch_line("*pytest_plugin.py*Error*")


def test_the_plugin_is_an_entry_point_and_loads_nothing_heavy() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    code = "import sys, quantkit.cli.pytest_plugin; print('torch' in sys.modules)"
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths, check=True)

    assert '[project.entry-points.pytest11]\nquantkit = "quantkit.cli.pytest_plugin"' in text and ran.stdout == "False\n"
