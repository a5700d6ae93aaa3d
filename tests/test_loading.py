"""Loading, but for archives: every other kind of file, and every way in which one could run code or be broken."""

from __future__ import annotations

import copy
import hashlib
import importlib
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
from loading_files import EXAMPLE, Payload, export, outputs, refused, small_network
from torch import nn

from quantkit.core.errors import ModelError
from quantkit.loading import check_finite, from_module, load_model, parse_input_shape, to_program
from quantkit.loading.pickled import admitted


class Branchy(nn.Module):
    """A class that no allow-list knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


# pickled modules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_torchvision_module_loads_without_trust(tmp_path: Path, name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed: no real networks to pickle")
    model = getattr(models, name)(num_classes=7)
    torch.save(model, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"))
    assert type(loaded.module) is type(model) and not loaded.module.training
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(outputs(loaded, x), model.eval()(x))


def test_module_of_torch_nn_loads_and_its_digest_is_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "anything.weird"
    torch.save(small_network(), path)
    loaded = load_model(str(path))
    assert isinstance(loaded.module, nn.Sequential) and loaded.name == "anything"
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=["zip", "legacy", "protocol 4"]
)
def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, options: dict[str, Any]) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / "net.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Payload(marker)}, path, **options)
    refused(path, "could run code", "mkdir", "--trust-pickle")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload is dead, so this test proves nothing"


def test_plain_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(Payload(marker)))
    refused(path, "mkdir", "--trust-pickle")
    assert not marker.exists()


def test_refusal_names_user_classes_and_functions(tmp_path: Path) -> None:
    model = Branchy()
    model.activation = torch.nn.functional.relu  # type: ignore[assignment]
    torch.save(model, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "Branchy", "torch.nn.functional.relu", "--trust-pickle")


def test_nothing_that_a_pickle_names_is_imported_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs_on_import.py").write_text("import pathlib; pathlib.Path('it_ran').touch()\nclass Net: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert admitted("runs_on_import.Net") is None
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.functional.relu",
        "torch.nn.modules.module.torch",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.init.kaiming_normal_",
        "torch.nn.no_such_module.Layer",
        "torch.nn.modules.conv.NoSuchLayer",
        "torch.nnx.Linear",
        "torch.fx.graph_module.GraphModule",
        "torch.jit._script.ScriptModule",
        "builtins.eval",
        "functools.partial",
        "transformers_modules.net.Net",
        "relu",
    ],
)
def test_allow_list_leaves_out(name: str) -> None:
    assert admitted(name) is None


def test_allow_list_leaves_out_modules_that_are_made_of_source_text() -> None:
    extraction = pytest.importorskip(
        "torchvision.models.feature_extraction", reason="torchvision is not installed: it has the one such class"
    )
    assert issubclass(extraction.DualGraphModule, nn.Module)
    assert admitted("torchvision.models.feature_extraction.DualGraphModule") is None


@pytest.mark.parametrize(
    ("name", "found"),
    [("torch.nn.modules.conv.Conv2d", nn.Conv2d), ("torch.nn.Linear", nn.Linear), ("torch.nn.modules.module.Module", nn.Module)],
)
def test_allow_list_admits_module_classes(name: str, found: type) -> None:
    assert admitted(name) is found


def test_certifyed_module_of_a_user_class_loads_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_net.py").write_text(
        "import torch\nclass TheirNet(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(4, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load_model("their_net:TheirNet").module
    torch.save(model, tmp_path / "net.pt")
    sys.modules.pop("their_net")
    refused("net.pt", "their_net.TheirNet")
    loaded = load_model("net.pt", trust_pickle=True)
    assert type(loaded.module).__name__ == "TheirNet"


def test_certify_reports_a_class_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone_net.py").write_text("import torch\nclass Gone(torch.nn.Linear):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(importlib.import_module("gone_net").Gone(2, 2), "net.pt")
    (tmp_path / "gone_net.py").unlink()
    sys.modules.pop("gone_net")
    refused("net.pt", "gone_net", trust_pickle=True)


def test_file_that_holds_no_network_says_what_it_holds(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "holds a list")


def test_module_nested_in_a_checkpoint_loads(tmp_path: Path) -> None:
    torch.save({"model": small_network(), "epoch": 3}, tmp_path / "net.pt")
    assert isinstance(load_model(str(tmp_path / "net.pt")).module, nn.Sequential)


def test_module_in_training_mode_comes_in_eval_mode(tmp_path: Path) -> None:
    torch.save(small_network().train(), tmp_path / "net.pt")
    module = load_model(str(tmp_path / "net.pt")).module
    assert module is not None and not any(part.training for part in module.modules())


# state dicts and --arch -----------------------------------------------------------------------------------------------

ARCHITECTURES = """
from torch.nn import BatchNorm2d, Conv2d, Flatten, Linear, ReLU, Sequential
import torch
print("noise on stdout")
def small():
    return Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU(), Flatten(), Linear(144, 5))
