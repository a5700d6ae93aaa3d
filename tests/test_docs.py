"""The documentation holds: links lead somewhere, commands and code are ours, generated pages are current, and every snippet runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from snippets import PAGES, ROOT, anchors, blocks, commands, fragments, links, name

from quantkit.allocation.prediction.certificate import Certificate
from quantkit.cli.app import app
from quantkit.core.errors import QuantkitError
from quantkit.core.machine import read_machine
from quantkit.core.statistics import Verdict
from quantkit.runs.outcome import Gain, Refused
from quantkit.runs.result import Result
from quantkit.settings.config import load_config
from quantkit.verification.verify import Latency

GROUP: Any = typer.main.get_command(app)
THEIRS = {"mynets", "openvino", "sklearn", "tensorrt"}  # imports of snippets that need not be installed here


def parsed(words: list[str]) -> str:
    """What the command line says against `words`, without doing anything; empty if nothing."""
    if words[1].startswith("--"):
        return "" if words[1] in ("--version", "--help", "--install-completion", "--show-completion") else f"no option {words[1]}"
    if words[1] not in GROUP.commands:
        return f"no command {words[1]}"
    if "--help" in words:
        return ""
    try:
        GROUP.commands[words[1]].make_context(words[1], list(words[2:]))
    except Exception as error:  # noqa: BLE001 - click's own, under whatever name this typer has them
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_and_anchor_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", target):
            continue
        there = (page.parent / target).resolve() if target else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_parses(page: Path) -> None:
    wrong = [f"{' '.join(words)}: {parsed(words)}" for words in commands(page) if parsed(words)]
    told = [(words, parsed(words)) for words in fragments(page)]
    wrong += [f"{' '.join(words)}: {said}" for words, said in told if said and "Missing" not in said]

    assert wrong == []


def test_the_parser_bites() -> None:
    assert "max-dorp" in parsed(["quantkit", "allocate", "model.pt2", "--max-dorp", "1"])
    assert parsed(["quantkit", "alocate", "model.pt2"])
    assert parsed(["quantkit", "verify", "a", "b"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles_and_what_it_imports_is_there(page: Path) -> None:
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [str(node.module)]
            for module in modules:
                assert module.split(".")[0] in THEIRS or find_spec(module), f"no module {module}"
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("quantkit"):
                assert all(hasattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qk":
                assert hasattr(importlib.import_module("quantkit"), node.attr), f"no quantkit.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_are_read(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            (tmp_path / "quantkit.toml").write_text(block.text)
            assert read_machine(tmp_path / "quantkit.toml") if "macs_per_s" in block.text else load_config(tmp_path)


@pytest.mark.parametrize("tool", ["reference_pages", "results_page"])
def test_generated_pages_are_current(tool: str) -> None:
    page = importlib.import_module(f"tools.{tool}")
    if tool == "results_page":
        assert (page.RESULTS / "index.md").read_text() == page.page(), "run python tools/results_page.py"
    else:
        for file, write in page.PAGES.items():
            assert (page.REFERENCE / file).read_text() == write(), "run python tools/reference_pages.py"


def test_a_figure_without_a_command_is_refused(tmp_path: Path) -> None:
    page = importlib.import_module("tools.results_page")
    (tmp_path / "spine.json").write_text(json.dumps({"figures": {"made_up": 1}}))
    with pytest.raises(ValueError, match="made_up"):
        page.page(tmp_path)


def test_the_page_of_the_json_names_every_field_and_no_other() -> None:
    text = (ROOT / "docs" / "reference" / "result-json.md").read_text()
    written = set(re.findall(r'^            "(\w+)":', inspect.getsource(Result.to_json), flags=re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)`", text.split("**`verdict`**")[0], flags=re.MULTILINE)
    tables = {"verdict": Verdict, "latency": Latency, "gained": Gain, "refused": Refused}
    parts = {part: text.split(f"**`{part}`**")[1].split("\n\n**")[0].split("\n## ")[0] for part in tables}

    assert set(rows) == written
    for part, kind in tables.items():
        named = {name for row in re.findall(r"^\| (`.+?) \|", parts[part], flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
        assert named == {field.name for field in fields(kind)} - ({"items_to_decide"} if part == "verdict" else set()), part
    table = (ROOT / "docs" / "predictions.md").read_text()
    assert all(f"`{field.name}`" in table for field in fields(Certificate))


@pytest.mark.parametrize("command", sorted(GROUP.commands))
def test_every_command_has_an_example_that_parses(command: str) -> None:
    told = inspect.getdoc(next(c.callback for c in app.registered_commands if (c.name or c.callback.__name__) == command)) or ""
    examples = re.findall(rf"^quantkit {command}\b.*$", told, flags=re.MULTILINE)

    assert examples
    assert [parsed(example.split()) for example in examples] == [""] * len(examples)


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    package = importlib.import_module("quantkit")
    absent = [public for public in package.__all__ if not public.startswith("__") and not re.search(rf"\b{public}\b", page)]

    assert absent == []
    for path in re.findall(r"^::: ([\w.]+)", page, flags=re.MULTILINE):
        module, _, member = path.rpartition(".")
        assert find_spec(path) if module == "quantkit" else hasattr(importlib.import_module(module), member), path


def test_every_page_is_reached_from_the_index_and_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = {f"docs/{path}" for path in re.findall(r"[\w/-]+\.md", menu)}
    linked = {name((ROOT / "docs" / link.partition("#")[0]).resolve()) for link in links(ROOT / "docs" / "index.md")}
    there = {name(page) for page in PAGES} - {"README.md"}

    assert listed == there
    assert there - linked == {"docs/index.md"}


@pytest.mark.slow
def test_the_site_builds_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e .[docs]")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    fetched = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc="https?:|<link[^>]*\shref="https?:[^>]*stylesheet|url\(["']?https?:""")
    offences = [page.name for page in (tmp_path / "site").rglob("*.html") if fetched.search(page.read_text())]
    offences += [page.name for page in (tmp_path / "site").rglob("*.css") if fetched.search(page.read_text())]

    assert offences == []


def test_formulas_of_the_method_are_those_of_the_code() -> None:
    def plain(text: str) -> str:
        return re.sub(r"\s+", "", text)

    sources = plain("".join(path.read_text() for path in (ROOT / "quantkit").rglob("*.py")))
    page = (ROOT / "docs" / "explanation" / "method.md").read_text()
    formulas = [line for line in page.splitlines() if re.match(r"    (M\[|s_i|Ω_i|Tr\(|predicted\(x\)|T = )", line)]

    assert len(formulas) == 6
    assert [line for line in formulas if plain(line) not in sources] == []


def test_errors_that_pages_show_are_ours() -> None:
    with pytest.raises(QuantkitError) as shown:
        importlib.import_module("quantkit.loading").load_model("modle.pt2")

    assert str(shown.value).split(";")[0] in (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
