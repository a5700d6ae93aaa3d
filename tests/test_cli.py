"""The command line: what it exits with, what it writes where, and that every option reaches the request."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.table import Table

import quantkit
from quantkit.allocation.costs.overview import Overview, SchemeUse, StaysFloat
from quantkit.cli import main, recipe_main, tables
from quantkit.cli.console import Printed
from quantkit.core.errors import ContractError, DataError
from quantkit.core.graph import Graph, Group, Layer, Unsupported
from quantkit.core.spec import parse_schemes
from quantkit.settings.arguments import Arguments, rows
from quantkit.settings.options import Options

ROOT = Path(__file__).resolve().parent.parent

RESULT: dict[str, Any] = {
    "schema": 1,
    "run": "runs/net-01234567",
    "kept": True,
    "bounds": [],
    "budget": {"max_drop": 0.5, "unit": "points", "metric": "top1"},
    "verdict": {"decision": "kept", "n": 400, "float": 91.0, "quantized": 90.9, "drop": 0.1, "low": -0.2, "high": 0.4},
    "latency": {"float_ms": 8.0, "quantized_ms": 4.0, "ratio": 0.5, "low": 0.48, "high": 0.53, "threads": 1, "batch": 1},
    "bytes": {"float": 1_000_000, "quantized": 250_000, "ratio": 0.25},
    "baselines": [
        {"name": "float", "drop": 0.0, "latency_ratio": 1.0, "bytes_ratio": 1.0},
        {"name": "uniform w8a8", "drop": 1.75, "latency_ratio": 0.45, "bytes_ratio": 0.26},
    ],
    "allocation": [
        {"group": "stem", "layers": ["stem"], "scheme": "fp32", "sensitivity": 9.0, "bytes": 4000, "latency_ms": 1.0},
        {"group": "body", "layers": ["body"], "scheme": "w8a8", "sensitivity": 0.1, "bytes": 200_000, "latency_ms": 3.0},
    ],
    "certificate": None,
    "executed": {"as_planned": True, "int8": 1, "float": 1, "int8_macs": 0.9, "mismatches": []},
    "simulation": {"items": 64, "agreement": 1.0, "exact": 1.0, "layers_exact": 1.0},
    "files": {"onnx": "/tmp/net.onnx", "float_onnx": "/tmp/float.onnx", "session": None},
    "seconds": {"search": 3.0},
    "environment": {"cpu": "some"},
    "fingerprint": "0123456789",
}

GRAPH = Graph(
    layers=(
        Layer("stem", "conv", "conv2d", "relu", ("x",), weight="stem.weight", weight_shape=(8, 3, 3, 3), output_shape=(8, 4, 4), macs=3456),
        Layer("body", "linear", "linear", "linear", ("flat",), weight="body.weight", weight_shape=(10, 128), output_shape=(10,), macs=1280),
    ),
    movers=(),
    unsupported=(Unsupported(node="erf", operation="aten.erf", inputs=("x",), reason="no integer kernel"),),
    tensors=(),
    inputs=("x",),
    outputs=("linear",),
    symbolic={},
)
GROUPS = (
    Group("stem", ("stem",), parse_schemes(("fp32", "w8a8")), "alone"),
    Group("body", ("body",), parse_schemes(("fp32", "w8a8", "w4a8")), "alone"),
)
OVERVIEW = Overview(
    macs=4736, int8_macs=4736, groups=2, int8_groups=2, uncounted=(),
    schemes={"fp32": SchemeUse(2, 5984.0), "w8a8": SchemeUse(2, 1700.0)},
    stays=(StaysFloat("aten.erf", "no integer kernel", ("erf",)),),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    kept: bool = True
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**RESULT, "kept": self.kept}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the modules behind the command line: keeps what they were given; `run` is what the job does."""
    seen = SimpleNamespace(source=None, arguments=None, run=lambda request, progress: Result())

    def resolve(source: Any, arguments: Arguments) -> str:
        seen.source, seen.arguments = source, arguments
        return "request"

    rooms = {
        "settings.request": {"resolve": resolve, "resolve_model": lambda source, arguments: (resolve(source, arguments), None, Options())},
        "pipeline": {
            "run": lambda request, progress: seen.run(request, progress),
            "allocate": lambda source, arguments, progress: seen.run(resolve(source, arguments), progress),
            "inspect": lambda model, example, options: SimpleNamespace(graph=GRAPH, groups=GROUPS, overview=OVERVIEW, behind=("TopK",)),
        },
    }
    for name, functions in rooms.items():
        room = ModuleType(f"quantkit.{name}")
        vars(room).update(functions)
        monkeypatch.setitem(sys.modules, room.__name__, room)
        package, _, stem = room.__name__.rpartition(".")
        monkeypatch.setattr(import_module(package), stem, room, raising=False)
    return seen


def raising(error: BaseException) -> Callable[[Any, Any], Any]:
    def run(request: Any, progress: Any) -> Any:
        raise error

    return run