def wide():
    return Sequential(Conv2d(3, 8, 3), ReLU(), Conv2d(8, 8, 3))
def raises():
    raise ValueError("no weights\\nsecond line")
def leaves():
    raise SystemExit(3)
def needs(depth, width=1):
    return small()
def text():
    return "net"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with architectures.py and a state dict of `small` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "architectures", raising=False)
    (tmp_path / "architectures.py").write_text(ARCHITECTURES)
    torch.save(small_network(7).state_dict(), tmp_path / "weights.pt")
    return tmp_path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
        lambda state: {"model_state_dict": state, "loss": 0.1},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["plain", "state_dict", "model_state_dict", "torch 0.3", "model", "DataParallel", "compiled"],
)
def test_state_dict_fills_the_architecture(folder: Path, wrap: Callable[[dict[str, torch.Tensor]], object]) -> None:
    expected = small_network(7)
    torch.save(wrap(dict(expected.state_dict())), "weights.pt")
    loaded = load_model("weights.pt", arch="architectures:small")
    torch.testing.assert_close(outputs(loaded), expected.eval()(EXAMPLE))


def test_safetensors_fill_the_architecture(folder: Path) -> None:
    expected = small_network(7)
    safetensors.torch.save_file(expected.state_dict(), folder / "weights.bin")
    torch.testing.assert_close(outputs(load_model("weights.bin", arch="architectures:small")), expected.eval()(EXAMPLE))


def test_prefix_stays_where_it_belongs(folder: Path) -> None:
    lines = ["import torch", "class Net(torch.nn.Module):", "    def __init__(self):", "        super().__init__()"]
    (folder / "wrapped_net.py").write_text("\n".join([*lines, "        self.module = torch.nn.Linear(4, 2)"]))
    torch.save({"module.weight": torch.ones(2, 4), "module.bias": torch.zeros(2)}, "weights.pt")
    module = load_model("weights.pt", arch="wrapped_net:Net").module
    assert module is not None and torch.equal(module.state_dict()["module.weight"], torch.ones(2, 4))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_state_dict_without_arch_says_what_to_pass(folder: Path, kind: str) -> None:
    safetensors.torch.save_file(small_network().state_dict(), folder / "weights.safetensors")
    refused(f"weights.{kind}", "state dict", "--arch package.module:function")


def test_architecture_that_does_not_match_names_a_few_tensors(folder: Path) -> None:
    message = str(
        refused(
            "weights.pt",
            "architectures:wide",
            "missing",
            "2.weight",
            "unexpected",
            "1.weight",
            "0.weight (4, 3, 3, 3), not (8, 3, 3, 3)",
            arch="architectures:wide",
        )
    )
    assert len(message) < 600


