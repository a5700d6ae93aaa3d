"""quantkit.toml and [tool.quantkit] say the same things in the same words, and nothing in others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantkit.core.errors import ConfigError
from quantkit.settings.config import load_config

FULL = """
data = "images"
calibration = "other/calibration.npz"
search = 300
gate = 200
metric = "top5"
max_drop = "0.5%"
keep = "99.9%"
target = "ort-cpu"
minimize = "bytes"
schemes = ["w8a8", "fp32"]
fix = ["head=fp32"]
exclude = "stem*"
sensitivity = "augmented"
search_method = "bisection"
arch = "package.module:network"
input_shape = "1x3x224x224"
seed = 0
split_seed = 4
batch_size = 16
memory_mb = 500
threads = 2
"""
PREPROCESSING = """resize = 256
crop = [224, 192]
mean = [0.5, 0.4, 0.3]
std = 0.2
scale = 1
"""


def written(folder: Path, text: str, name: str = "quantkit.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def wanted(folder: Path) -> dict[str, Any]:
    """What FULL and PREPROCESSING say, under the names of the command line."""
    return {
        "data": folder / "images",
        "calibration_data": folder / "other/calibration.npz",
        "search_items": 300,
        "gate_items": 200,
        "metric": "top5",
        "max_drop": "0.5%",
        "keep": "99.9%",
        "target": "ort-cpu",
        "minimize": "bytes",
        "schemes": ("w8a8", "fp32"),
        "fix": ("head=fp32",),
        "exclude": ("stem*",),
        "sensitivity": "augmented",
        "search": "bisection",
        "arch": "package.module:network",
        "input_shape": (1, 3, 224, 224),
        "seed": 0,
        "split_seed": 4,
        "batch_size": 16,
        "memory_mb": 500,
        "threads": 2,
        "resize": 256,
        "crop": (224, 192),
        "mean": (0.5, 0.4, 0.3),
        "std": 0.2,
        "scale": 1.0,
    }


def test_every_key_is_read_from_either_file(tmp_path: Path) -> None:
    written(tmp_path, "[tool.quantkit]" + FULL + "[tool.quantkit.preprocessing]\n" + PREPROCESSING, "pyproject.toml")
    assert load_config(tmp_path) == wanted(tmp_path)

    written(tmp_path, FULL + "[preprocessing]\n" + PREPROCESSING)
    assert load_config(tmp_path) == wanted(tmp_path)


@pytest.mark.parametrize("key", ["trust_pickle", "output", "run", "gate_data"])
def test_what_belongs_to_a_call_is_no_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key in .*: '{key}'"):
        load_config(written(tmp_path, f"{key} = true"))


def test_no_file_and_a_project_that_does_not_mention_us_give_none(tmp_path: Path) -> None:
    assert load_config(tmp_path) == {}
    assert load_config(written(tmp_path, "[tool.other]\nx = 1", "pyproject.toml")) == {}


def test_its_own_file_comes_before_the_projects(tmp_path: Path) -> None:
    written(tmp_path, "[tool.quantkit]\nseed = 1", "pyproject.toml")
    config = load_config(written(tmp_path, "seed = 2"))
    assert config == {"seed": 2}


def test_texts_and_numbers_may_be_written_as_on_the_command_line(tmp_path: Path) -> None:
    text = 'schemes = "w8a8, fp32"\nmax_drop = 1\ninput_shape = [1, 3, 8, 8]\n[preprocessing]\nresize = "224x200"\nmean = 0.5'
    config = load_config(written(tmp_path, text))

    shown = {"schemes": ("w8a8", "fp32"), "max_drop": 1.0, "input_shape": (1, 3, 8, 8)}
    assert config == {**shown, "resize": (224, 200), "mean": 0.5}


@pytest.mark.parametrize(
    "text, says",
    [
        ("max_dorp = 1", "did you mean 'max_drop'"),
        ("preprocesing = {}", "did you mean 'preprocessing'"),
        ("[preprocessing]\nresise = 1", "did you mean 'resize'"),
        ("preprocessing = 3", "wanted a table"),
        ("data = 3", "has data = 3; wanted a path"),
        ('gate = ""', "wanted a path, or a count"),
        ("gate = 0", "wanted a path, or a count"),
        ("metric = 1", "has metric = 1; wanted a text"),
        ("max_drop = true", "wanted a number, or a percentage"),
        ("schemes = []", "wanted texts"),
        ("schemes = [8]", "wanted texts"),
        ('input_shape = "3x"', "wanted sizes"),
        ("input_shape = [1, 0]", "wanted sizes"),
        ("seed = -1", "wanted an integer of at least 0"),
        ("seed = true", "wanted an integer"),
        ("threads = 1.5", "has threads = 1.5; wanted an integer above 0"),
        ("[preprocessing]\nresize = 0", "has resize = 0; wanted pixels"),
        ('[preprocessing]\nmean = ["a"]', "wanted a number, or one a channel"),
        ("[preprocessing]\nmean = []", "wanted a number, or one a channel"),
        ('[preprocessing]\nscale = "1"', "wanted a number"),
        ("this is not toml", "is not TOML"),
    ],
    ids=lambda text: text.replace("\n", " "),
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_project_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tool\.quantkit"):
        load_config(written(tmp_path, "[tool]\nquantkit = 3", "pyproject.toml"))