@pytest.mark.parametrize(("kept", "code"), [(True, 0), (False, 1)], ids=["kept", "not kept"])
def test_the_verdict_is_the_exit_code(work: SimpleNamespace, kept: bool, code: int) -> None:
    work.run = lambda request, progress: Result(kept)

    assert main(["allocate", "net.pt2", "--json"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("3 items", "4 items", "add one"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "net.onnx"), 2),
        (ContractError("a name was lost"), 3),
        (ZeroDivisionError("division\nby zero"), 3),
        (OSError(errno.ENOENT, "gone", "x"), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=["request", "full disk", "contract", "crash", "other os error", "ctrl-c"],
)
def test_an_error_is_one_line_on_stderr_and_its_own_exit_code(
    work: SimpleNamespace, capfd: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    work.run = raising(error)
    answer = main(["allocate", "net.pt2", "--json"])
    out, err = capfd.readouterr()

    assert answer == code
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("quantkit: ")
    assert "Traceback" not in err


def test_a_request_error_says_got_wanted_and_next(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    work.run = raising(DataError("3 items", "4 items", "add one"))
    main(["allocate", "net.pt2"])

    assert capfd.readouterr().err == "quantkit: 3 items; wanted 4 items; next: add one\n"


def test_a_crash_leaves_a_report_with_the_trace_and_the_machine(
    work: SimpleNamespace, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    work.run = raising(ZeroDivisionError("by zero"))
    main(["allocate", "net.pt2"])
    (report,) = tmp_path.glob("quantkit-error-*.txt")

    assert str(report) in capfd.readouterr().err
    assert "ZeroDivisionError: by zero" in report.read_text()
    assert '"cpu"' in report.read_text()


def test_stdout_holds_the_json_and_nothing_that_others_print(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    def run(request: Any, progress: Any) -> Result:
        print("from a recipe")
        os.write(1, b"from a library\n")
        ctypes.CDLL(None).puts(b"from a solver")
        with progress.stage("score", total=2, unit="layers") as advance:
            advance(2)
        progress.note("a note")
        return Result()

    work.run = run
    main(["allocate", "net.pt2", "--json"])
    out, err = capfd.readouterr()

    assert json.loads(out) == RESULT
    for line in ("from a recipe", "from a library", "from a solver", "score", "a note"):
        assert line in err


def test_stages_inside_stages_are_told_in_order(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    def run(request: Any, progress: Any) -> Result:
        with progress.stage("search"), progress.stage("measure", total=1) as advance:
            advance(1)
        return Result()

    work.run = run
    main(["allocate", "net.pt2", "--json"])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]

    assert lines[0].startswith("  measure")
    assert lines[1].startswith("search")


OPTIONS = {
    "max_drop": ("0.5%", "0.5%"),
    "threads": ("2", 2),
    "confidence": ("0.9", 0.9),
    "certificate": ("7", 7),
    "seed": ("3", 3),
    "split_seed": ("4", 4),
    "batch_size": ("5", 5),
    "memory_mb": ("6", 6),
    "fix": ("head=fp32", ["head=fp32"]),
    "exclude": ("head*", ["head*"]),
}
NOT_OPTIONS = {"trust_pickle", "streamed", "calibration_items", "search_items", "gate_items"}


@pytest.mark.parametrize("name", [name for name in rows(Arguments) if name not in NOT_OPTIONS])
def test_every_option_reaches_the_request_and_says_only_itself(work: SimpleNamespace, name: str) -> None:
    text, value = OPTIONS.get(name, ("text", "text"))
    main(["allocate", "net.pt2", f"--{name.replace('_', '-')}", text, "--json"])

    assert work.source == "net.pt2"
    assert work.arguments == Arguments(**{name: value})


def test_streamed_is_a_flag(work: SimpleNamespace) -> None:
    main(["allocate", "net", "--streamed", "--json"])

    assert work.arguments == Arguments(streamed=True)


def test_certify_is_given_only_by_its_flag(work: SimpleNamespace) -> None:
    main(["allocate", "net.pt2", "--trust-pickle", "--json"])

    assert work.arguments == Arguments(trust_pickle=True)


def test_the_table_tells_a_newcomer_what_came_out(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    main(["allocate", "net.pt2"])
    out = capfd.readouterr().out

    assert "Kept, sure at 95 %: 0.10 points of top1 lost, at most 0.50 allowed" in " ".join(out.split())
    rows = {line.split("  ")[0].strip(): line.split()[2:] for line in out.splitlines() if "×" in line}
    assert set(rows) == {"float", "uniform w8a8", "this plan"}
    assert rows["uniform w8a8"] == ["1.75", "3.60", "ms", "0.45×", "260", "kB", "0.26×"]
    assert rows["this plan"] == ["0.10", "4.00", "ms", "0.50×", "250", "kB", "0.25×"]
    assert "/tmp/net.onnx" in out
    assert "stem" in out
    assert "90.0 % of the multiply-accumulates" in out


def test_a_broken_promise_is_told_with_what_binds(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    work.run = lambda request, progress: Result(False, ("stem binds: in float it costs 3 ms.",))
    main(["allocate", "net.pt2"])
    out = capfd.readouterr().out

    assert out.startswith("Not kept")
    assert "stem binds: in float it costs 3 ms." in out


@pytest.mark.parametrize(
    ("kept", "decision", "told"),
    [
        (True, "kept", "Kept, sure at 95 %"),
        (True, "undecided", "Kept, though these items are too few to be sure"),
        (False, "undecided", "Not kept, or not proven to be, on these items"),
        (False, "broken", "Not kept, sure at 95 %"),
    ],
)
def test_the_verdict_in_words_says_how_sure_it_is(kept: bool, decision: str, told: str) -> None:
    result = {**RESULT, "kept": kept, "verdict": {**RESULT["verdict"], "decision": decision}}

    assert tables.verdict_line(result).startswith(f"{told}:")


def test_a_mismatch_with_the_plan_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    executed = {"as_planned": False, "int8": 0, "float": 2, "int8_macs": 0.0, "mismatches": ["body ran float"]}
    tables.show_result({**RESULT, "executed": executed}, ())

    assert "does not run these as planned: body ran float" in capfd.readouterr().out


def test_inspect_shows_groups_and_what_stays_float(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "net.pt2", "--input-shape", "1x3x8x8"]) == 0
    out = capfd.readouterr().out

    assert work.arguments == Arguments(input_shape="1x3x8x8")
    for word in ("stem", "conv", "8×3×3×3", "216", "3,456", "body", "w4a8", "aten.erf", "no integer kernel"):
        assert word in out
    assert out.startswith("100.0 % of 4,736 multiply-accumulates can run in int8, in 2 of 2 groups.")


def test_a_table_that_no_terminal_reads_cuts_no_name(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    name = f"bert.encoder.layer.0.attention.{'self.' * 20}query"
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("group", "scheme")
    table.add_row(name, "w8a8")
    Printed().print(table)

    assert name in capfd.readouterr().out


def test_inspect_gives_the_same_as_json(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "net.pt2", "--json"])
    told = json.loads(capfd.readouterr().out)

    assert [(row["group"], row["weights"], row["macs"], row["schemes"][-1]) for row in told["groups"]] == [
        ("stem", 216, 3456, "w8a8"), ("body", 1280, 1280, "w4a8"),
    ]  # fmt: skip
    assert told["summary"] == json.loads(json.dumps(OVERVIEW.to_json()))
    assert [(row["operation"], row["reason"]) for row in told["unsupported"]] == [("aten.erf", "no integer kernel")]
    assert told["behind"] == ["TopK"]


def test_doctor_tells_processor_and_versions(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert {"cpu", "isa", "vnni", "onnxruntime"} <= set(told)

    assert main(["doctor"]) == 0
    assert told["isa"] in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["alocate"], ["allocate"], ["allocate", "net.pt2", "--max-dorp", "1"], ["allocate", "net.pt2", "--seed", "one"]],
    ids=["command", "no model", "option", "seed"],
)
def test_a_misspelt_command_line_is_a_wrong_request(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capfd.readouterr().out == ""


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.strip() == quantkit.__version__


def recipe() -> None:
    """Stands for the function of a recipe file."""


def test_a_recipe_run_as_a_program_is_the_same_command(work: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    assert recipe_main(recipe, ["--max-drop", "1.0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == RESULT
    assert Path(work.source) == Path(__file__)
    assert work.arguments == Arguments(max_drop="1.0")


def test_a_recipe_without_a_file_is_a_wrong_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert recipe_main(len, []) == 2
    assert "recipe file" in capfd.readouterr().err


def test_ctrl_c_ends_a_real_process_with_130_and_one_line(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"def recipe():\n    import pathlib, time\n    pathlib.Path({str(started)!r}).touch()\n    time.sleep(60)\n"
    (tmp_path / "slow.py").write_text(code)
    command = [sys.executable, "-m", "quantkit", "allocate", "slow.py", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background is started deaf to it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"__pycache__", "slow.py", "started"}


SHORT = "from quantkit.cli.exit_codes import exit_code; raise SystemExit(exit_code(lambda: print('so short that it is held back') or 0))"


@pytest.mark.parametrize(
    "arguments", [["-m", "quantkit", "doctor"], ["-m", "quantkit", "doctor", "--json"], ["-c", SHORT]], ids=["people", "json", "short"]
)
def test_a_reader_that_went_away_is_no_fault_and_no_broken_promise(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # with it every line would meet the closed pipe at once
    command = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout and command.stderr
    command.stdout.close()
    said = command.stderr.read()

    assert (command.wait(), said) == (141, "")