def test_arch_beside_a_whole_network_is_refused(folder: Path) -> None:
    torch.save(small_network(), "net.pt")
    export(small_network().eval(), folder / "net.pt2")
    for source in ("net.pt", "net.pt2", "architectures:small"):
        refused(source, "drop --arch", arch="architectures:small")


def test_digest_of_a_state_dict_knows_its_architecture(folder: Path) -> None:
    (folder / "other_net.py").write_text("from architectures import small\n")
    digests = {load_model("weights.pt", arch=arch).digest for arch in ("architectures:small", "other_net:small")}
    assert len(digests) == 2


# package.module:function ----------------------------------------------------------------------------------------------


def test_function_in_the_current_directory_builds_the_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.path)
    torch.manual_seed(0)
    loaded = load_model("architectures:small")
    assert sys.path == before
    assert (loaded.name, loaded.source) == ("small", "architectures:small")
    assert capsys.readouterr().out == "", "stdout is for results"
    torch.testing.assert_close(outputs(loaded), small_network(0).eval()(EXAMPLE))


def test_digest_of_a_function_is_of_its_weights(folder: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        digests.append(load_model("architectures:small").digest)
    assert digests[0] == digests[1] != digests[2]


def test_path_is_restored_after_a_failure_too(folder: Path) -> None:
    before = list(sys.path)
    refused("architectures:raises")
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("architecture:small", ["unknown module 'architecture'", "did you mean 'architectures'?"]),
        ("torch.nnn:Linear", ["unknown module 'torch.nnn'", "'torch.nn'"]),
        ("architectures:smal", ["unknown function in architectures 'smal'", "did you mean 'small'?"]),
        ("qqqqzzzz:f", ["unknown module 'qqqqzzzz'", "check the name"]),
        ("architectures:torch", ["is a module", "wrap it"]),
        ("architectures:raises", ["architectures:raises fails: ValueError: no weights;"]),
        ("architectures:leaves", ["SystemExit: 3"]),
        ("architectures:needs", ["needs arguments: depth;"]),
        ("architectures:text", ["returns a str", "torch.nn.Module"]),
        ("broken_net:f", ["importing broken_net fails", "no_such_dependency"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_function_that_gives_no_network_is_explained(folder: Path, reference: str, words: list[str]) -> None:
    (folder / "broken_net.py").write_text("import no_such_dependency\n")
    refused(reference, *words)


def test_reference_that_is_no_reference_as_arch_is_refused(folder: Path) -> None:
    refused("weights.pt", "'small'", "package.module:function", arch="small")


# TorchScript ----------------------------------------------------------------------------------------------------------


def save_script(model: nn.Module, path: Path, script: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (scripted(model) if script else torch.jit.trace(model, EXAMPLE)).save(str(path))
    return path


def scripted(model: nn.Module) -> torch.jit.ScriptModule:
    """torch knows its own functions by `id`, also those that are gone: an attribute of a module that gets such an id is taken for one.

    Once in thousands of tests; what pickle makes of it has other ids while the first one is held (a deep copy shares its tuples).
    """
    try:
        return torch.jit.script(model)
    except RuntimeError as error:
        if "builtin cannot be used as a value" not in str(error):
            raise
    return torch.jit.script(pickle.loads(pickle.dumps(model)))


def test_a_module_whose_attribute_has_the_id_of_a_lost_function_is_scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_network().eval()
    convolution = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    table = importlib.import_module("torch.jit._builtins")._get_builtin_table()
    monkeypatch.setitem(table, id(convolution._reversed_padding_repeated_twice), "aten::gone")
    tried, script = [], torch.jit.script
    monkeypatch.setattr(torch.jit, "script", lambda network, **given: tried.append(network) or script(network, **given))
    torch.testing.assert_close(scripted(model)(EXAMPLE), model(EXAMPLE))
    assert tried[0] is model and sum(type(one) is type(model) for one in tried) == 2, "the first was mistaken"


@pytest.mark.parametrize("script", [False, True], ids=["traced", "scripted"])
def test_torchscript_converts_once_there_is_an_example(tmp_path: Path, script: bool) -> None:
    model = small_network().eval()
    loaded = load_model(str(save_script(model, tmp_path / "net.pt", script)))
    assert isinstance(loaded.module, torch.jit.ScriptModule)
    converted = to_program(loaded, {"0": EXAMPLE})
    assert converted.module is None and converted.digest == loaded.digest
    torch.testing.assert_close(outputs(converted), model(EXAMPLE))


class Product(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ right


def test_torchscript_inputs_go_by_name(tmp_path: Path) -> None:
    loaded = load_model(str(save_script(Product(), tmp_path / "net.pt", script=True)))
    program = to_program(loaded, {"right": torch.ones(3, 4), "left": torch.ones(2, 3)}).program
    assert program is not None
    assert program.module(check_guards=False)(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert to_program(loaded, {"0": torch.ones(2, 3), "1": torch.ones(3, 4)}).program is not None


def test_what_is_no_torchscript_stays_as_it_is() -> None:
    loaded = from_module(small_network())
    assert to_program(loaded, {"0": EXAMPLE}) is loaded


class Loops(nn.Module):
    def forward(self, x: torch.Tensor) -> list[str]:
        return [str(i) for i in range(x.size(0))]


def test_torchscript_that_does_not_convert_says_to_save_it_otherwise(tmp_path: Path) -> None:
    loaded = load_model(str(save_script(Loops(), tmp_path / "net.pt", script=True)))
    with pytest.raises(ModelError, match=r"does not convert.*re-save it"):
        to_program(loaded, {"0": EXAMPLE})


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "it_ran")
        return x


def test_torchscript_that_touches_files_is_refused_unless_trusted(tmp_path: Path) -> None:
    path = save_script(Writes(), tmp_path / "net.pt", script=True)
    refused(path, "save()", "--trust-pickle")
    assert load_model(str(path), trust_pickle=True).module is not None


# broken and foreign files ---------------------------------------------------------------------------------------------


def write_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.ones(2))


def write_bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("empty.pt", write_bytes(b""), ["is empty"]),
        ("net.onnx", write_bytes(b"whatever"), ["not a complete ONNX file"]),
        ("net.bin", write_bytes(b"\x08\x0a\x12\x07pytorch"), ["holds no network"]),
        ("net.pt", write_npz, ["NumPy .npz", "--data"]),
        ("net.py", write_bytes(b"def recipe(): ..."), ["Python file", "recipe()"]),
        ("net.pt", write_bytes(b"hello world, no model"), ["not a model file", "hello"]),
        ("folder", Path.mkdir, ["is a directory", "name the file"]),
        ("net.safetensors", write_bytes(b"\xff" * 20), ["no safetensors"]),
        ("net.pt", write_bytes(b"\x80\x02"), ["net.pt"]),
    ],
    ids=["empty", "onnx by name", "onnx by content", "npz", "recipe", "text", "directory", "safetensors", "pickle of two bytes"],
)
def test_file_that_is_no_torch_model_gets_a_clear_answer(
    tmp_path: Path, name: str, write: Callable[[Path], object], words: list[str]
) -> None:
    write(tmp_path / name)
    refused(tmp_path / name, *words)


def test_zip_without_a_model_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "net.zip", "holds no model")


def test_a_transformers_folder_of_no_known_architecture_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "names the architecture nothing", "from_pretrained", "package.module:function")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "resnet18.pt2").write_bytes(b"x")
    refused(tmp_path / "resnet18.pt", "no file", "did you mean", "resnet18.pt2")
    refused(tmp_path / "nowhere" / "net.pt", "no folder")


