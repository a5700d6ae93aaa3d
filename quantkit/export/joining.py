"""A quantized network in the place of the user's own ONNX file: under its names, with what stands behind the network there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import version_converter

from quantkit.core.errors import ContractError, ModelError
from quantkit.core.store import write_atomically
from quantkit.export.onnx_file import files_of
from quantkit.loading.boundary import foreign
from quantkit.loading.from_onnx.opening import open_model
from quantkit.loading.from_onnx.rest import OnnxFile, Rest, renamed


def write_in_place(network: Path, file: OnnxFile, path: Path, *, shows_read: bool = False) -> None:
    """Write the file `network`, whose inputs are those of `file`, to `path` as the user's file is: its names, its notes, its rest.

    With `shows_read`, what the rest reads of the network comes out too, in front of the other outputs. Raises ModelError for a rest that
    has no form in the opset of `network`, and for a network of more than one file.
    """
    if len(files_of(network)) > 1:
        raise ModelError(f"{network.name} keeps its weights in another file", "one file", "use it under its own names")
    model, own = onnx.load(network), open_model(file.path, inlined=True)
    _rename(model.graph, dict(file.inputs), file.outputs)
    if file.rest is not None:
        shown = [*model.graph.output] if shows_read else []
        _append(model, _in_opset(file.rest, model), file)
        outputs = [*shown, *(value for value in file.rest.outputs if value.name not in {other.name for other in shown})]
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    model.metadata_props.extend(entry for entry in own.metadata_props if entry.key not in {known.key for known in model.metadata_props})
    model.graph.name, model.doc_string = own.graph.name, own.doc_string
    with write_atomically(path) as temporary:
        onnx.save(model, temporary)


def _rename(graph: onnx.GraphProto, inputs: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Inputs and outputs under their names in the user's file; a value within that has such a name gets another."""
    names = {**inputs, **{value.name: name for value, name in zip(graph.output, outputs, strict=True)}}
    held = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    for name in set(names.values()) & held - set(names):
        names[name] = f"{name}_within"
    for node in graph.node:
        node.CopyFrom(renamed(node, lambda name: names.get(name, name)))
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def _append(model: onnx.ModelProto, rest: Rest, file: OnnxFile) -> None:
    """The rest behind the network. Of its own values, those whose name the network has, too, get another."""
    graph = model.graph
    taken = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    shared = {*file.outputs, *file.inputs.values()}
    made = {name for node in rest.nodes for name in node.output} | {tensor.name for tensor in rest.constants}
    names = {name: f"{name}_behind" for name in (made & taken) - shared}
    if clashing := names.keys() & {value.name for value in rest.outputs}:
        raise ContractError(f"the network has values of the names {', '.join(sorted(clashing))}", "outputs of other names", "report this")
    graph.node.extend(renamed(node, lambda name: names.get(name, name)) for node in rest.nodes)
    for tensor in rest.constants:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names.get(tensor.name, tensor.name)


def _in_opset(rest: Rest, model: onnx.ModelProto) -> Rest:
    """The rest in the opset of `model`, by the standard's own converter."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset == rest.opset:
        return rest
    made = {name for node in rest.nodes for name in node.output} | {tensor.name for tensor in rest.constants}
    outside = sorted({name for node in rest.nodes for name in node.input if name} - made)
    graph = onnx.helper.make_graph(
        rest.nodes, "rest", [onnx.helper.make_empty_tensor_value_info(name) for name in outside], rest.outputs, rest.constants
    )
    alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", rest.opset)])
    kinds = ", ".join(rest.kinds)
    with foreign(f"what stands behind the network ({kinds}) has no form in opset {opset}", "one", f"export with opset {opset}"):
        found = version_converter.convert_version(alone, opset).graph
    return Rest(tuple(found.node), tuple(found.initializer), rest.outputs, opset)
