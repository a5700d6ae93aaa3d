"""Mechanical fixes: edits that change no number that the network computes, or only its last bit. The linted file stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from quantkit.loading.boundary import foreign
from quantkit.verification.lint.graph_view import Array, Quantizer, View, read, title
from quantkit.verification.lint.ort_cpu import silently_quantized
from quantkit.verification.lint.tensorrt import computed_weight

LOWEST = np.array(-3e38, np.float32)


def apply_fixes(model: onnx.ModelProto, rules: set[str]) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with what these rules complain of fixed, as far as that is mechanical, and the rules that were."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    done = [rule for rule in FIXES if rule in rules and FIXES[rule](copied)]
    return copied, done


def _sign_weights(model: onnx.ModelProto) -> bool:
    """uint8 codes around 128 → int8 codes around 0: the same values."""
    view = View(model)
    quantizers = [view.quantizer(node) for node in view.of_kind("DequantizeLinear")]
    found = [entry for entry in quantizers if entry.source in view.initializers and _around_128(entry)]
    for entry in found:
        codes = view.constant(entry.source)
        assert codes is not None
        entry.node.input[0] = _constant(model, f"{entry.source}_signed", (codes.astype(np.int16) - 128).astype(np.int8))
        _zero_at_0(model, entry)
    return bool(found)


def _sign_activations(model: onnx.ModelProto) -> bool:
    """As `_sign_weights`, for a QuantizeLinear and all DequantizeLinear that read its codes."""
    view, done = View(model), _sign_weights(model)
    for node in view.of_kind("QuantizeLinear"):
        entry = view.quantizer(node)
        readers = [reader for reader, _ in view.readers[node.output[0]]]
        if _around_128(entry) and all(reader.op_type == "DequantizeLinear" for reader in readers):
            for quantizer in [entry, *(view.quantizer(reader) for reader in readers)]:
                _zero_at_0(model, quantizer)
            done = True
    return done


def _real_biases(model: onnx.ModelProto) -> bool:
    view, done = View(model), False
    for node in view.of_kind("Conv", "Gemm", "ConvTranspose"):
        entry = view.dequantizer(read(node, 2), through=False) if read(node, 2) else None
        codes = None if entry is None else view.constant(entry.source)
        if entry is not None and codes is not None and entry.scale is not None:
            node.input[2] = _constant(
                model, f"{entry.source}_real", (codes.astype(np.float64) * entry.scale.astype(np.float64)).astype(np.float32)
            )
            done = True
    _sweep(model)
    return done


def _unpack(model: onnx.ModelProto) -> bool:
    """INT4 codes → Cast to INT8 in front of the DequantizeLinear, which the runtime folds."""
    view, done = View(model), False
    for node in view.of_kind("DequantizeLinear"):
        entry = view.quantizer(node)
        if entry.bits != 4 or not entry.signed or entry.source not in view.initializers:
            continue
        wide = helper.make_node("Cast", [entry.source], [f"{title(node)}_unpacked"], to=onnx.TensorProto.INT8, name=f"{title(node)}_unpack")
        model.graph.node.insert(list(model.graph.node).index(node), wide)
        node.input[0] = wide.output[0]
        if entry.zero_point is not None:
            node.input[2] = _constant(model, f"{read(node, 2)}_wide", entry.zero_point.astype(np.int8))
        done = True
    return done


def _fold_codes(model: onnx.ModelProto) -> bool:
    """Codes that constant nodes unpack → an initializer."""
    view = View(model)
    names = {name for name, _ in computed_weight(view)}
    found = [view.quantizer(node) for node in view.of_kind("DequantizeLinear") if title(node) in names]
    for entry in found:
        part, needed = [], {entry.source}
        for node in reversed(list(model.graph.node)):
            if needed & set(node.output):
                part.append(node)
                needed |= set(node.input)
        constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
        graph = helper.make_graph(
            part[::-1], "codes", [], [helper.make_tensor_value_info(entry.source, onnx.TensorProto.INT8, None)], constants
        )
        small = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
        with foreign(f"the codes {entry.source!r} cannot be computed", "constants that the standard's operators take", "export it again"):
            (codes,) = ReferenceEvaluator(small).run(None, {})
        entry.node.input[0] = _constant(model, f"{entry.source}_codes", np.asarray(codes).astype(np.int8))
    _sweep(model)
    return bool(found)


def _keep_float(model: onnx.ModelProto) -> bool:
    """A Max that changes nothing, behind the DequantizeLinear: the runtime then leaves the layer alone."""
    view = View(model)
    names = {name for name, _ in silently_quantized(view)}
    for node in [node for node in view.of_kind("Conv", "Gemm") if title(node) in names]:
        barrier = f"{title(node)}_barrier"
        inserted = helper.make_node("Max", [node.input[0], _constant(model, "lowest", LOWEST)], [f"{barrier}_value"], name=barrier)
        model.graph.node.insert(list(model.graph.node).index(node), inserted)
        node.input[0] = inserted.output[0]
    return bool(names)


FIXES: Mapping[str, Callable[[onnx.ModelProto], bool]] = {
    "ORT103": _keep_float,
    "ORT109": _sign_weights,
    "ORT111": _unpack,
    "TRT001": _sign_activations,
    "TRT003": _real_biases,
    "TRT006": _fold_codes,
}


def _around_128(entry: Quantizer) -> bool:
    return entry.bits == 8 and not entry.signed and entry.zero_point is not None and bool((entry.zero_point == 128).all())


def _zero_at_0(model: onnx.ModelProto, entry: Quantizer) -> None:
    assert entry.zero_point is not None
    shape = "x".join(map(str, entry.zero_point.shape))
    entry.node.input[2] = _constant(model, f"signed_zero_{shape}", np.zeros(entry.zero_point.shape, np.int8))


def _constant(model: onnx.ModelProto, name: str, array: Array) -> str:
    """The name of an initializer of that content, `name` itself unless the file has something else under it."""
    taken = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {output for node in model.graph.node for output in node.output} | {value.name for value in model.graph.input}
    for number in count(1):
        free = name if number == 1 else f"{name}_{number}"
        tensor = numpy_helper.from_array(array, free)
        if free not in taken and free not in values:
            model.graph.initializer.append(tensor)
            break
        if free in taken and taken[free].SerializeToString() == tensor.SerializeToString():
            break
    return free


def _sweep(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that nothing reads."""
    while True:
        used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
        idle: list[NodeProto] = [node for node in model.graph.node if not used & set(node.output)]
        for node in idle:
            model.graph.node.remove(node)
        if not idle:
            break
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
