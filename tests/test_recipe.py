"""A recipe file gives a Recipe, or one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.core.errors import ConfigError, DataError
from quantkit.settings.recipe import load_recipe

HEAD = "from __future__ import annotations\nfrom quantkit.settings.recipe import Recipe\n"


def written(folder: Path, body: str) -> Path:
    path = folder / "mine.py"
    path.write_text(HEAD + body)
    return path


def test_a_recipe_file_is_run_and_may_define_classes(tmp_path: Path) -> None:
    body = """
from dataclasses import dataclass
@dataclass
class Network:
    width: int
def recipe():
    return Recipe(model=Network(3), data="images", metric="top5", max_drop="1%", schemes=("w8a8", "fp32"), calibration=64, name="mine")
"""
    recipe = load_recipe(written(tmp_path, body))

    said = {"metric": "top5", "max_drop": "1%", "schemes": ("w8a8", "fp32"), "calibration_items": 64}
    assert (recipe.model.width, recipe.name, recipe.data) == (3, "mine", "images")
    assert recipe.arguments == {"data": "images", **said}
    assert recipe.changed({"data": None, "keep": "99%", "name": "other"}).arguments == {**said, "keep": "99%"}


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, f"def recipe(): return Recipe(model={folder!r}, data=0)")
    recipes = [load_recipe(tmp_path / folder / "mine.py") for folder in ("a", "b")]

    assert [recipe.model for recipe in recipes] == ["a", "b"]


@pytest.mark.parametrize(
    "body, says",
    [
        ("", "has no function recipe"),
        ("recipe = 3", "has no function recipe"),
        ("def recipe(: pass", "raised SyntaxError"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("def recipe(): return [][1]", "raised IndexError"),
        ("def recipe(): return {}", "gave dict; wanted a quantkit.Recipe"),
        ("def recipe(): return Recipe(model=0, data=0, max_dorp=1)", "did you mean 'max_drop'"),
        ("def recipe(): return Recipe(data=0)", "missing 1 required keyword-only argument: 'model'"),
        ("def recipe(): return Recipe(model=0, data=0, gate=0)", "gate = 0; wanted an integer above 0"),
        ("def recipe(): return Recipe(model=0, data=0, target=8)", "target = 8; wanted a text"),
        ("def recipe(): return Recipe(model=0, data=0, schemes=8)", "schemes = 8; wanted texts"),
        ("def recipe(): return Recipe(model=0, data=0, fix={'head': 8})", "wanted texts such as .* or a table"),
        ("def recipe(): return Recipe(model=0, data=0, trust_pickle=True)", "unknown key of a recipe: 'trust_pickle'"),
        ("def recipe(): return Recipe(model=0, name=8)", "name = 8; wanted a text"),
    ],
    ids=[
        "empty", "no-function", "syntax", "import-raises", "raises", "other-type", "misspelt-key", "no-model", "count", "text", "texts",
        "pins", "pickle", "name",
    ],
)
def test_a_recipe_that_gives_none_says_why_in_one_line(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_recipe(written(tmp_path, body))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_that_is_no_python_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe file"):
        load_recipe(tmp_path / "absent.py")
    (tmp_path / "recipe.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not a Python file"):
        load_recipe(tmp_path / "recipe.txt")


def test_our_own_errors_keep_their_kind(tmp_path: Path) -> None:
    body = "from quantkit.core.errors import DataError\ndef recipe(): raise DataError('no folder x')"
    with pytest.raises(DataError, match="no folder x"):
        load_recipe(written(tmp_path, body))


@pytest.mark.parametrize("module", ["settings.recipe", "settings.config", "core.statistics", "core.metric"])
def test_this_floor_loads_without_torch(module: str) -> None:
    code = f"import sys, quantkit.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent.parent).returncode == 0
