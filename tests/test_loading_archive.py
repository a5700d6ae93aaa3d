"""torch.export archives: what loads, what is refused, and that what would run code does not."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_files import EXAMPLE, Payload, export, outputs, refused, saved, silenced, small_network
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from quantkit.core.errors import ModelError
from quantkit.loading import load_model
from quantkit.loading.program_text import check_program_text


def members(path: Path) -> dict[str, bytes]:
    reader = PT2ArchiveReader(str(path))
    return {name: reader.read_bytes(name) for name in reader.get_file_names()}


def write_archive(path: Path, content: dict[str, bytes]) -> Path:
    with PT2ArchiveWriter(str(path)) as writer:
        for name, data in content.items():
            if not name.startswith(".data") and name != "byteorder":  # the writer adds its own
                writer.write_bytes(name, data)
    return path


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
    content["data/constants/model_constants_config.json"] = config_with(
        content, "constants", "c", path_name="opaque_obj_0", use_pickle=True
    )
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


# What torch itself refuses, or happens to read otherwise; ours refuses it all the same.
NOT_LIVE = {"constant declared twice", "target"}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return members(export(small_network().eval(), tmp_path_factory.mktemp("clean") / "net.pt2"))


@pytest.mark.parametrize("member", NEW_FORMAT)
def test_archive_member_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, clean: dict[str, bytes], member: str) -> None:
    content, marker = dict(clean), tmp_path / "it_ran"
    NEW_FORMAT[member](content, marker)
    refused(
        write_archive(tmp_path / "net.pt2", content), "could run code" if member != "opaque object" else "pickled object", "--trust-pickle"
    )
    assert not marker.exists()


def test_most_payloads_above_do_run_in_bare_torch(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """A newer torch may refuse some of them itself; were most of them dead, the tests above would prove nothing."""
    live = set()
    for number, member in enumerate(sorted(NEW_FORMAT.keys() - NOT_LIVE)):
        content, marker = dict(clean), tmp_path / f"it_ran_{number}"
        NEW_FORMAT[member](content, marker)
        path = write_archive(tmp_path / f"net_{number}.pt2", content)
        with contextlib.suppress(Exception), silenced():
            torch.export.load(path).module()(EXAMPLE)
        live |= {member} if marker.exists() else set()
    assert len(live) > len(NEW_FORMAT) / 2, f"torch {torch.__version__} runs only {', '.join(sorted(live))}: write new ones"


OLD_FORMAT = ["serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt", "serialized_state_dict.json"]


def write_old_archive(path: Path, replaced: dict[str, bytes]) -> Path:
    """The zip that torch.export.save wrote up to 2.7."""
    from torch._export.serde.serialize import serialize

    program = torch.export.export(small_network().eval(), (EXAMPLE,), strict=False)
    artifact = serialize(program)
    content = {
        "version": b"8.1",
        "serialized_exported_program.json": artifact.exported_program,
        "serialized_state_dict.pt": artifact.state_dict,
        "serialized_constants.pt": artifact.constants,
        "serialized_example_inputs.pt": artifact.example_inputs,
        **replaced,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("member", OLD_FORMAT)
def test_old_archive_member_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, member: str) -> None:
    marker = tmp_path / "it_ran"
    path = write_old_archive(tmp_path / "net.pt2", {member: saved(Payload(marker))})
    refused(path, member, "could run code")
    assert not marker.exists()
    with contextlib.suppress(Exception), silenced():
        torch.export.load(path)
    assert marker.exists(), "the payload is dead, so this test proves nothing"


def test_old_archive_text_is_checked(tmp_path: Path) -> None:
    program = write_old_archive(tmp_path / "good.pt2", {})
    with zipfile.ZipFile(program) as archive:
        text = archive.read("serialized_exported_program.json").replace(b'"torch.ops.aten.conv2d.default"', b'"torch.os.system"')
    refused(write_old_archive(tmp_path / "bad.pt2", {"serialized_exported_program.json": text}), "torch.os.system")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_old_archive_loads(tmp_path: Path) -> None:
    torch.testing.assert_close(outputs(load_model(str(write_old_archive(tmp_path / "net.pt2", {})))), small_network().eval()(EXAMPLE))


def test_both_formats_in_one_file_are_refused(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """torch falls back to the old one when the new one fails."""
    marker = tmp_path / "it_ran"
    old = write_old_archive(tmp_path / "old.pt2", {"serialized_state_dict.pt": saved(Payload(marker))})
    path = write_archive(tmp_path / "net.pt2", {**clean, "models/model.json": b"{}"})
    with zipfile.ZipFile(path, "a") as both, zipfile.ZipFile(old) as archive:
        for name in archive.namelist():
            both.writestr(name, archive.read(name))
    refused(path, "could run code")
    assert not marker.exists()
    with contextlib.suppress(Exception), silenced():
        torch.export.load(path)
    assert marker.exists(), "the payload is dead, so this test proves nothing"


def test_members_that_differ_in_case_only_are_refused(tmp_path: Path, clean: dict[str, bytes]) -> None:
    refused(write_archive(tmp_path / "net.pt2", {**clean, "data/weights/WEIGHT_0": b"0"}), "ambiguous")


@pytest.mark.parametrize(
    ("name", "words"), [("data/aotinductor/model/code.so", "compiled"), ("data/constants/custom_obj_0", "not a tensor")]
)
def test_archive_with_compiled_or_custom_objects_is_refused(tmp_path: Path, clean: dict[str, bytes], name: str, words: str) -> None:
    refused(write_archive(tmp_path / "net.pt2", {**clean, name: b"x"}), words, name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expr_str", "Symbol('s0').__class__"),
        ("expr_str", "(lambda: 1)()"),
        ("expr_str", "[x for x in (1,)]"),
        ("expr_str", "sympify('1+1')"),
        ("expr_str", "Symbol('exec(1)')"),
        ("expr_str", "s0 +"),
        ("guards_code", ["L['x'].storage().data_ptr()"]),
        ("in_spec", json.dumps([1, {"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "antigravity:X"}])}])),
        ("out_spec", json.dumps([1, {"type": "collections.defaultdict", "context": {"default_factory_module": "antigravity"}}])),
        ("in_spec", json.dumps([1, {"type": "builtins.dict", "context": json.dumps(["k): pass; print(1"])}])),
        ("parameter_name", 'w"); print(1); ("'),
        ("target", "_operator.attrgetter"),
        ("target", "torch.ops.load_library.x"),
        ("target", "torch.ops.aten.conv2d.__class__"),
        ("as_operator", "torch.jit.load"),
        ("a key = 1", 1),
    ],
    ids=str,
)
def test_program_text_that_is_more_than_text_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match="could run code"):
        check_program_text(json.dumps({"graph": [{key: value}]}).encode(), "models/model.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expr_str", "Add(FloorDiv(Add(Symbol('s0', positive=True, integer=True), Integer(-1)), Integer(4)), Integer(1))"),
        ("expr_str", "Mul(Float('0.5', precision=53), ToFloat(2*s1 + 1))"),
        ("guards_code", ["(1 + (((-1) + L['x'].size()[3]) // 2)) != 1", "L['mask'].size()[0] == L['args'][0].size()[0]"]),
        ("as_string", "B G H I J, B G H J D -> B G H I D"),
        ("metadata", {"stack_trace": 'File "a.py", line 1, in forward\n    x = f(y)'}),
        ("in_spec", json.dumps([1, {"type": "builtins.dict", "context": json.dumps(["mask"]), "children_spec": []}])),
        ("target", "torch.ops.higher_order.wrap_with_set_grad_enabled"),
        ("parameter_name", "layer.0.conv-1.weight@1"),
    ],
    ids=str,
)
def test_program_text_that_torch_writes_passes(key: str, value: Any) -> None:
    check_program_text(json.dumps({"graph": [{key: value}]}).encode(), "models/model.json")


def test_certifyed_archive_is_not_checked(tmp_path: Path, clean: dict[str, bytes]) -> None:
    path = write_archive(tmp_path / "net.pt2", {**clean, "data/constants/custom_obj_0": b"never read"})
    assert load_model(str(path), trust_pickle=True).program is not None


def test_train_mode_export_is_refused_and_the_operation_named(tmp_path: Path) -> None:
    refused(export(small_network().train(), tmp_path / "net.pt2"), "training mode", "batch_norm", "model.eval()")


def test_archive_with_damaged_program_is_refused(tmp_path: Path, clean: dict[str, bytes]) -> None:
    refused(write_archive(tmp_path / "net.pt2", {**clean, "models/model.json": clean["models/model.json"][:100]}), "damaged")


def test_archive_that_this_torch_cannot_read_gives_the_reason(
    tmp_path: Path, clean: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    text = clean["models/model.json"].replace(b"aten.conv2d.default", b"aten.conv_nine.default")
    refused(write_archive(tmp_path / "net.pt2", {**clean, "models/model.json": text}), "cannot be read", "conv_nine")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_archive_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    model = small_network().eval()
    with torch.no_grad():
        model[4].bias[2] = float("nan")
    refused(export(model, tmp_path / "net.pt2"), "'4.bias'", "NaN")
