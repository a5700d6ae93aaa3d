"""The standard's own node tests (onnx.backend.test), put to the operators that are translated."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from torch import Tensor

from quantkit.loading.from_onnx.fusions import Step, with_factors
from quantkit.loading.from_onnx.network import _attribute
from quantkit.loading.from_onnx.operators import OPERATORS, Call, constant
from quantkit.loading.from_onnx.recurrent import with_torch_parameters

TYPES = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE)


@dataclass(frozen=True)
class StandardCase:
    """One node, its inputs by name and the outputs that the standard wants."""

    name: str
    node: onnx.NodeProto
    opset: int
    inputs: dict[str, np.ndarray[Any, Any]]
    wanted: list[np.ndarray[Any, Any]]

    def apart(self) -> str:
        """"" where the translation answers as the standard; else what is wrong."""
        try:
            found = self._found()
        except Exception as error:  # noqa: BLE001 - whatever it is, the case is not passed
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        for mine, wanted in zip(found, self.wanted, strict=False):
            got = np.asarray(mine.detach() if isinstance(mine, Tensor) else mine)
            if got.shape != wanted.shape:
                return f"shape {got.shape}, not {wanted.shape}"
            if not np.allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=1e-3, atol=1e-6, equal_nan=True):
                return f"differs by {np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max():.3g}"
        return ""

    def _found(self) -> tuple[Any, ...]:
        arrays = dict(self.inputs)
        attributes = {one.name: _attribute(one) for one in self.node.attribute}
        step = Step(self.node.op_type, "", tuple(self.node.input), tuple(self.node.output), attributes)
        (step,) = with_factors(with_torch_parameters([step], arrays), arrays)
        values = [constant(arrays[name]) if name else None for name in step.inputs]
        found = OPERATORS[step.kind](Call(step.kind, values, step.attributes, self.opset, len(step.outputs)))
        found = found if isinstance(found, tuple) else (found,)
        return tuple(value for value, name in zip(found, self.node.output, strict=False) if name)


@cache
def standard_cases() -> tuple[StandardCase, ...]:
    """Those of one node, of an operator that is translated, with numbers of the types that networks compute in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(_cases())


def _cases() -> Iterator[StandardCase]:
    for case in collect_testcases(None):
        graph = case.model.graph
        if len(graph.node) != 1 or graph.node[0].op_type not in OPERATORS or graph.node[0].domain:
            continue
        kinds = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output) if value.type.HasField("tensor_type")]
        if len(kinds) < len(graph.input) + len(graph.output) or not set(kinds) <= set(TYPES) or not case.data_sets:
            continue
        inputs, wanted = case.data_sets[0]
        opset = next(entry.version for entry in case.model.opset_import if not entry.domain)
        inputs, wanted = ([_array(value) for value in values] for values in (inputs, wanted))
        given = {value.name: array for value, array in zip(graph.input, inputs, strict=True)}
        yield StandardCase(case.name, graph.node[0], opset, given, wanted)


def _array(value: Any) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
