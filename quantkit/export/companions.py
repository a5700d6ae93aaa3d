"""Files written beside a file for a runtime that is not installed: the command that builds it, and a script that checks the build."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from quantkit.core.graph import Graph
from quantkit.core.store import write_atomically

SCRIPT = "build_and_check.py"
TEMPLATE = Path(__file__).with_name("tensorrt_build.py")


def write_companions(file: Path, graph: Graph, target: str) -> tuple[Path, ...]:
    """Write them into the folder of `file`; nothing for a target that needs none. Raises OutputError where that cannot be written."""
    contents = WRITERS[target](file, graph) if target in WRITERS else {}
    for path, content in contents.items():
        with write_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return tuple(contents)


def _tensorrt(file: Path, graph: Graph) -> dict[Path, str]:
    """trtexec's command line, whose paths are relative to the file, and the script."""
    shapes = {name: graph.tensor(name).shape if _is_float(graph, name) else () for name in graph.inputs}
    sides = {name: "x".join(str(side or 1) for side in (graph.batch or 1, *shape)) for name, shape in shapes.items() if shape}
    options = [
        f"--onnx={file.name}",
        "--stronglyTyped",
        f"--saveEngine={file.stem}.engine",
        *([f"--shapes={','.join(f'{name}:{side}' for name, side in sides.items())}"] if graph.batch is None and sides else []),
        "--profilingVerbosity=detailed",
        "--separateProfileRun",
        f"--exportLayerInfo={file.stem}.layers.json",
        f"--exportProfile={file.stem}.profile.json",
    ]
    lines = [
        "#!/bin/sh",
        "# Build the engine (TensorRT 10 or later) and profile it; the layers' precisions go into the .layers.json.",
        "# Precisions are in the file: no --fp16, --int8 or --best. Other options may follow.",
        'cd "$(dirname "$0")" || exit 2',
        'command -v trtexec >/dev/null || { echo "trtexec is missing: install TensorRT 10 or later" >&2; exit 2; }',
        "exec trtexec \\",
        *(f"  {shlex.quote(option)} \\" for option in options),
        '  "$@"',
    ]
    command = file.with_name(f"{file.name}.trtexec.sh")
    return {command: "\n".join(lines) + "\n", file.with_name(SCRIPT): TEMPLATE.read_text(encoding="utf-8")}


def _is_float(graph: Graph, name: str) -> bool:
    return any(tensor.name == name for tensor in graph.tensors)


WRITERS: Mapping[str, Callable[[Path, Graph], dict[Path, str]]] = {"tensorrt": _tensorrt}