@pytest.mark.parametrize("kind", ["pt2", "pt", "torchscript", "safetensors"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_truncated_file_is_refused_in_one_line(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"net.{kind}"
    model = small_network().eval()
    if kind == "pt2":
        export(model, path)
    elif kind == "torchscript":
        save_script(model, path)
    elif kind == "safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "truncated")


def test_damage_inside_a_whole_zip_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(small_network(), path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if not name.endswith("data/0"):
                archive.writestr(name, data)
    refused(path, "cannot read net.pt")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt"
    torch.save(small_network(), path)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "cannot be read: Permission denied", "permissions")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipe_is_refused_without_waiting_on_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "not a regular file")


# weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    model = small_network()
    with torch.no_grad():
        model[0].weight[1, 2, 0, 0] = value
    torch.save(model, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "'0.weight'", "1 NaN or infinite of 108")
    with pytest.raises(ModelError, match=re.escape("'0.weight'")):
        from_module(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_buffer_that_is_not_finite_is_refused_by_name(value: float) -> None:
    model = small_network()
    model[1].running_var[0] = value
    with pytest.raises(ModelError, match=re.escape("'1.running_var'")):
        from_module(model)


def test_buffer_may_hold_minus_infinity_as_attention_masks_do() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert from_module(model).module is not None


def test_integers_and_narrow_floats_are_looked_at_as_they_should() -> None:
    check_finite({"steps": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16), "eighth": torch.ones(2).to(torch.float8_e4m3fn)})
    with pytest.raises(ModelError, match="'eighth'"):
        check_finite({"eighth": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)})


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(2, device="meta"), "no values yet"),
        (nn.parameter.UninitializedParameter(), "no values yet"),
    ],
    ids=["meta", "lazy"],
)
def test_weight_without_float_numbers_is_refused(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(ModelError, match=f"'w' .*{words}"):
        check_finite({"w": tensor})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_weight_is_refused() -> None:
    with pytest.raises(ModelError, match="'w' is quantized already"):
        check_finite({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


# in memory ------------------------------------------------------------------------------------------------------------


def test_from_module_leaves_the_callers_module_alone() -> None:
    model = small_network().train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = from_module(model)
    assert loaded.module is not None and loaded.program is None and loaded.name == "Sequential"
    assert not any(part.training for part in loaded.module.modules())
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.zero_()
    assert model.training and not model[2].training and model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_digest_in_memory_knows_weights_names_shapes_and_class() -> None:
    model = small_network()
    same = from_module(copy.deepcopy(model).eval()).digest
    assert from_module(model).digest == same
    with torch.no_grad():
        model[4].bias[0] += 1e-6
    changed = from_module(model).digest
    others = [nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False), Branchy()]
    with torch.no_grad():
        for other in others:
            for parameter in other.parameters():
                parameter.fill_(1.0)
    assert len({same, changed, *(from_module(other).digest for other in others)}) == 5


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match="a dict as the model"):
        from_module({"weight": torch.ones(2)})  # type: ignore[arg-type]


def test_module_that_cannot_be_copied_is_refused() -> None:
    model = Branchy()
    model.cache = torch.ones(2, requires_grad=True) * 2  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be copied"):
        from_module(model)


# --input-shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "shape"), [("1x3x224x224", (1, 3, 224, 224)), ("1X128", (1, 128)), (" 1x3x32x32 ", (1, 3, 32, 32))])
def test_input_shape_parses(text: str, shape: tuple[int, ...]) -> None:
    assert parse_input_shape(text) == shape


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1x3x224x224"),
        ("224", "1x3x224x224"),
        ("1x3xhx224", "1x3x224x224"),
        ("1,3,224,224", "1x3x224x224"),
        ("1x-3x4", "1x3x224x224"),
        ("1x3x", "1x3x224x224"),
        ("3x224x224", "write 1x224x224, or 1x3x224x224"),
        ("8x3x32x32", "leading 1, the batch"),
        ("1x0x4", "side of 0"),
    ],
)
def test_input_shape_that_is_nonsense_is_refused(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        parse_input_shape(text)
