"""Loading: every kind of file, and every way in which one could run code or be broken."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from quantkit.errors import ModelError
from quantkit.loading import LoadedModel, check_finite, from_module, load_model, parse_input_shape, to_program
from quantkit.loading.pickled import admitted
from torch import nn
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Branchy(nn.Module):
    """A class that no allow-list knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Payload:
    """Unpickles to a call of os.mkdir(path): a folder that appears is code that ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def saved(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def export(model: nn.Module, path: Path, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (EXAMPLE,), dynamic_shapes=shapes, strict=False), path)
    return path


def members(path: Path) -> dict[str, bytes]:
    reader = PT2ArchiveReader(str(path))
    return {name: reader.read_bytes(name) for name in reader.get_file_names()}


def write_archive(path: Path, content: dict[str, bytes]) -> Path:
    with PT2ArchiveWriter(str(path)) as writer:
        for name, data in content.items():
            if not name.startswith(".data") and name != "byteorder":  # the writer adds its own
                writer.write_bytes(name, data)
    return path


def outputs(loaded: LoadedModel, x: torch.Tensor = EXAMPLE) -> torch.Tensor:
    runnable = loaded.module if loaded.program is None else loaded.program.module(check_guards=False)
    assert runnable is not None
    with torch.no_grad():
        result: torch.Tensor = runnable(x)
    return result


def refused(path: Path | str, *words: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(path), **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# torch.export archives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
def test_archive_loads_with_its_outputs_and_digest(tmp_path: Path, dynamic: bool) -> None:
    model = small_network().eval()
    path = export(model, tmp_path / "net.pt2", dynamic)
    loaded = load_model(str(path))
    assert loaded.module is None and loaded.name == "net" and loaded.source == str(path)
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.testing.assert_close(outputs(loaded), model(EXAMPLE))


def test_archive_is_known_by_content_not_extension(tmp_path: Path) -> None:
    path = export(small_network().eval(), tmp_path / "net.pt2").rename(tmp_path / "net.bin")
    assert load_model(str(path)).program is not None


def config_with(content: dict[str, bytes], folder: str, name: str, **changes: Any) -> bytes:
    """The weights or constants configuration with one more entry, or `changes` in the first one."""
    config = json.loads(content[f"data/{folder}/model_{folder}_config.json"])
    entry = next(iter(json.loads(content["data/weights/model_weights_config.json"])["config"].values()))
    config["config"][name] = {**config["config"].get(name, entry), **changes}
    return json.dumps(config).encode()


def poison_sample_inputs(content: dict[str, bytes], marker: Path) -> None:
    content["data/sample_inputs/model.pt"] = saved(Payload(marker))


def poison_weight(content: dict[str, bytes], marker: Path) -> None:
    content["data/weights/model_weights_config.json"] = config_with(content, "weights", "0.weight", use_pickle=True)
    content["data/weights/weight_0"] = saved(Payload(marker))


def poison_weights_of_older_writers(content: dict[str, bytes], marker: Path) -> None:
    content["data/weights/model.pt"] = saved(Payload(marker))


def poison_constant(content: dict[str, bytes], marker: Path) -> None:
    content["data/constants/model_constants_config.json"] = config_with(content, "constants", "c", path_name="tensor_0", use_pickle=True)
    content["data/constants/tensor_0"] = saved(Payload(marker))


def poison_constant_declared_twice(content: dict[str, bytes], marker: Path) -> None:
    poison_constant(content, marker)
    config = json.loads(content["data/constants/model_constants_config.json"])["config"]
    config["d"] = {**config["c"], "use_pickle": False}
    content["data/constants/model_constants_config.json"] = json.dumps({"config": config}).encode()


def poison_constants_of_older_writers(content: dict[str, bytes], marker: Path) -> None:
    content["data/constants/model.pt"] = saved(Payload(marker))


def poison_opaque_object(content: dict[str, bytes], marker: Path) -> None:
    content["data/constants/model_constants_config.json"] = config_with(content, "constants", "c", path_name="opaque_obj_0", use_pickle=True)
    content["data/constants/opaque_obj_0"] = pickle.dumps(Payload(marker))


def poison_second_model(content: dict[str, bytes], marker: Path) -> None:
    for name in list(content):
        if "model" in name.rpartition("/")[2]:
            content[name.replace("/model", "/other")] = content[name]
    content["data/sample_inputs/other.pt"] = saved(Payload(marker))
    content["models/other.json"] = content["models/model.json"]


def poison_size(content: dict[str, bytes], marker: Path) -> None:
    text = content["models/model.json"].decode()
    call = json.dumps(f"Integer(__import__('os').mkdir({str(marker)!r}) or 3)")
    content["models/model.json"] = re.sub(r'"Symbol[^"]*"', lambda _: call, text).encode()


def poison_name(content: dict[str, bytes], marker: Path) -> None:
    """The input's name becomes a parameter with a default in the code that fx generates."""
    text = content["models/model.json"].decode()
    name = json.dumps(f"x=__import__('os').mkdir({str(marker)!r})")
    text = text.replace('"as_tensor": {"name": "input"}', f'"as_tensor": {{"name": {name}}}').replace('"input": {', f"{name}: {{")
    content["models/model.json"] = text.encode()


def poison_guards(content: dict[str, bytes], marker: Path) -> None:
    program = json.loads(content["models/model.json"])
    program["guards_code"] = [f"__import__('os').mkdir({str(marker)!r}) is None"]
    content["models/model.json"] = json.dumps(program).encode()


def poison_target(content: dict[str, bytes], marker: Path) -> None:
    """A node that calls torch.os.mkdir, between the input and what reads it."""
    program = json.loads(content["models/model.json"])
    nodes = program["graph_module"]["graph"]["nodes"]
    call = {**copy.deepcopy(nodes[0]), "target": "torch.os.mkdir", "name": "call", "outputs": [{"as_none": True}]}
    call["inputs"] = [{"name": "", "arg": {"as_string": str(marker)}, "kind": 1}]
    nodes.insert(0, call)
    program["verifiers"] = []
    content["models/model.json"] = json.dumps(program).encode()


NEW_FORMAT = {
    "sample inputs": poison_sample_inputs,
    "weight": poison_weight,
    "weights, older writer": poison_weights_of_older_writers,
    "constant": poison_constant,
    "constant declared twice": poison_constant_declared_twice,
    "constants, older writer": poison_constants_of_older_writers,
    "opaque object": poison_opaque_object,
    "second model": poison_second_model,
    "size": poison_size,
    "node name": poison_name,
    "guard": poison_guards,
    "target": poison_target,
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return members(export(small_network().eval(), tmp_path_factory.mktemp("clean") / "net.pt2"))


@pytest.mark.parametrize("member", NEW_FORMAT)
def test_archive_member_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, clean: dict[str, bytes], member: str) -> None:
    content, marker = dict(clean), tmp_path / "it_ran"
    NEW_FORMAT[member](content, marker)
    path = write_archive(tmp_path / "net.pt2", content)
    refused(path, "--trust-pickle")
    assert not marker.exists()
