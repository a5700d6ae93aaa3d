"""Any ONNX file, opened without trust: nothing outside its folder is read, nothing of unbounded size is built, no code runs.

What is wrong with a file as a file is a ModelError, one line; what is wrong with its network is the linter's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.inliner import inline_local_functions

from quantkit.core.errors import ModelError
from quantkit.loading.boundary import foreign

MOST_BYTES = 2 << 30  # protobuf's own limit for one message
MOST_NODES = 200_000
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


def open_model(path: Path, *, inlined: bool = False) -> onnx.ModelProto:
    """The model with its external data loaded; with `inlined`, its functions are spelt out.

    Raises ModelError for what is not an ONNX file, is too large, holds functions (if not `inlined`) or operators of unknown domains, or
    names data outside its folder.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MOST_BYTES else b""
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", "an ONNX file", "check the path and its permissions") from error
    if size > MOST_BYTES:
        raise ModelError(f"{path} has {size:,} bytes", f"at most {MOST_BYTES:,}", "store the weights as external data")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not a complete ONNX file", "an ONNX model", "export it again") from error
    nodes = list(model.graph.node)
    if not nodes or not model.opset_import:
        raise ModelError(f"{path} holds no network", "an ONNX model with nodes and an opset", "export it again")
    if not all(isinstance(text, str) for text in _texts(model.graph)):
        raise ModelError(f"{path} has names that are no text", "UTF-8", "export it again")
    if len(nodes) > MOST_NODES:
        raise ModelError(f"{path} has {len(nodes):,} nodes", f"at most {MOST_NODES:,}", "examine a part of it")
    if model.functions and inlined:
        with foreign(f"the functions of {path} cannot be spelt out", "functions that call each other in no circle", "export it again"):
            model = inline_local_functions(model)
        nodes = list(model.graph.node)
    if model.functions:
        raise ModelError(f"{path} defines {len(model.functions)} functions of its own", "plain operators", "inline them when exporting")
    strange = sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in KNOWN_DOMAINS})
    if strange:
        raise ModelError(
            f"{path} needs operators of other domains: {', '.join(strange[:5])}",
            "operators of onnx and com.microsoft",
            "export it again without custom operators",
        )
    _load_external(model, path)
    return model


def file_bytes(path: Path) -> int:
    """Bytes of the file and of the files beside it that hold its weights. Raises ModelError for what `open_model` refuses."""
    open_model(path)  # the names of its external data are then names below its folder
    return sum(each.stat().st_size for each in (path, *data_files(path)))


def data_files(path: Path) -> list[Path]:
    """The files beside it that hold its weights, of a file that `open_model` takes."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    outside = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    names = {str(entry.value) for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    return [path.resolve().parent / name for name in sorted(names)]


def _texts(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """All names in the graph; protobuf gives bytes for those that are no UTF-8."""
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output, *(one.name for one in node.attribute))
    yield from (entry.name for entries in (graph.input, graph.output, graph.initializer, graph.value_info) for entry in entries)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        try:
            target = (folder / location).resolve()
            inside = bool(location) and target.is_relative_to(folder) and target.is_file()
            offset, length = int(fields.get("offset", 0)), int(fields.get("length", 0))
            fits = inside and min(offset, length) >= 0 and offset + length <= target.stat().st_size
        except (ValueError, OSError) as error:
            raise ModelError(
                f"{path}: {tensor.name!r} names data at {location!r}",
                "a file beside the model",
                "copy the data beside the model, or export it again",
            ) from error
        if not fits:
            raise ModelError(
                f"{path}: {tensor.name!r} names data at {location!r}",
                "a part of a file beside the model, or below it",
                "copy the data beside the model, whole, or export it again",
            )
        load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
