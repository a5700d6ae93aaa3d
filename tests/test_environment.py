from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import pytest

from quantkit.core import environment
from quantkit.core.progress import Silent

LINUX = "model name\t: Some CPU @ 3GHz\nflags\t\t: fpu sse2 avx2 {flags}\n\nmodel name\t: Another\nflags\t\t: amx_int8\n"
MACOS = {
    "machdep.cpu.brand_string": "machdep.cpu.brand_string: Apple M9\n",
    "machdep.cpu.leaf7_features": "",
    "hw.optional.arm": "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n",
}


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(text: str) -> None:
        monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(platform, "system", lambda: "Linux")

    return write


@pytest.mark.parametrize(
    ("flags", "label", "vnni"),
    [
        ("", "avx2", False),
        ("avx_vnni", "avx_vnni", True),
        ("avx512f avx512_vnni", "avx512_vnni", True),
        ("amx_int8 avx512_vnni", "amx_int8", True),
    ],
    ids=["plain", "avx-vnni", "avx512-vnni", "amx"],
)
def test_the_fastest_instruction_set_is_read_from_the_first_processor(linux, flags: str, label: str, vnni: bool) -> None:
    linux(LINUX.format(flags=flags))

    assert environment.cpu_model() == "Some CPU @ 3GHz"
    assert environment.isa_label() == label
    assert environment.has_vnni() is vnni


def test_arm_features_are_read_under_linux_too(linux) -> None:
    linux("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")

    assert environment.isa() == ("i8mm", "dotprod")


def test_macos_counts_only_the_features_that_are_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        def __init__(self, stdout: str) -> None:
            self.stdout = stdout

    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **_: Answer(MACOS[command[1]]))

    assert environment.cpu_model() == "Apple M9"
    assert environment.isa() == ("dotprod",)


def test_an_unknown_system_still_gets_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(platform, "system", lambda: "Other")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    assert environment.isa_label() == "riscv64"
    assert environment.has_vnni() is False


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert environment.cores() == 3

    monkeypatch.delattr(environment.os, "sched_getaffinity")
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 11)
    assert environment.cores() == 11


def test_the_description_is_json_and_names_what_a_result_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return "9.9"

    monkeypatch.setattr(environment, "version", version)
    told = json.loads(json.dumps(environment.describe()))

    assert set(told) == {"cpu", "isa", "cores", "torch", "onnxruntime", "onnx", "openvino", "quantkit", "python", "os"}
    assert told["torch"] is None
    assert told["onnx"] == "9.9"


def test_silence_is_a_progress_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    with silent.stage("score", total=3, unit="layers") as advance:
        advance(1)
    silent.note("worth a line")

    assert capsys.readouterr() == ("", "")
